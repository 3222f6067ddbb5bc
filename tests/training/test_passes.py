"""Decoders keep nothing that no classifier reads, in training, in evaluation and in a count."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.methods import inject, injected
from peftlab.training import Encoded, Loop, fit
from peftlab.training.meters import MemoryMeter
from peftlab.training.passes import outputs, without_cache
from plans import plan
from tiny import batch, tiny


def test_a_decoder_keeps_no_keys_and_values_for_a_next_token() -> None:
    model, kept = tiny("llama"), list[Any]()
    model.model.register_forward_hook(lambda _, inputs, output: kept.append(output.past_key_values))
    with without_cache(model):
        model(**batch())
    model(**batch())
    assert kept[0] is None and kept[1] is not None and model.config.use_cache


@pytest.mark.parametrize("trains", [True, False])
def test_neither_a_training_nor_an_evaluation_keeps_any(trains: bool) -> None:
    model, kept = tiny("llama"), list[Any]()
    model.model.register_forward_hook(lambda _, inputs, output: kept.append(output.past_key_values))
    ids = batch()["input_ids"].tolist()
    features = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    data = Encoded(features, [0] * len(ids), dict.fromkeys(features, 0), 0)
    if trains:
        loop = Loop(model, injected(inject(model, "lora")), data, plan(epochs=1, batch_size=2))
        fit(loop, data, lambda *_: None, lambda *_: None, MemoryMeter())
    else:
        outputs(model, data)
    assert kept and set(kept) == {None}
