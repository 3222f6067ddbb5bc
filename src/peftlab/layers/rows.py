"""Rows around a product in eight bits, each step in one pass where a compiler is found.

    rows_to_codes   x ∘ columns, row by row, to round(r / s_r) with s_r = max|r| / 127
    scale_rows      y ∘ s_r + bias, in place
    sums_to_rows    int32 sums to s_r ∘ sums

Torch's own operations take five passes and more for each, a quarter of a step (LOG.md). rows.cpp
does the same, bit for bit; it is built once by torch's extension loader (7 s on an EPYC) and kept
in the user's cache, by its text, torch's version and the processor. Where that fails a warning says
so, and the operations below do it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from peftlab.cache import cache_folder

SOURCE = Path(__file__).with_name("rows.cpp")
LARGEST, SMALLEST = 127, 1e-30  # of a code's magnitude; of a row's, so that zeros divide by no zero
BUILD_S = 60  # it takes 7; longer than this nobody waits
# the two arithmetics are one: no fused multiply-add, which rounds once where torch rounds twice
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off", "-fopenmp"]
BUILD = """
import sys
from torch.utils.cpp_extension import load
source, folder, *flags = sys.argv[1:]
load("rows", [source], extra_cflags=flags, build_directory=folder, is_python_module=False)
"""


def rows_to_codes(
    x: Tensor, columns: Tensor | None = None, is_signed: bool = True
) -> tuple[Tensor, Tensor]:
    """X (n, width) -> codes (n, width) and scales (n, 1) in fp32.

    Args:
        x: fp32 or bf16, contiguous.
        columns: (width,) in fp32, a factor of each column.
        is_signed: int8; else uint8 with 128 for 0, as oneDNN wants it.
    """
    if _native(x):
        codes, scales = torch.ops.peftlab.rows_to_codes(x.contiguous(), columns, is_signed)
        return codes, scales
    exact = x.float() if columns is None else x.float() * columns
    scales = exact.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST) / LARGEST
    codes = (exact * (1 / scales)).round_()
    return (codes.to(torch.int8) if is_signed else codes.add_(128).to(torch.uint8)), scales


def scale_rows(y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Y (n, width) ∘ scales (n, 1) + bias (width,), computed in fp32; `y` itself, changed."""
    if _native(y):
        torch.ops.peftlab.scale_rows_(y, scales, bias)
        return y
    exact = y.float() * scales
    return y.copy_(exact if bias is None else exact.add_(bias.float()))


def sums_to_rows(sums: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (n, width) in int32 ∘ scales (n, 1), in `dtype`."""
    if _native(sums):
        made: Tensor = torch.ops.peftlab.sums_to_rows(sums, scales, dtype)
        return made
    return (sums * scales).to(dtype)


def _native(x: Tensor) -> bool:
    return type(x) is Tensor and x.device.type == "cpu" and is_built()


@functools.cache
def is_built() -> bool:
    """Whether rows.cpp is there for this process; builds it if need be."""
    library = _folder() / "rows.so"
    try:
        if not library.is_file():
            _build(library.parent)
        torch.ops.load_library(library)
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        reason = (words.strip().splitlines() or ["no reason given"])[-1][:300]
        warnings.warn(
            f"the kernels of int8 can't be built, and products in eight bits are slower without: "
            f"{reason}",
            stacklevel=2,
        )
        return False
    return True


def _folder() -> Path:
    """By all that the library depends on: its text, torch, Python and the processor."""
    known = [SOURCE.read_text(encoding="utf-8"), torch.__version__, sys.version, *FLAGS]
    known += [torch.backends.cpu.get_cpu_capability(), _processor()]
    return cache_folder() / f"rows-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}"


def _processor() -> str:
    """What -march=native means here."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def _build(folder: Path) -> None:
    print("int8: building its kernels, once", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)  # torch locks it against another process
    command = [sys.executable, "-c", BUILD, str(SOURCE), str(folder), *FLAGS]
    # where pip has put ninja, if it has
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        env=os.environ | {"PATH": path},
    )
