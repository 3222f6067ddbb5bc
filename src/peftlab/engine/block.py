"""A block of BERT's by two autograd nodes, where its modules would make ten.

    a = attention of the columns of x [W_q; W_k; W_v]ᵀ + c + updates                  _Attended
    h = LayerNorm(x + drop(a W_oᵀ)),  y = LayerNorm(h + drop(gelu(h W₁ᵀ) W₂ᵀ))        _Finished

Beside its kernels a block is fifteen modules, a dozen views and ten nodes of autograd, which cost
LoRA a tenth of its step on MiniLM and a twentieth on RoBERTa-base's sizes (LOG.md). The kernels
here are the same, in the same order, so the bits are the same, too.

A part with a hook, a trained norm or an adapter that is more than a low-rank update is left to its
modules, as is the last block, which packing.py cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.engine.bits import Bits, Counter
from peftlab.engine.dropout import FastDropout, NormOptions
from peftlab.engine.frozen import (
    FrozenLinear,
    Joined,
    Places,
    multiply,
    multiply_gradients,
    places_and_matrices,
)
from peftlab.engine.gelu import FastGelu
from peftlab.engine.packing import Layout
from peftlab.engine.replace_method import replace_method
from peftlab.engine.sentences import AttentionOptions
from peftlab.layers import native
from peftlab.layers.lora import LowRank
from peftlab.layers.precision import Untouched
from peftlab.models import architecture_of
from peftlab.models.architectures import TABLE

BERT = TABLE["bert"].layers


def fuse_blocks(model: Any, bits: Bits, layout: Layout, undo: ExitStack) -> None:
    """Compute the packed batches of `model` by two nodes a block, where a block is BERT's.

    Its frozen layers, gelu and residual sums are the engine's already.
    """
    if architecture_of(model).layers is not BERT:
        return
    for module in model.base_model.encoder.layer:
        second = _second_half(module)
        if second is not None:
            block = Block(_first_half(module.attention.self), second, bits, layout)
            replace_method(module, "forward", _forward, undo, block)


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
        module: the module of all.
        joined: the layers.
        untouched: whether all are still called by their own code alone.
    """

    module: Any
    joined: Joined
    untouched: Untouched

    def __call__(self, x: Tensor, bits: Bits, layout: Layout) -> Tensor:
        """(1, rows, hidden) -> (1, rows, hidden), of a packed batch."""
        assert layout.packing is not None
        module, joined = self.module, self.joined
        joined.check_frozen()
        p = module.dropout.p if module.training else 0.0
        counter = bits.counter() if p else Counter(0, 0)
        heads, scaling = module.num_attention_heads, module.scaling
        options = AttentionOptions(layout.packing, heads, scaling, 0, p, counter)
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
        untouched: whether all their modules are still called by their own code alone.
    """

    first: End
    widening: Joined
    last: End
    untouched: Untouched

    @property
    def is_frozen(self) -> bool:
        """Whether no norm is trained; that no layer is, its product checks."""
        norms = (self.first.norm, self.last.norm)
        return not any(p.requires_grad for norm in norms for p in (norm.weight, norm.bias))

    def __call__(self, a: Tensor, x: Tensor, bits: Bits) -> Tensor:
        """Attention's output and the block's input, (1, rows, hidden) each -> the same."""
        for joined in (self.first.layer, self.widening, self.last.layer):
            joined.check_frozen()
        options = (self.first.options(bits), self.last.options(bits))
        y: Tensor = _Finished.apply(a, x, self, options)  # type: ignore[no-untyped-call]
        return y


@dataclass(frozen=True)
class Block:
    """A block; `first` is None if adapters change more than its products."""

    first: FirstHalf | None
    second: SecondHalf
    bits: Bits
    layout: Layout


def _forward(
    module: Any, original: Any, block: Block, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """(1, rows, hidden) -> the same. `args` are masks, which a packed batch doesn't need."""
    second = block.second
    if (
        block.layout.packing is None
        or torch.is_autocast_enabled("cpu")
        or not (second.untouched() and second.is_frozen)
    ):
        y: Tensor = original(x, *args, **kwargs)
        return y
    if block.first is not None and block.first.untouched():
        a = block.first(x, block.bits, block.layout)
    else:
        a, _ = module.attention.self(x)
    return second(a, x, block.bits)


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
        ctx: Any, a: Tensor, x: Tensor, half: SecondHalf, options: Sequence[NormOptions]
    ) -> Tensor:
        h, *first = _end(a, x, half.first, options[0])
        widened = half.widening.weight.product(h, half.widening.bias)
        y, *last = _end(torch.ops.peftlab.gelu(widened), h, half.last, options[1])
        ctx.save_for_backward(*first, widened, *last)
        ctx.half, ctx.options = half, options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s_1, moments_1, widened, s_2, moments_2 = ctx.saved_tensors
        half: SecondHalf = ctx.half
        g, g_h = _end_gradients(gradients[0], s_2, moments_2, half.last, ctx.options[1])
        g = torch.ops.peftlab.gelu_gradient(g, widened)
        g_h += half.widening.weight.gradient(g)
        g_a, g_x = _end_gradients(g_h, s_1, moments_1, half.first, ctx.options[0])
        return g_a, g_x, None, None


def _end(x: Tensor, r: Tensor, end: End, options: NormOptions) -> Sequence[Tensor]:
    """LayerNorm(dropout(x Wᵀ + c) + r), then what `_end_gradients` needs beside its gradient."""
    y = end.layer.weight.product(x, end.layer.bias)
    outputs: Sequence[Tensor] = torch.ops.peftlab.residual_norm(
        y, r.contiguous(), end.norm.weight, end.norm.bias, *options.scalars
    )
    return outputs


def _end_gradients(
    g: Tensor, s: Tensor, moments: Tensor, end: End, options: NormOptions
) -> tuple[Tensor, Tensor]:
    """The gradients of x and r."""
    g_y, g_r, _ = torch.ops.peftlab.residual_norm_gradient(
        g.contiguous(), s, moments, end.norm.weight, g.dtype, False, *options.draw_args
    )
    return end.layer.weight.gradient(g_y if g_y.numel() else g_r), g_r


def _first_half(attention: Any) -> FirstHalf | None:
    layers = (attention.query, attention.key, attention.value)
    joined_layers = [one for layer in layers if (one := _frozen(layer)) is not None]
    if [one.index for one in joined_layers] != list(range(len(layers))):
        return None
    joined = joined_layers[0].joined
    adapters = [layer if isinstance(layer, LowRank) else None for layer in layers]
    if any(one.joined is not joined for one in joined_layers) or joined.adapters != adapters:
        return None
    return FirstHalf(attention, joined, Untouched([attention, *layers]))


def _frozen(layer: Any) -> FrozenLinear | None:
    """The frozen layer that `layer` is, or to whose output it only adds a low-rank update."""
    if isinstance(layer, LowRank) and type(layer).forward is LowRank.forward:
        layer = layer.base
    return layer if isinstance(layer, FrozenLinear) else None


def _second_half(block: Any) -> SecondHalf | None:
    first, last = _end_of(block.attention.output), _end_of(block.output)
    widening, gelu = block.intermediate.dense, block.intermediate.intermediate_act_fn
    if first is None or last is None or not _is_alone(widening) or type(gelu) is not FastGelu:
        return None
    ends = (block.attention.output, block.output)  # their `forward` is dropout.py's
    parts = [part for end in ends for part in end.children()]
    untouched = Untouched([block.attention, block.intermediate, widening, gelu, *parts], ends)
    return SecondHalf(first, widening.joined, last, untouched)


def _end_of(half: Any) -> End | None:
    """The end of a half block, if all of it is frozen and as the kernels take it."""
    norm = half.LayerNorm
    if (
        _is_alone(half.dense)
        and type(half.dropout) in (FastDropout, nn.Dropout)
        and type(norm) is nn.LayerNorm
        and norm.bias is not None
        and norm.normalized_shape[-1] % native.WIDEST == 0
    ):
        return End(half.dense.joined, half.dropout, norm)
    return None


def _is_alone(layer: Any) -> bool:
    """Whether `layer` is a frozen one that shares its product with none, and has no update."""
    return isinstance(layer, FrozenLinear) and layer.joined.adapters == [None]
