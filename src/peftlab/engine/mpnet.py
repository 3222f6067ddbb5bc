"""MPNet's attention, which transformers doesn't let one choose, by plain products like the others'.

    P = softmax(Q Kᵀ · scaling + relative positions)

Positions relative to each other are a bias that all blocks share, made once a batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from peftlab.engine import dropout
from peftlab.engine.attention import BITS, LAID, attend_packed
from peftlab.engine.bits import Bits
from peftlab.engine.packing import Laid
from peftlab.engine.stand_in import stand_in


def is_mpnet(model: Any) -> bool:
    """Whether `model` attends by MPNet's code."""
    return bool(model.config.model_type == "mpnet")


def replace_attention(model: Any, bits: Bits, laid: Laid, undo: ExitStack) -> None:
    """Let `model` attend by plain products, its batches packed; its dropout draws from `bits`."""
    encoder = model.base_model.encoder
    stand_in(encoder, "compute_position_bias", _bias, undo, laid)
    for block in encoder.layer:
        attention = block.attention.attn
        for name, value in ((BITS, bits), (LAID, laid)):
            setattr(attention, name, value)
            undo.callback(delattr, attention, name)
        stand_in(attention, "forward", _forward, undo)
        if "forward" not in vars(block.attention) and dropout.is_built():
            stand_in(block.attention, "forward", _half, undo, bits)


def _bias(encoder: nn.Module, theirs: Any, laid: Laid, x: Tensor, *args: Any) -> Tensor:
    """(1, heads, length, length): of the places of a padded sentence, where batches are packed."""
    if laid.packing is not None:
        x = x.new_empty(1, laid.packing.length, 0)  # of which only the sizes are read
    bias: Tensor = theirs(x, *args)
    return bias


def _forward(
    attention: Any,
    theirs: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    """(1, rows, hidden) -> (1, rows, hidden)."""
    if getattr(attention, LAID).packing is None:
        whole: tuple[Tensor, ...] = theirs(hidden_states, attention_mask, position_bias, **kwargs)
        return whole
    width = attention.attention_head_size
    shape = (*hidden_states.shape[:-1], -1, width)
    q, k, v = (
        layer(hidden_states).view(shape).transpose(1, 2)
        for layer in (attention.q, attention.k, attention.v)
    )
    p = attention.dropout.p if attention.training else 0.0
    y = attend_packed(attention, q, k, v, position_bias, p, width**-0.5)
    return (attention.o(y.reshape(hidden_states.shape)),)


def _half(
    half: Any, theirs: Any, bits: Bits, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """Attention and what ends this half of a block."""
    x, *others = half.attn(hidden_states, *args, **kwargs)
    return dropout.ended(half, x, hidden_states, bits), *others
