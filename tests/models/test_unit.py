"""A regression does not depend on its label's unit, and answers in it, wherever it is handed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

import peftlab
from peftlab.adapters import plain_folder
from peftlab.bench.process import _check_unit
from peftlab.methods import injected
from peftlab.models import state_of
from peftlab.models.unit import Unit, last_layer, standard_unit, unit_of
from peftlab.tasks import Examples, Task
from peftlab.training import encode
from plans import plan

TEXTS = ["the red cat sees a dog", "a dog", "the bird likes the old fish"]


@pytest.fixture(scope="module")
def numbers(tiny_task: Task) -> Task:
    """How often "very" is said, and more where a cat is in it."""

    def label(text: tuple[str, ...]) -> float:
        return text[0].count("very") + 2.0 * ("cat" in text[0])

    train, dev = (
        Examples(part.texts, [label(text) for text in part.texts])
        for part in (tiny_task.train, tiny_task.dev)
    )
    return Task(name="numbers", kind="regression", metrics=("pearson",), train=train, dev=dev)


def in_unit(task: Task, factor: float, shift: float) -> Task:
    train, dev = (
        Examples(part.texts, [factor * label + shift for label in part.labels])
        for part in (task.train, task.dev)
    )
    return dataclasses.replace(task, train=train, dev=dev)


def trained(folder: Path, task: Task, method: str = "lora", epochs: int = 4) -> tuple[Any, Any]:
    model, tokenizer = peftlab.load_model(str(folder), num_labels=1, precision="fp32")
    record = peftlab.train(
        model, tokenizer, task, method, epochs=epochs, batch_size=8, lr=1e-2, head_lr=1e-2
    )
    return record, (model, tokenizer)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, numbers: Task) -> dict[str, tuple[Any, Any]]:
    """By method: the record, and the model with its tokenizer, of labels as they are."""
    return {method: trained(tiny_model, numbers, method) for method in ("lora", "full")}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (1e4, 7.0), (1.0, -50.0), (2.0, 1e5)])
def test_a_regression_does_not_depend_on_its_labels_unit(
    tiny_model: Path, numbers: Task, plain: Any, method: str, factor: float, shift: float
) -> None:
    record, held = plain[method]
    other, moved = trained(tiny_model, in_unit(numbers, factor, shift), method)
    assert record.score["pearson"] > 0.5
    assert other.score["pearson"] == pytest.approx(record.score["pearson"], abs=1e-3)
    wanted = [factor * answer + shift for answer in peftlab.predict(*held, TEXTS)]
    rounding = 1e-6 * abs(shift)
    assert peftlab.predict(*moved, TEXTS) == pytest.approx(
        wanted, rel=2e-3, abs=2e-3 * abs(factor) + rounding
    )


def test_what_is_recorded_is_in_the_labels_unit(tiny_model: Path, numbers: Task) -> None:
    task = in_unit(numbers, 100.0, 1000.0)
    record, (model, tokenizer) = trained(tiny_model, task)
    assert peftlab.evaluate(model, tokenizer, task)["pearson"] == pytest.approx(
        record.score["pearson"], abs=1e-4
    )
    assert all(900 < answer < 1700 for answer in peftlab.predict(model, tokenizer, TEXTS))


def test_the_unit_survives_saving_merging_and_transformers(
    tiny_model: Path, numbers: Task, tmp_path: Path
) -> None:
    task = in_unit(numbers, 100.0, 1000.0)
    _, (model, tokenizer) = trained(tiny_model, task)
    answers = peftlab.predict(model, tokenizer, TEXTS)
    peftlab.save(model, tmp_path / "adapter")
    loaded = peftlab.load(tmp_path / "adapter")
    assert peftlab.predict(*loaded, TEXTS) == pytest.approx(answers, rel=1e-5)
    plain_folder(model, tokenizer, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    with torch.inference_mode():
        found = plain(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.squeeze(-1)
    assert found.tolist() == pytest.approx(answers, rel=1e-5)


def test_a_second_training_goes_on_from_the_first(
    tiny_model: Path, numbers: Task, tmp_path: Path
) -> None:
    """At a rate of next to nothing it answers as before, so it began in the label's unit."""
    task = in_unit(numbers, 100.0, 1000.0)
    _, (model, tokenizer) = trained(tiny_model, task, epochs=8)
    answers = peftlab.predict(model, tokenizer, TEXTS)
    peftlab.save(model, tmp_path / "adapter")
    for again in (model, peftlab.load(tmp_path / "adapter")[0]):
        peftlab.train(
            again, tokenizer, task, injected(again), epochs=1, batch_size=8, lr=1e-9, head_lr=1e-9
        )
        assert peftlab.predict(again, tokenizer, TEXTS) == pytest.approx(answers, rel=1e-4)


def test_the_unit_is_given_back_where_training_fails(tiny_model: Path) -> None:
    model, _ = peftlab.load_model(str(tiny_model), num_labels=1, precision="fp32")
    before = last_layer(model).weight.clone()
    for moved in (1, 0):  # once in the label's unit, it is left so by what trained nothing, too
        with pytest.raises(KeyboardInterrupt), standard_unit(model, Unit(mean=10.0, sd=4.0)):
            with torch.no_grad():
                last_layer(model).weight.add_(moved)
            raise KeyboardInterrupt
        torch.testing.assert_close(last_layer(model).weight, 4 * (before + 1))
        assert last_layer(model).bias.item() == pytest.approx(10.0)


def test_a_head_that_no_step_has_moved_is_as_it_was(tiny_model: Path) -> None:
    """Transformers may have loaded it trained, in whatever unit."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), standard_unit(model, Unit(mean=10.0, sd=4.0)):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_head_without_a_bias_is_scaled_and_not_centred() -> None:
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    assert unit_of(model, [1.0, 3.0]) == Unit(0.0, 1.0)
    before: Tensor = last_layer(model).weight.clone()
    with standard_unit(model, unit_of(model, [10.0, 30.0])):
        assert torch.equal(last_layer(model).weight, before)
        with torch.no_grad():
            last_layer(model).weight.add_(1)
    torch.testing.assert_close(last_layer(model).weight, 10 * (before + 1))


def test_labels_that_fp32_could_not_tell_apart_are_refused() -> None:
    """Timestamps: the record's Pearson was .94, the saved model's 0."""
    Unit.of([1e4, 1e4 + 1, 1e4 + 2])
    with pytest.raises(peftlab.RequestError, match="subtract what the labels have in common"):
        Unit.of([1.7e9, 1.7e9 + 1e3, 1.7e9 + 2e3])


def test_a_head_that_answers_far_from_the_labels_is_none_of_their_unit(
    tiny_model: Path, numbers: Task, tmp_path: Path
) -> None:
    """A random one began 200 deviations off, and came no nearer."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    _, tokenizer = peftlab.load_model(str(tiny_model))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    task = in_unit(numbers, 10.0, 2000.0)
    record, (model, _) = trained(tmp_path / "base", task)
    assert all(1980 < answer < 2060 for answer in peftlab.predict(model, tokenizer, TEXTS))
    assert record.score["pearson"] > 0.5
    (note,) = [note for note in record.method.notes if "of another unit" in note]
    assert "where labels are 2" in note
    near, _ = trained(tmp_path / "base", numbers)  # within three deviations of its answers
    assert not [note for note in near.method.notes if "of another unit" in note]


def test_whether_a_head_is_of_the_labels_unit_is_told_without_dropout(
    tiny_model: Path, numbers: Task
) -> None:
    """Near the bound chance would decide, and the note's number would be another each time."""
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=1)
    far = in_unit(numbers, 10.0, 2000.0)
    train = encode(tokenizer, far.train.texts, far.train.labels, 32)
    notes = []
    for seed in range(2):
        torch.manual_seed(seed)
        state_of(model).own_unit = True
        notes.append(_check_unit(model.train(), far, train, plan()))
    assert notes[0] == notes[1] and "of another unit" in notes[0][0]


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_far_below_0_are_as_coarse_as_those_far_above_it(sign: int) -> None:
    with pytest.raises(peftlab.RequestError, match="subtract what the labels have in common"):
        Unit.of([sign * 1e9, sign * 1e9 + 1])
