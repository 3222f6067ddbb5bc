from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import peftlab
from peftlab.errors import RequestError
from peftlab.layers import Precision
from peftlab.methods import injected
from peftlab.models import precision_of, state_of


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


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own imports
def test_what_torch_compile_wraps_is_refused_with_what_to_give(tiny_model: Path) -> None:
    """All of it would be trained as the head: the wrapper's one child is the whole model."""
    model, _ = peftlab.load_model(str(tiny_model))
    with pytest.raises(peftlab.RequestError, match="give the model itself"):
        peftlab.inject(torch.compile(model), "lora")
    peftlab.inject(model, "lora")


def test_a_model_whose_outputs_have_no_names_is_refused_and_loaded_with_them(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Else `.logits` of a tuple ends evaluate, predict and train in Python's own words."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    model.config.return_dict = False
    with pytest.raises(peftlab.RequestError, match="return_dict is false"):
        peftlab.predict(model, tokenizer, ["a cat"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert peftlab.predict(*peftlab.load_model(tmp_path), ["a cat"])


def test_a_model_that_was_cast_since_computes_as_it_is_held(tiny_model: Path) -> None:
    model, _ = peftlab.load_model(str(tiny_model), precision="bf16")
    assert precision_of(model).compute == "bf16"
    model.float()
    assert precision_of(model) == Precision("fp32", "fp32")


def test_outputs_that_are_no_numbers_are_no_answer(tiny_model: Path) -> None:
    """Softmax of NaN gave the first class, with empty scores."""
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=2, precision="fp32")
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    with pytest.raises(RequestError, match="not all numbers"):
        peftlab.predict(model, tokenizer, ["the cat"])


def test_two_classes_of_one_name_are_refused(tiny_model: Path) -> None:
    """One would take the other's score."""
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=3, precision="fp32")
    model.config.id2label = {0: "a", 1: "a", 2: "b"}
    with pytest.raises(RequestError, match="two classes of one name"):
        peftlab.predict(model, tokenizer, ["the cat"])
