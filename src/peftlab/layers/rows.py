"""Rows around a product in eight bits, each step in one pass where there is a compiler.

    rows_to_codes   x ∘ columns, row by row, to round(r / s_r) with s_r = max|r| / 127
    scale_rows      y ∘ s_r + bias
    sums_to_rows    int32 sums to s_r ∘ sums

Torch's own operations take five passes and more for each, a quarter of a step (LOG.md). rows.cpp
computes the same, bit for bit, where it can be built (native.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftlab.layers import native

LARGEST, SMALLEST = 127, 1e-30  # magnitude of a code; of a row, so that none is divided by zero
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.int32)
KERNEL = native.Kernel(
    __file__,
    without="torch quantises rows for int8",
    # for the same bits as torch: no fused multiply-add, which rounds once where torch rounds twice
    flags=("-ffp-contract=off",),
)


def rows_to_codes(
    x: Tensor,
    columns: Tensor | None = None,
    is_signed: bool = True,
    largest: int = LARGEST,
) -> tuple[Tensor, Tensor]:
    """X (n, width) -> codes (n, width) and scales (n, 1) in fp32.

    Args:
        x: fp32 or bf16.
        columns: (width,) in fp32, a factor of each column.
        is_signed: int8; else uint8 with 128 for 0, as oneDNN wants it.
        largest: magnitude of a code.
    """
    x = x.contiguous()  # so are its codes, as oneDNN reads them
    if largest == LARGEST and _is_native(x):
        codes, scales = torch.ops.peftlab.rows_to_codes(x, columns, is_signed)
        return codes, scales
    exact = x.float() if columns is None else x.float() * columns
    scales = exact.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST) / largest
    codes = (exact * (1 / scales)).round_()
    return (codes.to(torch.int8) if is_signed else codes.add_(128).to(torch.uint8)), scales


def scale_rows(y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Y (n, width) ∘ scales (n, 1) + bias (width,), computed in fp32; `y` may be written over."""
    if _is_native(y):
        torch.ops.peftlab.scale_rows_(y, scales, bias)
        return y
    exact = y.float() * scales
    return (exact if bias is None else exact.add_(bias.float())).to(y.dtype)


def sums_to_rows(sums: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (n, width) ∘ scales (n, 1), in `dtype`."""
    if _is_native(sums) and sums.dtype == torch.int32 and dtype in NATIVE_DTYPES:
        rows: Tensor = torch.ops.peftlab.sums_to_rows(sums, scales, dtype)
        return rows
    return (sums * scales).to(dtype)


def _is_native(x: Tensor) -> bool:
    is_plain = type(x) is Tensor and x.device.type == "cpu"
    return is_plain and x.dtype in NATIVE_DTYPES and KERNEL.is_built()
