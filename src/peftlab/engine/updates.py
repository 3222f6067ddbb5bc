"""Low-rank updates of layers that are one product: added to its output where they lie side by side.

    y = x [W₁; W₂; …]ᵀ + c,    yᵢ += x Aᵢᵀ (sᵢ Bᵢᵀ)        i: the layers that have an update

All the A are one matrix, and all the sᵢ Bᵢᵀ blocks of another, zero elsewhere, so that the updates
are two products forward and four backward however many they are, and no sum is a pass of its own;
a layer by itself has all of this to pay (`peftlab.layers.lora`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.engine.weight import Frozen, side_by_side
from peftlab.layers.lora import Pair


def updated(
    x: Tensor,
    weight: Frozen,
    bias: Tensor | None,
    sizes: Sequence[int],
    pairs: Sequence[Pair | None],
) -> tuple[Tensor, ...]:
    """The outputs (*batch, nᵢ) of all layers, those with a pair updated by it."""
    places = zip(_slices(sizes), pairs, strict=True)
    columns = [column for column, pair in places if pair is not None]
    scalings = [pair.scaling for pair in pairs if pair is not None]
    tensors = [tensor for pair in pairs if pair is not None for tensor in pair[:2]]
    found: tuple[Tensor, ...] = _Updated.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, sizes, columns, scalings, *tensors
    )
    return found


class _Updated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Frozen,
        bias: Tensor | None,
        sizes: Sequence[int],
        columns: Sequence[slice],
        scalings: Sequence[float],
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        y = weight.product(x, bias)
        rows = x.reshape(-1, x.shape[-1])
        ranks = [lora_A.shape[0] for lora_A in pairs[::2]]
        a = torch.cat(pairs[::2]).to(x.dtype)  # (sum of ranks, in)
        bt = x.new_zeros(len(a), y.shape[-1])
        blocks = list(zip(_slices(ranks), columns, strict=True))
        for (own, column), scaling, lora_B in zip(blocks, scalings, pairs[1::2], strict=True):
            torch.mul(lora_B.T, scaling, out=bt[own, column])
        inner = rows @ a.T  # (n, sum of ranks)
        y.view(-1, y.shape[-1]).addmm_(inner, bt)
        ctx.weight, ctx.blocks, ctx.scalings = weight, blocks, scalings
        ctx.ranks, ctx.dtype = ranks, pairs[0].dtype
        # what no A learns from is not kept: LoRA-FA's are constants
        kept = rows if any(ctx.needs_input_grad[6::2]) else None
        ctx.save_for_backward(kept, inner, a, bt)
        parts: tuple[Tensor, ...] = y.split(sizes, dim=-1)
        return parts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, a, bt = ctx.saved_tensors
        g = side_by_side(gradients)
        flat = g.reshape(-1, g.shape[-1])
        g_inner = flat @ bt.T
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = ctx.weight.gradient(g)
            g_x.view(-1, g_x.shape[-1]).addmm_(g_inner, a)
        g_pairs: list[Tensor | None] = [None] * (2 * len(ctx.ranks))
        if rows is not None:
            g_pairs[::2] = (g_inner.T @ rows).to(ctx.dtype).split(ctx.ranks)
        g_bt = (inner.T @ flat).to(ctx.dtype)
        g_pairs[1::2] = [
            g_bt[block].T.mul_(scaling)
            for block, scaling in zip(ctx.blocks, ctx.scalings, strict=True)
        ]
        return (g_x, None, None, None, None, None, *g_pairs)


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes lie, one behind the other."""
    return [
        slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)
    ]
