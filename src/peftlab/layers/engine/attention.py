"""Attention as plain products: faster on a CPU, at the lengths of sentences, than its flash kernel.

    P = softmax(Q Kᵀ · scaling + mask),  Y = (P ∘ dropout) V

Registered with transformers as the attention `peftlab`; causal attention is left to `sdpa`. The
three gradients are written side by side, as the joined product of query, key and value wants them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.layers.engine.masks import Bits

NAME = "peftlab"


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scaling: float,
        drop: Tensor | None,
    ) -> Tensor:
        batch, heads, length, width = query.shape
        q, k, v = (_flat(x) for x in (query, key, value))
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
        if bias is not None:
            scores.view(batch, heads, length, -1).add_(bias)
        shares = scores.softmax(-1)
        dropped = shares if drop is None else shares * drop.view_as(shares)
        y = torch.bmm(dropped, v)
        ctx.save_for_backward(q, k, v, shares, drop)
        ctx.scaling, ctx.shape = scaling, query.shape
        return y.view(batch, heads, length, width).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares, drop = ctx.saved_tensors
        batch, heads, length, width = ctx.shape
        g = _flat(gradients[0].transpose(1, 2))
        g_shares = torch.bmm(g, v.transpose(1, 2))
        dropped = shares
        if drop is not None:
            mask = drop.view_as(shares)
            g_shares.mul_(mask)
            dropped = shares * mask
        g_scores = torch.ops.aten._softmax_backward_data(g_shares, shares, -1, shares.dtype)
        g_scores.mul_(ctx.scaling)
        all_three = g.new_empty(batch, length, 3, heads, width)
        found: list[Tensor] = []
        for index, grad in enumerate(
            (
                torch.bmm(g_scores, k),
                torch.bmm(g_scores.transpose(1, 2), q),
                torch.bmm(dropped.transpose(1, 2), g),
            )
        ):
            place = all_three[:, :, index].transpose(1, 2)
            place.copy_(grad.view(batch, heads, length, width))
            found.append(place)
        return (*found, None, None, None)


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, length, width) -> (batch · heads, length, width)."""
    return x.reshape(-1, *x.shape[2:])


@contextmanager
def plain_attention(model: Any, bits: Bits) -> Iterator[None]:
    """Let `model` attend by plain products, where it lets its attention be chosen at all."""
    from transformers import AttentionInterface, AttentionMaskInterface

    chosen: str = model.config._attn_implementation
    if chosen != "sdpa" or not _is_bidirectional(model):
        yield
        return
    name = f"{NAME}-{id(bits)}"  # a model's dropout draws from its own stream
    AttentionInterface.register(name, functools.partial(_attend, bits))
    AttentionMaskInterface.register(name, _additive_mask)
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = chosen
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(name)


def _is_bidirectional(model: nn.Module) -> bool:
    return not any(getattr(module, "is_causal", False) for module in model.modules())


def _additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """As sdpa's mask, None where no token is padding; else 0 or the lowest number."""
    from transformers.masking_utils import sdpa_mask

    keep = sdpa_mask(*args, **kwargs)
    if keep is None:
        return None
    lowest = torch.finfo(dtype).min
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, lowest)


def _by_sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*args, **kwargs)


def _attend(
    bits: Bits,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (batch, heads, length, width) -> (batch, length, ...).

    What `_Attention` knows no gradient of, or no way to compute, is left to sdpa.
    """
    learned = attention_mask is not None and attention_mask.requires_grad
    if learned or query.shape[1] != key.shape[1]:
        return _by_sdpa(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    drop = None
    if dropout > 0:
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        drop = bits.mask(shape, dropout, query.dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    y: Tensor = _Attention.apply(query, key, value, attention_mask, scaling, drop)  # type: ignore[no-untyped-call]
    return y, None
