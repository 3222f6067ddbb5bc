"""Products with a frozen weight in bf16, in C++ on a processor with AMX.

    product    x Wᵀ + c
    gradient   g W

There oneDNN makes a kernel for each number of rows, of which an epoch of packed batches has dozens.
products.cpp has one for all (LOG.md compares them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers import native

KERNEL = native.Kernel(__file__, without="oneDNN multiplies by frozen weights", needs="amx_bf16")
MULTIPLE = 32  # of which both sides of a weight must be, for two tiles side by side
# Of a weight's columns each thread takes its share, and reads all of x. Measured with two.
MOST_THREADS = 4


def serves(weights: Sequence[Tensor]) -> bool:
    """Whether products.cpp multiplies by these (outᵢ, in), one below the other; builds it if so."""
    first = weights[0]
    outside = sum(len(weight) for weight in weights)
    return (
        first.dtype == torch.bfloat16
        and first.device.type == "cpu"
        and (len(weights) > 1 or first.is_contiguous())  # several are copied into one
        and not (outside % MULTIPLE or first.shape[1] % MULTIPLE)
        and torch.get_num_threads() <= MOST_THREADS
        and KERNEL.is_built()
        and torch.ops.peftlab.has_tiles()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(*batch, in) -> (*batch, out): x Wᵀ + bias."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y: Tensor = torch.ops.peftlab.product(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def gradient(g: Tensor, weight: Tensor) -> Tensor:
    """(*batch, out) -> (*batch, in): g W."""
    rows = g.reshape(-1, g.shape[-1]).contiguous()
    g_x: Tensor = torch.ops.peftlab.product_gradient(rows, weight)
    return g_x.view(*g.shape[:-1], weight.shape[1])


@KERNEL.shapes_of("product")
def _output_shape(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(len(x), weight.shape[0])


@KERNEL.shapes_of("product_gradient")
def _gradient_shape(g: Tensor, weight: Tensor) -> Tensor:
    return g.new_empty(len(g), weight.shape[1])
