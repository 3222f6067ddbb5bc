"""Low-rank updates of layers that are one product: added to its output where they lie side by side.

    y = x [W₁; W₂; …]ᵀ + c,    yᵢ += x Aᵢᵀ (sᵢ Bᵢᵀ)        i: the layers that have an update

x is multiplied once by all the A, no sum is a pass of its own, and backward all that reaches x does
so through one product; a layer by itself has all of this to pay (`peftlab.layers.lora`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.layers.engine.beside import side_by_side

if TYPE_CHECKING:
    from peftlab.layers.engine.frozen import Frozen
    from peftlab.layers.lora import Pair


def updated(
    x: Tensor,
    weight: Frozen,
    bias: Tensor | None,
    sizes: Sequence[int],
    pairs: Sequence[Pair | None],
) -> tuple[Tensor, ...]:
    """The outputs (*batch, nᵢ) of all layers, those with a pair updated by it."""
    ends = itertools.accumulate(sizes)
    places = [
        slice(end - size, end)
        for size, end, pair in zip(sizes, ends, pairs, strict=True)
        if pair is not None
    ]
    scalings = [pair.scaling for pair in pairs if pair is not None]
    tensors = [tensor for pair in pairs if pair is not None for tensor in pair[:2]]
    found: tuple[Tensor, ...] = _Updated.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, sizes, places, scalings, *tensors
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
        places: Sequence[slice],
        scalings: Sequence[float],
        *pairs: Tensor,
    ) -> tuple[Tensor, ...]:
        y = weight.product(x, bias)
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        a = torch.cat(pairs[::2]).to(x.dtype)
        ranks = [lora_A.shape[0] for lora_A in pairs[::2]]
        inner = rows @ a.T  # (n, sum of ranks)
        bts = []
        for place, scaling, lora_B, part in zip(
            places, scalings, pairs[1::2], inner.split(ranks, 1), strict=True
        ):
            bts.append(torch.mul(lora_B.T, scaling, out=x.new_empty(lora_B.T.shape)))
            out[:, place].addmm_(part, bts[-1])
        ctx.weight, ctx.places, ctx.scalings = weight, places, scalings
        ctx.ranks, ctx.held = ranks, pairs[0].dtype
        # what no A learns from is not kept: LoRA-FA's are constants
        kept = rows if any(ctx.needs_input_grad[6::2]) else None
        ctx.save_for_backward(kept, inner, a, *bts)
        outputs: tuple[Tensor, ...] = y.split(sizes, dim=-1)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, a, *bts = ctx.saved_tensors
        g = side_by_side(gradients)
        flat = g.view(-1, g.shape[-1])
        parts = [flat[:, place] for place in ctx.places]
        g_inner = torch.cat([part @ bt.T for part, bt in zip(parts, bts, strict=True)], 1)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = ctx.weight.gradient(g)
            g_x.view(-1, g_x.shape[-1]).addmm_(g_inner, a)
        g_pairs: list[Tensor | None] = [None] * (2 * len(parts))
        if rows is not None:
            g_pairs[::2] = (g_inner.T @ rows).to(ctx.held).split(ctx.ranks)
        g_pairs[1::2] = [
            (one.T @ part).T.to(ctx.held).mul_(scaling)
            for one, part, scaling in zip(
                inner.split(ctx.ranks, 1), parts, ctx.scalings, strict=True
            )
        ]
        return (g_x, None, None, None, None, None, *g_pairs)
