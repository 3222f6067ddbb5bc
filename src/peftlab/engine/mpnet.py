"""MPNet's attention in packed batches; transformers does not let a caller choose another for it.

    P = softmax(Q Kᵀ · scaling + relative positions)

The relative positions are a bias that all blocks share, made once a batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from peftlab.engine import dropout
from peftlab.engine.attention import BITS, LAYOUT, attend_packed
from peftlab.engine.bits import Bits
from peftlab.engine.packing import Layout
from peftlab.engine.replace_method import replace_method


def is_mpnet(model: Any) -> bool:
    """Whether `model` attends by MPNet's code."""
    return bool(model.config.model_type == "mpnet")


def replace_attention(model: Any, bits: Bits, layout: Layout, undo: ExitStack) -> None:
    """Let `model` attend to packed batches sentence by sentence; dropout draws from `bits`."""
    encoder = model.base_model.encoder
    replace_method(encoder, "compute_position_bias", _position_bias, undo, layout)
    for block in encoder.layer:
        attention = block.attention.attn
        for name, value in ((BITS, bits), (LAYOUT, layout)):
            setattr(attention, name, value)
            undo.callback(delattr, attention, name)
        replace_method(attention, "forward", _forward, undo)
        if "forward" not in vars(block.attention) and dropout.KERNEL.is_built():
            replace_method(block.attention, "forward", _half_block, undo, bits)


def _position_bias(
    encoder: nn.Module, original: Any, layout: Layout, x: Tensor, *args: Any
) -> Tensor:
    """(1, heads, length, length); in a packed batch it is the bias of one padded sentence."""
    if layout.packing is not None:
        x = x.new_empty(1, layout.packing.length, 0)  # only its sizes are read
    bias: Tensor = original(x, *args)
    return bias


def _forward(
    attention: Any,
    original: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    """(1, rows, hidden) -> (1, rows, hidden)."""
    if getattr(attention, LAYOUT).packing is None:
        outputs: tuple[Tensor, ...] = original(
            hidden_states, attention_mask, position_bias, **kwargs
        )
        return outputs
    width = attention.attention_head_size
    shape = (*hidden_states.shape[:-1], -1, width)
    q, k, v = (
        layer(hidden_states).view(shape).transpose(1, 2)
        for layer in (attention.q, attention.k, attention.v)
    )
    p = attention.dropout.p if attention.training else 0.0
    y = attend_packed(attention, q, k, v, position_bias, p, width**-0.5)
    return (attention.o(y.reshape(hidden_states.shape)),)


def _half_block(
    half_block: Any, original: Any, bits: Bits, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """Attention, dropout, residual sum and LayerNorm."""
    x, *rest = half_block.attn(hidden_states, *args, **kwargs)
    return dropout.dropout_add_norm(half_block, x, hidden_states, bits), *rest
