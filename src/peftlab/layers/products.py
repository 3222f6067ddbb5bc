"""Products with a frozen weight in bf16 or in eight bits, in C++ on a processor with AMX.

    product          x Wᵀ + c                       product_of_codes     s_q ∘ (q Qᵀ) ∘ s + c
    gradient         g W                            gradient_of_codes    s_q ∘ (q Q)

There oneDNN makes a kernel for each number of rows, of which an epoch of packed batches has dozens,
and wants codes in eight bits packed beside those that are held. products.cpp has one kernel for all
and packs nothing for longer than a product takes (LOG.md compares them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers import native

KERNEL = native.Kernel(__file__, without="oneDNN multiplies by frozen weights", needs="amx_bf16")
# of which both sides of a weight must be: a tile's row of it, and two tiles side by side
MULTIPLES = {torch.bfloat16: 32, torch.int8: 64}
LONGEST = 2**17  # numbers in a sum; of more products of codes int32 may be too small
# Of a weight's columns each thread takes its share, and reads all of x. Measured with two.
MOST_THREADS = 4


def serves(weights: Sequence[Tensor]) -> bool:
    """Whether products.cpp multiplies by these (outᵢ, in), one below the other; builds it if so."""
    first = weights[0]
    return (
        first.device.type == "cpu"
        and (len(weights) > 1 or first.is_contiguous())  # several are copied into one
        and fits(first.dtype, sum(len(weight) for weight in weights), first.shape[1])
    )


def fits(dtype: torch.dtype, outside: int, inside: int) -> bool:
    """Whether products.cpp multiplies by weights (outside, inside) on a CPU; builds it if so.

    It does on a processor with AMX and where there is a compiler, for at most `MOST_THREADS`.
    """
    multiple = MULTIPLES.get(dtype)
    return (
        multiple is not None
        and not (outside % multiple or inside % multiple)
        and max(outside, inside) <= LONGEST
        and torch.get_num_threads() <= MOST_THREADS
        and KERNEL.is_built()
        and torch.ops.peftlab.has_tiles()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(*batch, in) -> (*batch, out): x Wᵀ + bias, all in bf16."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y: Tensor = torch.ops.peftlab.product(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def gradient(g: Tensor, weight: Tensor) -> Tensor:
    """(*batch, out) -> (*batch, in): g W, all in bf16."""
    rows = g.reshape(-1, g.shape[-1]).contiguous()
    g_x: Tensor = torch.ops.peftlab.product_gradient(rows, weight)
    return g_x.view(*g.shape[:-1], weight.shape[1])


def product_of_codes(
    codes: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None
) -> Tensor:
    """Codes (n, in) ∘ scales (n, 1) by codes (out, in) ∘ scales (out,), + bias -> (n, out) in bf16.

    Codes are int8, scales fp32, and the bias is in bf16.
    """
    rows = codes.contiguous()
    y: Tensor = torch.ops.peftlab.codes_product(rows, scales, weight, weight_scales, bias)
    return y


def gradient_of_codes(codes: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
    """Codes (n, out) ∘ scales (n, 1) by codes (out, in) -> (n, in) in bf16."""
    g_x: Tensor = torch.ops.peftlab.codes_gradient(codes.contiguous(), scales, weight)
    return g_x


@KERNEL.shapes_of("product")
def _output_shape(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(len(x), weight.shape[0])


@KERNEL.shapes_of("product_gradient")
def _gradient_shape(g: Tensor, weight: Tensor) -> Tensor:
    return g.new_empty(len(g), weight.shape[1])
