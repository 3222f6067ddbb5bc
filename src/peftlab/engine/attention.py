"""Attention as plain products: faster on a CPU, at the lengths of sentences, than its flash kernel.

    P = softmax(Q Kᵀ · scaling + mask),  Y = (P ∘ dropout) V

Registered with transformers as the attention `peftlab`; causal attention is left to `sdpa`. The
three gradients are written side by side, as the joined product of query, key and value reads them.
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
from peftlab.engine.packing import N_QUERIES, Layout
from peftlab.engine.sentences import AttentionOptions
from peftlab.models import quiet

NAME = "peftlab"
# attributes of attention modules: the source of dropout's bits, and the layout of the batch
BITS, LAYOUT = "peftlab_bits", "peftlab_layout"
VECTOR_WIDTH = 32  # keys in a vector of bf16
# Relative to the highest score. exp(-60) is lost in any sum, even in fp32, and yet far from the
# denormals, which padding's exp would be and a processor multiplies a hundred times slower.
LOWEST_SCORE = -60.0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scaling: float,
        dropout_mask: Tensor | None,
        n_queries: int,
    ) -> Tensor:
        full_shape, query = query.shape, query[:, :, :n_queries]
        batch, heads, length, width = query.shape
        k, v = _flat(key), _flat(value)
        q = torch.mul(query, scaling, out=k.new_empty(query.shape)).flatten(0, 1)
        scores = _product(q, k.transpose(1, 2))
        if bias is not None:
            scores.view(batch, heads, length, -1).add_(bias[:, :, :n_queries])
        probs = _softmax(scores)
        dropped = probs if dropout_mask is None else probs * dropout_mask.view_as(probs)
        y = _product(dropped, v)
        ctx.save_for_backward(q, k, v, probs, dropout_mask)
        ctx.scaling, ctx.shape, ctx.n_queries = scaling, full_shape, n_queries
        return y.view(batch, heads, length, width).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probs, dropout_mask = ctx.saved_tensors
        batch, heads, length, width = ctx.shape
        g = _flat(gradients[0].transpose(1, 2))
        g_probs = _product(g, v.transpose(1, 2))
        dropped = probs
        if dropout_mask is not None:
            mask = dropout_mask.view_as(probs)
            g_probs.mul_(mask)
            dropped = probs * mask
        g_scores = _softmax_gradient(g_probs, probs)
        g_qkv = g.new_empty(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4)
        g_query, g_key, g_value = g_qkv
        g_query[:, :, ctx.n_queries :] = 0
        g_scaled_query = _product(g_scores, k).view(batch, heads, -1, width)
        torch.mul(g_scaled_query, ctx.scaling, out=g_query[:, :, : ctx.n_queries])
        g_key.copy_(_product(g_scores.transpose(1, 2), q).view(ctx.shape))
        g_value.copy_(_product(dropped.transpose(1, 2), g).view(ctx.shape))
        return g_query, g_key, g_value, None, None, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(n, rows, inner) by (n, inner, columns).

    In bf16 oneDNN makes a kernel for every length, of a third of a MiB (LOG.md). The last layer's
    single query would need two more, so products with one row or an inner size of 1 avoid oneDNN.
    """
    if a.shape[2] == 1:
        return a * b
    if a.shape[1] == 1 and a.dtype == torch.bfloat16:
        return torch.bmm(a.float(), b.float()).to(a.dtype)
    return torch.bmm(a, b)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension.

    On rows shorter than a vector of bf16 torch's own takes three times as long. Both compute in
    fp32 and round once.
    """
    if scores.shape[-1] >= VECTOR_WIDTH or scores.dtype != torch.bfloat16:
        return scores.softmax(-1)
    exps: Tensor = scores.float()
    exps.sub_(exps.amax(-1, keepdim=True)).clamp_(min=LOWEST_SCORE).exp_()
    return exps.div_(exps.sum(-1, keepdim=True)).to(scores.dtype)


def _softmax_gradient(g: Tensor, probs: Tensor) -> Tensor:
    """The scores' gradient from that of their softmax: probs ∘ (g - Σ g ∘ probs), in fp32."""
    if probs.shape[-1] >= VECTOR_WIDTH or probs.dtype != torch.bfloat16:
        g_scores: Tensor = torch.ops.aten._softmax_backward_data(g, probs, -1, probs.dtype)
        return g_scores
    probs_fp32 = probs.float()
    weighted = probs_fp32 * g
    return weighted.sub_(probs_fp32.mul_(weighted.sum(-1, keepdim=True))).to(probs.dtype)


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, length, width) -> (batch · heads, length, width)."""
    return x.reshape(-1, *x.shape[2:])


def can_choose_attention(model: Any) -> bool:
    """Whether transformers lets one choose the attention of `model`, and it is bidirectional."""
    is_causal = any(module.is_causal for module in _attention_modules(model))
    return model.config._attn_implementation == "sdpa" and not is_causal  # it has no public name


def _attention_modules(model: Any) -> list[Any]:
    """The modules that call transformers' attention functions: those with an `is_causal`."""
    return [module for module in model.modules() if hasattr(module, "is_causal")]


@contextmanager
def use_plain_attention(model: Any, bits: Bits, layout: Layout) -> Iterator[None]:
    """Let `model` attend by plain products or sentence by sentence, if its attention can be chosen.

    Inside the context its attention modules hold `bits` and `layout` as attributes.
    """
    if not can_choose_attention(model):
        yield
        return
    implementation, modules = model.config._attn_implementation, _attention_modules(model)
    _register()
    try:
        with quiet():  # transformers warns of models without a choice
            model.set_attn_implementation(NAME)
        for module in modules:
            setattr(module, BITS, bits)
            setattr(module, LAYOUT, layout)
        yield
    finally:
        with quiet():
            model.set_attn_implementation(implementation)
        for module in modules:
            for name in (BITS, LAYOUT):
                vars(module).pop(name, None)


@functools.cache
def _register() -> None:
    """Register the attention with transformers, once for all models."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _additive_mask)


def _additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """The mask of sdpa as 0 and the lowest number, or None if no token is padding.

    The lowest number is finite in bf16, too, which scores have under autocast: the softmax of a row
    that is -inf for all keys, as of padding beyond ModernBERT's window, is NaN.
    """
    from transformers.masking_utils import sdpa_mask

    keep = sdpa_mask(*args, **kwargs)
    if keep is None:
        return None
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    return torch.zeros(keep.shape, dtype=dtype).masked_fill_(~keep, lowest)


def _sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
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

    Cases that `_Attention` can't compute or differentiate are left to sdpa.
    """
    bits: Bits | None = getattr(module, BITS, None)
    mask = attention_mask
    is_additive = mask is None or (mask.is_floating_point() and not mask.requires_grad)
    if bits is None or not is_additive or not query.shape == key.shape == value.shape:
        return _sdpa(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # some models rotate query and key in fp32 and leave them so under autocast
    query, key = query.to(value.dtype), key.to(value.dtype)
    layout: Layout = getattr(module, LAYOUT)
    if layout.packing is not None:
        return attend_packed(module, query, key, value, None, dropout, scaling), None
    length = query.shape[2]
    n_queries = min(length, getattr(module, N_QUERIES, length)) if layout.only_logits else length
    dropout_mask = None
    if dropout > 0:
        shape = torch.Size((*query.shape[:2], n_queries, key.shape[2]))
        dropout_mask = bits.mask(shape, dropout, query.dtype)
    y: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, attention_mask, scaling, dropout_mask, n_queries
    )
    if n_queries < length:  # the model expects all; only the first are read
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
    packing = getattr(module, LAYOUT).packing
    n_queries = getattr(module, N_QUERIES, 0)
    counter = bits.counter() if dropout else Counter(0, 0)  # unused without dropout
    options = AttentionOptions(packing, query.shape[1], scaling, n_queries, dropout, counter)
    positions = None if positions is None else positions[0].float()
    return sentences.attention(query, key, value, positions, options)
