"""A block of BERT's by two autograd nodes, where its modules would make ten.

    a = attention of the columns of x [W_q; W_k; W_v]ᵀ + c + updates                  _Attended
    h = LayerNorm(x + drop(a W_oᵀ)),  y = LayerNorm(h + drop(gelu(h W₁ᵀ) W₂ᵀ))        _Finished

Beside its kernels a block is fifteen modules, a dozen views and ten nodes of autograd, which cost
LoRA a tenth of its step on MiniLM and a twentieth on RoBERTa-base's sizes (LOG.md). The kernels
here are the same, in the same order, so the bits are the same, too.

Each is there where it can be: the first where query, key and value have low-rank updates or none,
the second where all that it stands for is frozen and not adapted. What has a hook, another
`forward` or other submodules than on entering the engine is left to its modules. The last block is
cut as packing.py does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.engine import dropout
from peftlab.engine.bits import Bits, Counter
from peftlab.engine.dropout import (
    FastDropout,
    NormOptions,
    add_and_norm,
    add_and_norm_gradients,
)
from peftlab.engine.frozen import (
    FrozenLinear,
    Joined,
    Places,
    multiply,
    multiply_gradients,
    places_and_matrices,
)
from peftlab.engine.gelu import FastGelu
from peftlab.engine.packing import N_QUERIES, Layout
from peftlab.engine.replace_method import replace_method
from peftlab.engine.sentences import AttentionOptions
from peftlab.layers import native
from peftlab.layers.lora import LowRank
from peftlab.layers.precision import Untouched, is_unmodified
from peftlab.models import architecture_of
from peftlab.models.architectures import TABLE

BERT = TABLE["bert"].layers


def fuse_blocks(model: Any, bits: Bits, layout: Layout, undo: ExitStack) -> None:
    """Compute the packed batches of `model` by two nodes a block, where a block is BERT's.

    Its frozen layers, gelu and residual sums are the engine's already.
    """
    if architecture_of(model).layers is not BERT:
        return
    for block in model.base_model.encoder.layer:
        attention = block.attention.self
        first = _first_half(attention)
        if first is not None:
            replace_method(attention, "forward", _attend, undo, first, bits, layout)
        second = _second_half(block, layout)
        if second is not None:
            replace_method(block, "forward", _forward, undo, second, bits, layout)


class End(NamedTuple):
    """A frozen layer, dropout, residual sum and LayerNorm: the end of each half of a block."""

    layer: Joined
    dropout: nn.Dropout
    norm: nn.LayerNorm

    def options(self, bits: Bits) -> NormOptions:
        """Those of the pass that begins; dropout draws from `bits`."""
        p: float = self.dropout.p if self.dropout.training else 0.0
        return NormOptions(self.norm.eps, p, bits.counter() if p else Counter(0, 0))


@dataclass(frozen=True)
class FirstHalf:
    """Query, key and value with their updates, and attention.

    Attributes:
        joined: the product of the three.
        untouched: whether the layers, or adapters on them, still do what they did.
    """

    joined: Joined
    untouched: Untouched

    def __call__(self, x: Tensor, options: AttentionOptions) -> Tensor:
        """(1, rows, hidden) -> (1, rows, hidden), of a packed batch."""
        joined = self.joined
        joined.check_frozen()
        places, matrices = places_and_matrices(joined.sizes, joined.pairs())
        y: Tensor = _Attended.apply(x, joined, places, options, *matrices)  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True)
class SecondHalf:
    """All behind attention.

    Attributes:
        first: what ends the half of attention.
        widening: the layer before gelu.
        last: what ends the block.
        untouched: whether the block's modules, but query, key and value, still do what they did.
    """

    first: End
    widening: Joined
    last: End
    untouched: Untouched

    @property
    def is_frozen(self) -> bool:
        """Whether no norm is trained; a layer that is would be refused."""
        norms = (self.first.norm, self.last.norm)
        return not any(p.requires_grad for norm in norms for p in (norm.weight, norm.bias))

    def __call__(self, a: Tensor, x: Tensor, bits: Bits) -> Tensor:
        """Attention's output and the block's input, (1, rows, hidden) each -> the same."""
        for joined in (self.first.layer, self.widening, self.last.layer):
            joined.check_frozen()
        options = (self.first.options(bits), self.last.options(bits))
        norms = (self.first.norm, self.last.norm)
        affine = [p for norm in norms for p in (norm.weight, norm.bias)]
        y: Tensor = _Finished.apply(a, x, self, options, *affine)  # type: ignore[no-untyped-call]
        return y


def _attend(
    attention: Any,
    original: Any,
    half: FirstHalf,
    bits: Bits,
    layout: Layout,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, rows, hidden) -> the same. `args` are masks, which a packed batch doesn't need."""
    packing = layout.packing
    if packing is None or torch.is_autocast_enabled("cpu") or not half.untouched():
        y: tuple[Tensor, None] = original(hidden_states, *args, **kwargs)
        return y
    p = attention.dropout.p if attention.training else 0.0
    counter = bits.counter() if p else Counter(0, 0)
    n_queries = getattr(attention, N_QUERIES, 0)
    heads, scaling = attention.num_attention_heads, attention.scaling
    options = AttentionOptions(packing, heads, scaling, n_queries, p, counter)
    return half(hidden_states, options), None


def _forward(
    block: Any,
    original: Any,
    half: SecondHalf,
    bits: Bits,
    layout: Layout,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """(1, rows, hidden) -> the same, or (size, 1, hidden) of the last block. `args` as above."""
    if (
        layout.packing is None
        or torch.is_autocast_enabled("cpu")
        or "feed_forward_chunk" in vars(block)  # a caller's own
        or not (half.untouched() and half.is_frozen)
    ):
        y: Tensor = original(hidden_states, *args, **kwargs)
        return y
    a, _ = block.attention.self(hidden_states, *args[:1])  # a caller's own may read the mask
    if hasattr(block.attention.self, N_QUERIES):
        a, hidden_states = map(layout.first_tokens, (a, hidden_states))
    return half(a, hidden_states, bits)


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        joined: Joined,
        places: Places,
        options: AttentionOptions,
        *matrices: Tensor,
    ) -> Tensor:
        y, ctx.updates, added = multiply(x, joined.weight, joined.bias, places, matrices)
        ctx.joined, ctx.options = joined, options
        bounds = options.packing.bounds
        qkv = y[0].split(joined.sizes, dim=-1)
        a, log_sums = torch.ops.peftlab.attention(*qkv, bounds, None, *options.scalars)
        saved_x = x if any(ctx.needs_input_grad[4::2]) else None  # as _UpdatedProduct
        ctx.save_for_backward(saved_x, y, log_sums, *added)
        output: Tensor = a.unsqueeze(0)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, log_sums, *added = ctx.saved_tensors
        joined: Joined = ctx.joined
        options: AttentionOptions = ctx.options
        qkv = y[0].split(joined.sizes, dim=-1)
        g_qkv, _ = torch.ops.peftlab.attention_gradient(
            gradients[0][0].contiguous(),
            *(*qkv, options.packing.bounds, None, log_sums, False),
            *options.scalars,
        )
        g_x, g_matrices = multiply_gradients(
            g_qkv.unsqueeze(0), x, joined.weight, ctx.updates, added, ctx.needs_input_grad[0]
        )
        return (g_x, None, None, None, *g_matrices)


class _Finished(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        x: Tensor,
        half: SecondHalf,
        options: Sequence[NormOptions],
        *affine: Tensor,
    ) -> Tensor:
        weight_1, bias_1, weight_2, bias_2 = affine
        saved: list[Tensor] = []
        keep = saved.extend if any(ctx.needs_input_grad) else lambda tensors: None
        first, widening, last = half.first.layer, half.widening, half.last.layer
        h, *kept = add_and_norm(
            first.weight.product(a, first.bias), x, weight_1, bias_1, options[0]
        )
        keep(kept)
        widened = widening.weight.product(h, widening.bias)
        keep([widened])
        narrow = torch.ops.peftlab.gelu(widened)
        del kept, widened  # without a backward pass they are held no longer
        narrow = last.weight.product(narrow, last.bias)
        y, *kept = add_and_norm(narrow, h, weight_2, bias_2, options[1])
        keep(kept)
        ctx.save_for_backward(*saved, weight_1, weight_2)
        ctx.half, ctx.options = half, options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s_1, moments_1, widened, s_2, moments_2, weight_1, weight_2 = ctx.saved_tensors
        half: SecondHalf = ctx.half
        g, g_h, _ = add_and_norm_gradients(
            gradients[0], s_2, moments_2, weight_2, ctx.options[1], s_2.dtype
        )
        g = torch.ops.peftlab.gelu_gradient(half.last.layer.weight.gradient(g), widened)
        g_h += half.widening.weight.gradient(g)
        g, g_x, _ = add_and_norm_gradients(g_h, s_1, moments_1, weight_1, ctx.options[0], s_1.dtype)
        return half.first.layer.weight.gradient(g), g_x, *[None] * 6


def _first_half(attention: Any) -> FirstHalf | None:
    layers = (attention.query, attention.key, attention.value)
    joined_layers = [one for layer in layers if (one := _frozen(layer)) is not None]
    if [one.index for one in joined_layers] != list(range(len(layers))):
        return None
    joined = joined_layers[0].joined
    adapters = [layer if isinstance(layer, LowRank) else None for layer in layers]
    if any(one.joined is not joined for one in joined_layers) or joined.adapters != adapters:
        return None
    return FirstHalf(joined, Untouched(attention, layers))


def _frozen(layer: Any) -> FrozenLinear | None:
    """The frozen layer that `layer` is, or to whose output it only adds a low-rank update."""
    if isinstance(layer, LowRank) and type(layer).forward is LowRank.forward:
        layer = layer.base if is_unmodified(layer) else None
    is_frozen = isinstance(layer, FrozenLinear) and layer.compute == torch.bfloat16
    return layer if is_frozen else None


def _second_half(block: Any, layout: Layout) -> SecondHalf | None:
    first, last = _end_of(block.attention.output), _end_of(block.output)
    widening, gelu = block.intermediate.dense, block.intermediate.intermediate_act_fn
    if first is None or last is None or not _is_alone(widening) or type(gelu) is not FastGelu:
        return None
    if block.chunk_size_feed_forward or not dropout.KERNEL.is_built():
        return None
    called = {block, *block.attention.self.modules()}
    below = [module for module in block.modules() if module not in called]
    return SecondHalf(first, widening.joined, last, Untouched(block, below, layout.cut))


def _end_of(half: Any) -> End | None:
    """The end of a half block, if all of it is frozen and as the kernels take it."""
    norm = half.LayerNorm
    if (
        _is_alone(half.dense)
        and type(half.dropout) in (FastDropout, nn.Dropout)
        and type(norm) is nn.LayerNorm
        and norm.bias is not None
    ):
        return End(half.dense.joined, half.dropout, norm)
    return None


def _is_alone(layer: Any) -> bool:
    """Whether `layer` is a frozen one that shares its product with none, and has no update.

    Its outputs are as wide as the kernels behind it take.
    """
    return (
        isinstance(layer, FrozenLinear)
        and layer.compute == torch.bfloat16
        and layer.joined.adapters == [None]
        and layer.out_features % native.WIDEST == 0
    )
