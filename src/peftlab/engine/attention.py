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
from torch.autograd.function import once_differentiable

from peftlab.engine import sentences
from peftlab.engine.bits import Bits, Counter
from peftlab.engine.packing import ASKED, Laid
from peftlab.engine.sentences import How
from peftlab.models import quiet

NAME = "peftlab"
# attributes of a module of attention: what its dropout draws from, and how the batch lies
BITS, LAID = "peftlab_bits", "peftlab_laid"
WIDE = 32  # keys, a vector of bf16
# of a score, below the highest: exp(-60) is lost in any sum, even fp32's, and far enough from the
# numbers that a processor multiplies a hundred times slower, where padding's exp would end
FAINTEST = -60.0


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
        asked: int,
    ) -> Tensor:
        whole, query = query.shape, query[:, :, :asked]
        batch, heads, length, width = query.shape
        k, v = _flat(key), _flat(value)
        q = torch.mul(query, scaling, out=k.new_empty(query.shape)).flatten(0, 1)
        scores = _product(q, k.transpose(1, 2))
        if bias is not None:
            scores.view(batch, heads, length, -1).add_(bias[:, :, :asked])
        shares = _softmax(scores)
        dropped = shares if drop is None else shares * drop.view_as(shares)
        y = _product(dropped, v)
        ctx.save_for_backward(q, k, v, shares, drop)
        ctx.scaling, ctx.shape, ctx.asked = scaling, whole, asked
        return y.view(batch, heads, length, width).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares, drop = ctx.saved_tensors
        batch, heads, length, width = ctx.shape
        g = _flat(gradients[0].transpose(1, 2))
        g_shares = _product(g, v.transpose(1, 2))
        dropped = shares
        if drop is not None:
            mask = drop.view_as(shares)
            g_shares.mul_(mask)
            dropped = shares * mask
        g_scores = _softmax_gradient(g_shares, shares)
        all_three = g.new_empty(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        g_query, g_key, g_value = all_three
        g_query[:, :, ctx.asked :] = 0
        g_asked = _product(g_scores, k).view(batch, heads, -1, width)
        torch.mul(g_asked, ctx.scaling, out=g_query[:, :, : ctx.asked])
        g_key.copy_(_product(g_scores.transpose(1, 2), q).view(ctx.shape))
        g_value.copy_(_product(dropped.transpose(1, 2), g).view(ctx.shape))
        return g_query, g_key, g_value, None, None, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(n, rows, inner) by (n, inner, columns).

    In bf16 oneDNN makes a kernel for every length, of a third of a MiB (LOG.md). The last layer's
    one query would need two of its own, so products of one row, or of one inside, do without.
    """
    if a.shape[2] == 1:
        return a * b
    if a.shape[1] == 1 and a.dtype == torch.bfloat16:
        return torch.bmm(a.float(), b.float()).to(a.dtype)
    return torch.bmm(a, b)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension. Torch's own takes three times as long on less than a vector of bf16.

    Here as there it is computed in fp32 and rounded once.
    """
    if scores.shape[-1] >= WIDE or scores.dtype != torch.bfloat16:
        return scores.softmax(-1)
    powers: Tensor = scores.float()
    powers.sub_(powers.amax(-1, keepdim=True)).clamp_(min=FAINTEST).exp_()
    return powers.div_(powers.sum(-1, keepdim=True)).to(scores.dtype)


def _softmax_gradient(g: Tensor, shares: Tensor) -> Tensor:
    """Of the scores, from that of their softmax: shares ∘ (g - Σ g ∘ shares), in fp32."""
    if shares.shape[-1] >= WIDE or shares.dtype != torch.bfloat16:
        found: Tensor = torch.ops.aten._softmax_backward_data(g, shares, -1, shares.dtype)
        return found
    exact = shares.float()
    moved = exact * g
    return moved.sub_(exact.mul_(moved.sum(-1, keepdim=True))).to(shares.dtype)


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, length, width) -> (batch · heads, length, width)."""
    return x.reshape(-1, *x.shape[2:])


def lets_choose(model: Any) -> bool:
    """Whether transformers lets one choose how `model` attends, and it looks both ways."""
    chosen = model.config._attn_implementation  # transformers has no other way to ask
    return chosen == "sdpa" and not any(module.is_causal for module in _attending(model))


def _attending(model: Any) -> list[Any]:
    """Those modules that transformers' functions of attention serve; they say if they see ahead."""
    return [module for module in model.modules() if hasattr(module, "is_causal")]


@contextmanager
def plain_attention(model: Any, bits: Bits, laid: Laid) -> Iterator[None]:
    """Let `model` attend by plain products, or sentence by sentence, where it lets one choose.

    Its modules of attention carry meanwhile what their dropout draws from, and how a batch lies.
    """
    if not lets_choose(model):
        yield
        return
    chosen, modules = model.config._attn_implementation, _attending(model)
    _register()
    try:
        with quiet():  # of a model that does not let it be chosen
            model.set_attn_implementation(NAME)
        for module in modules:
            setattr(module, BITS, bits)
            setattr(module, LAID, laid)
        yield
    finally:
        with quiet():
            model.set_attn_implementation(chosen)
        for module in modules:
            for name in (BITS, LAID):
                vars(module).pop(name, None)


@functools.cache
def _register() -> None:
    """Make the attention known to transformers, once for all models."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _additive_mask)


def _additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """As sdpa's mask, None where no token is padding; else 0 or the lowest number.

    The lowest in bf16 too, which scores are in under autocast: -inf for all of a row's keys, as
    padding beyond ModernBERT's window has them, is NaN.
    """
    from transformers.masking_utils import sdpa_mask

    keep = sdpa_mask(*args, **kwargs)
    if keep is None:
        return None
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, lowest)


def _by_sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*args, **kwargs)


def attend(
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
    bits: Bits | None = getattr(module, BITS, None)
    mask = attention_mask
    is_added = mask is None or (mask.is_floating_point() and not mask.requires_grad)
    if bits is None or not is_added or query.shape[1] != key.shape[1]:
        return _by_sdpa(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # rotated in fp32, some models' stay there under autocast
    query, key = query.to(value.dtype), key.to(value.dtype)
    laid: Laid = getattr(module, LAID)
    if laid.packing is not None:
        return attend_packed(module, query, key, value, None, dropout, scaling), None
    length = query.shape[2]
    asked = min(length, getattr(module, ASKED, length)) if laid.only_logits else length
    drop = None
    if dropout > 0:
        drop = bits.mask(torch.Size((*query.shape[:2], asked, key.shape[2])), dropout, query.dtype)
    y: Tensor = _Attention.apply(query, key, value, attention_mask, scaling, drop, asked)  # type: ignore[no-untyped-call]
    if asked < length:  # the model expects all of them; only those asked for are read
        y = y.expand(-1, length, *y.shape[2:])
    return y, None


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor | None,
    dropout: float,
    scaling: float,
) -> Tensor:
    """(1, heads, rows, width) each, of a packed batch -> (1, rows, heads, width).

    `positions` (1, heads, length, length) are added to the scores.
    """
    bits: Bits = getattr(module, BITS)
    packing = getattr(module, LAID).packing
    asked = min(packing.length, getattr(module, ASKED, packing.length))
    counter = bits.counter() if dropout else Counter(0, 0)  # else nothing is drawn
    how = How(packing, query.shape[1], scaling, asked, dropout, counter)
    exact = None if positions is None else positions[0].float()
    return sentences.attention(query, key, value, exact, how)
