from __future__ import annotations

import copy
from pathlib import Path

import peftlab
from peftlab.methods import injected
from peftlab.models import state_of


def test_a_copy_of_a_model_knows_what_the_model_does_and_goes_its_own_way(tiny_model: Path) -> None:
    model, _ = peftlab.load_model(str(tiny_model))
    peftlab.inject(model, "lora")
    again = copy.deepcopy(model)
    assert injected(again) == injected(model)
    assert state_of(again) == state_of(model)
    assert state_of(again).source is not None
    peftlab.merge(again)
    assert state_of(model).merged is None
    peftlab.unmerge(copy.deepcopy(again))
    assert state_of(again).merged is not None
