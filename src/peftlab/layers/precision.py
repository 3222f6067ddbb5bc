"""How the frozen base is held, and on which device: what was asked, resolved, with the reason.

auto -> bf16 where the processor multiplies it fast (AMX, AVX512-BF16, CUDA >= 8.0), else fp32
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from peftlab.errors import RequestError

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Choice(NamedTuple):
    """A resolved setting and why it was chosen."""

    value: str
    reason: str


def resolve_device(asked: str = "auto") -> Choice:
    """Auto -> cuda where there is one, else cpu.

    Raises:
        RequestError: if the device asked for is not here.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return Choice("cuda", torch.cuda.get_device_name())
        return Choice("cpu", "no CUDA device")
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked not in here:
        raise RequestError(f"device must be auto, cpu, cuda or mps, got {asked!r}")
    if not here[asked]:
        allowed = ", ".join(name for name, available in here.items() if available)
        raise RequestError(f"device {asked!r} is not available; on this machine: auto, {allowed}")
    return Choice(asked, "asked for")


def resolve_precision(asked: str = "auto", device: str = "cpu") -> Choice:
    """Auto -> bf16 where `device` multiplies it fast, else fp32; with the reason."""
    if asked != "auto":
        if asked not in DTYPES:
            raise RequestError(f"precision must be auto, {', '.join(DTYPES)}, got {asked!r}")
        return Choice(asked, "asked for")
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        fast = (major, minor) >= (8, 0)
        return Choice("bf16" if fast else "fp32", f"CUDA capability {major}.{minor}")
    if device == "cpu":
        feature = _bf16_instructions()
        if feature:
            return Choice("bf16", f"the processor has {feature}")
        return Choice("fp32", "the processor has neither AMX nor AVX512-BF16")
    return Choice("fp32", f"bf16 is not tried on {device}")


def _bf16_instructions() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    for flag, name in {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}.items():
        if flag in flags:
            return name
    return None


def hold_in_fp32(module: nn.Module) -> None:
    """Keep `module` in fp32 on a base of lower precision: its layers cast what they are given."""
    module.float()
    for layer in module.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            layer.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(layer.parameters(recurse=False)).dtype
    return tuple(
        x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )
