"""A pass keeps nothing that no classifier reads."""

from __future__ import annotations

from typing import Any

from peftlab.training.passes import forward
from tiny import batch, tiny


def test_a_decoder_keeps_no_keys_and_values_for_a_next_token() -> None:
    model, kept = tiny("llama"), list[Any]()
    model.model.register_forward_hook(lambda _, inputs, output: kept.append(output.past_key_values))
    forward(model, batch())
    assert kept == [None]
    assert model.config.use_cache
    model(**batch())
    assert kept[1] is not None
