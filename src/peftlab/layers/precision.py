"""How the frozen base is held, and on which device: what was asked, resolved, with the reason.

auto -> bf16 where it multiplies faster than fp32 (AMX, AMD's AVX512-BF16, CUDA >= 8.0), else fp32
nf4  -> the backbone's linear layers in four bits, the rest and the products in what auto gives
int8 -> the backbone's linear layers and their products in eight bits, the rest in what auto gives
int7 -> the same with weights of seven bits: what int8 is where a processor has AVX2 without VNNI

What a method needs of its base may part the two: full fine-tuning's is fp32 and computes in bf16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import nf4, rows
from peftlab.layers.cpuinfo import processor_words
from peftlab.layers.int8 import Int7Linear, Int8Linear, products
from peftlab.layers.linear import QuantisedLinear, weight_of
from peftlab.layers.nf4 import NF4Linear
from peftlab.settings import DEVICE_WORDS, PRECISION_WORDS, DeviceName, PrecisionName

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTISED: dict[str, type[Int8Linear] | type[NF4Linear]] = {
    kind.held: kind for kind in (Int8Linear, Int7Linear, NF4Linear)
}
IN_EIGHT_BITS = (Int8Linear.held, Int7Linear.held)  # whose products are


@dataclass(frozen=True)
class Precision:
    """What a base is held in (fp32, bf16, int8, int7, nf4), and what the rest of it computes in."""

    base: str
    compute: str

    def of_base(self, base: str | None) -> Precision:
        """The same products, on a base in `base`; None leaves it as it is."""
        return replace(self, base=base or self.base)

    @property
    def autocast(self) -> bool:
        """Whether products are made in bf16 of a base that is held in fp32."""
        return (self.base, self.compute) == ("fp32", "bf16")


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
    if asked not in get_args(DeviceName):
        raise RequestError(f"device must be {DEVICE_WORDS}, got {asked!r}")
    if asked not in devices():
        allowed = ", ".join(devices())
        raise RequestError(f"device {asked!r} is not available; on this machine: auto, {allowed}")
    return Choice(asked, "asked for")


def devices() -> list[str]:
    """The kinds of device that are here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name in get_args(DeviceName) if here.get(name, name != "auto")]


def resolve_precision(asked: str = "auto", device: str = "cpu") -> tuple[Precision, str]:
    """The precision of a base on `device`, and the reason.

    Raises:
        RequestError: for an unknown one.
    """
    if asked not in get_args(PrecisionName):
        raise RequestError(f"precision must be {PRECISION_WORDS}, got {asked!r}")
    quickest, reason = _quickest(device)
    if asked == "auto":
        return Precision(quickest, quickest), reason
    if asked in IN_EIGHT_BITS:
        held = "int7" if products(device) == "narrow" else asked
        return Precision(held, quickest), _eight_bits(device, asked, held)
    return Precision(asked, quickest if asked in QUANTISED else asked), "asked for"


def _eight_bits(device: str, asked: str, held: str) -> str:
    """How products in eight bits are made on `device`; builds their kernels, where they matter."""
    if products(device) is None:
        return "asked for; slow, without products in eight bits here"
    why = (
        "asked for" if asked == held else f"{asked} asked for; with AVX2 alone weights have 7 bits"
    )
    return f"{why}, rows by {quantiser(held, device)}"


def quantiser(precision: str | None, device: str = "cpu") -> str | None:
    """What makes the codes of a base in this precision here; None where it has none.

    Of nf4 "peftlab" or "bitsandbytes VERSION", of int8 and int7 "rows.cpp" or "torch".
    """
    if precision in IN_EIGHT_BITS:
        return "rows.cpp" if device == "cpu" and rows.is_built() else "torch"
    return nf4.quantiser() if precision == "nf4" else None


def _quickest(device: str) -> Choice:
    """Which of bf16 and fp32 `device` multiplies faster."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        quick = (major, minor) >= (8, 0)
        return Choice("bf16" if quick else "fp32", f"CUDA capability {major}.{minor}")
    if device == "cpu":
        return _for_processor(processor_words())
    return Choice("fp32", f"bf16 is not tried on {device}")


def _for_processor(words: set[str]) -> Choice:
    if "amx_bf16" in words:
        return Choice("bf16", "the processor has AMX")
    if not words:
        return Choice("fp32", "only Linux tells whether the processor multiplies bf16 faster")
    if "avx512_bf16" not in words:
        return Choice("fp32", "the processor has neither AMX nor AVX512-BF16")
    # a Xeon's products at 352 rows: 84 GFLOP/s a core in bf16, 157 in fp32 (LOG, 2026-11-26)
    if "GenuineIntel" in words:
        return Choice("fp32", "without AMX an Intel processor multiplies bf16 half as fast")
    return Choice("bf16", "the processor has AVX512-BF16")


def quantise_linears(
    model: nn.Module, names: Iterable[str], compute: str, held: str = "nf4"
) -> None:
    """Quantise the linear layers of `model` named in `names`; all else is held in `compute`.

    Buffers stay as they are: rotary frequencies are fp32 in every precision.
    """
    dtype = DTYPES[compute]
    for name in names:
        layer: Any = model.get_submodule(name)
        quantised = QUANTISED[held](weight_of(layer), layer.bias, dtype, type(layer))
        model.set_submodule(name, quantised.train(layer.training))
    for parameter in model.parameters():
        # a copy also in fp32: what still lies in the mapped file keeps all of its pages
        parameter.data = parameter.data.to(dtype, copy=True)


def weight_precision(module: nn.Module) -> str:
    """How `module` holds its weights: as its quantised layers do, else the lowest of all."""
    for layer in module.modules():
        if isinstance(layer, QuantisedLinear):
            return layer.held
    lowest = min((p.dtype for p in module.parameters()), key=lambda dtype: dtype.itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(lowest, str(lowest).removeprefix("torch."))


def keep_in_fp32(module: nn.Module, inside: bool = False) -> None:
    """Keep `module` in fp32, and let it compute in fp32: on a base in bf16, and under autocast.

    A layer that is kept so already gets no second pair of hooks.

    Args:
        module: of any kind.
        inside: whether the base goes on behind it: then its outputs are cast to what its inputs
            were in.
    """
    module.float()
    back = _Back()
    if inside:  # before the others, which cast the inputs
        module.register_forward_pre_hook(back.enter, with_kwargs=True)
    for layer in module.modules():
        known = any(isinstance(_owner(hook), _Exact) for hook in hooks_of(layer))
        if not known and any(True for _ in layer.parameters(recurse=False)):
            exact = _Exact()
            layer.register_forward_pre_hook(exact.enter)
            layer.register_forward_hook(exact.leave, always_call=True)
    if inside:
        module.register_forward_hook(back.leave)


def is_bare(module: nn.Module) -> bool:
    """Whether calling `module` is its class's `forward` and no more: no hook, nothing put over."""
    return not ("forward" in vars(module) or list(hooks_of(module)))


def outputs_of(norm: nn.Module, given: torch.dtype) -> torch.dtype | None:
    """The precision in which `norm` gives what it computes of inputs in `given`.

    None where somebody has hooks on it, other than `keep_in_fp32`, or another `forward`.
    """
    owners = [_owner(hook) for hook in hooks_of(norm)]
    known = all(isinstance(owner, _Exact | _Back) for owner in owners)
    if "forward" in vars(norm) or not known:
        return None
    is_cast_back = any(isinstance(owner, _Back) for owner in owners)
    return norm.get_parameter("weight").dtype if owners and not is_cast_back else given


def _owner(hook: Any) -> object:
    return getattr(hook, "__self__", None)


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Its own, and those that somebody has put on all of torch's modules."""
    everywhere = vars(torch.nn.modules.module)
    for name in ("forward_pre", "forward", "backward_pre", "backward"):
        yield from everywhere[f"_global_{name}_hooks"].values()
    yield from module._forward_pre_hooks.values()
    yield from module._forward_hooks.values()
    yield from module._backward_pre_hooks.values()
    yield from module._backward_hooks.values()


class _Back:
    """The hooks around a module: its outputs in its inputs' precision, which may be cast later."""

    def __init__(self) -> None:
        self.given: torch.dtype | None = None

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.given = next(iter([*inputs, *named.values()])).dtype

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
        return output.to(self.given)


class _Exact:
    """The hooks around a layer: its inputs in its own precision, autocast off and back on."""

    def __init__(self) -> None:
        self.autocast: list[tuple[str, bool]] = []  # a stack: a layer may be called inside itself

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        weight = next(layer.parameters(recurse=False))
        kind = weight.device.type
        self.autocast.append((kind, torch.is_autocast_enabled(kind)))
        torch.set_autocast_enabled(kind, False)
        return tuple(
            x.to(weight.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs
        )

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        torch.set_autocast_enabled(*self.autocast.pop())
