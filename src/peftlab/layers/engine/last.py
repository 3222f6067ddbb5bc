"""The last layer, computed only where the classifier reads it: at the first position.

Attention needs every position's key and value, and nothing behind it needs more than the first
one's output. So the output projection of the last attention gets that position alone; the residual
add broadcasts it over all positions, of which the norm behind it keeps the first, where the sum is
right. Exact, forward and backward; of six layers it saves a tenth of the work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn


class Block(NamedTuple):
    """Names in one block: the attention's output projection and the norm behind its residual."""

    projection: str
    norm: str


# post-norm encoders whose classifier reads the first position; ALBERT's blocks are all one module
BLOCKS = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra"),
        Block("attention.output.dense", "attention.output.LayerNorm"),
    ),
    "mpnet": Block("attention.attn.o", "attention.LayerNorm"),
    "distilbert": Block("attention.out_lin", "sa_layer_norm"),
}


def slice_last(model: Any) -> Iterator[Any]:
    """Hook the last block of `model`, if the first position is all that its head reads.

    Yields:
        The hooks' handles.
    """
    block = BLOCKS.get(model.config.model_type)
    if block is None or not type(model).__name__.endswith("ForSequenceClassification"):
        return
    for ending in block:
        yield _last(model, ending).register_forward_pre_hook(_first_position)


def _last(model: nn.Module, ending: str) -> nn.Module:
    """The module so named in the block of the highest number; an adapter may stand in its place."""
    pattern = re.compile(rf".*\.(\d+)\.{re.escape(ending)}")
    found: dict[int, nn.Module] = {
        int(match[1]): module
        for name, module in reversed(list(model.named_modules()))  # the outermost of a name wins
        if (match := pattern.fullmatch(name.replace(".base", "")))
    }
    return found[max(found)]


def _first_position(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0][:, :1], *inputs[1:])
