"""train: what it writes to a folder, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import peftlab
from peftlab.api.export import TOLERANCE, _relative_deviation
from peftlab.api.train import TRAINED_BEFORE, _for_training
from peftlab.atomic import CELL_FILES
from peftlab.bench.process import activation_checkpointing
from peftlab.models import state_of
from peftlab.records.record import Record
from peftlab.tasks import Examples, Task
from peftlab.training import passes
from peftlab.training.passes import batch_loss

FAST = {"epochs": 1, "batch_size": 8}


def test_load_reads_what_train_wrote(tiny_model: Path, tiny_task: Task, tmp_path: Path) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    out = tmp_path / "new" / "adapter"
    record = peftlab.train(model, tokenizer, tiny_task, "lora", out=out, **FAST)
    again, its_tokenizer = peftlab.load(out)
    assert peftlab.evaluate(again, its_tokenizer, tiny_task) == record.score
    assert Record.model_validate_json((out / "record.json").read_bytes()) == record
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert curve[-1] == {"epoch": 1, "score": record.score}
    predictions = (out / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == len(tiny_task.dev)
    names = {path.name for path in out.iterdir()}
    assert {*CELL_FILES.values(), "peftlab.json", "adapter_model.safetensors"} <= names
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    peftlab.train(model, tokenizer, tiny_task, "lora", out=out, **FAST)  # its own is replaced


def test_a_model_in_training_mode_is_so_again_after_it_has_answered(
    tiny_model: Path, tiny_task: Task
) -> None:
    """A loop of one's own that evaluates between epochs went on without dropout."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    for training in (True, False):
        model.train(training)
        model.base_model.embeddings.eval()  # a caller's own choice
        modes = [module.training for module in model.modules()]
        peftlab.evaluate(model, tokenizer, tiny_task)
        peftlab.predict(model, tokenizer, ["a cat"])
        assert [module.training for module in model.modules()] == modes


def test_the_home_folder_is_known_of_where_an_adapter_goes(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "lora", out="~/adapter", **FAST)
    assert (tmp_path / "adapter" / "record.json").exists()
    peftlab.save(model, "~/saved")
    assert peftlab.load("~/saved")[0].config.num_labels == 2
    assert (tmp_path / "saved").is_dir() and not Path("~").exists()


def test_torch_s_generator_is_left_as_it_was(tiny_model: Path, tiny_task: Task) -> None:
    """A random search around `train` drew one and the same rate for ever."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("caller_s", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_can_train(
    caller_s: Any, tiny_model: Path, tiny_task: Task
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with caller_s():
        record = peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert record.status == "done"


def test_two_threads_train_one_after_the_other_and_to_the_same_bits(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Torch's generator is the process's: side by side each drew some of the other's masks."""

    def trained(_: int = 0) -> dict[str, torch.Tensor]:
        model, tokenizer = peftlab.load_model(str(tiny_model))
        peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
        return {name: value for name, value in model.named_parameters() if value.requires_grad}

    alone = trained()
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(trained, range(2)):
            assert all(torch.equal(alone[name], found[name]) for name in alone)


def test_a_model_answers_once_its_training_has_ended(tiny_model: Path, tiny_task: Task) -> None:
    """Beside it both ended in errors of torch's."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with ThreadPoolExecutor(2) as threads:
        training = threads.submit(
            peftlab.train, model, tokenizer, tiny_task, "lora", epochs=4, batch_size=4, quiet=True
        )
        answers = [
            threads.submit(peftlab.predict, model, tokenizer, ["the cat sees"] * 400)
            for _ in range(4)
        ]
        assert training.result().status == "done"
        assert all(len(answer.result()) == 400 for answer in answers)


def test_a_training_on_top_of_another_says_so(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    """As a notebook's cell that is run twice: its record says one epoch, and is of two."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    first = peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    again = peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert TRAINED_BEFORE in again.method.notes and TRAINED_BEFORE not in first.method.notes
    assert again.cell == first.cell
    peftlab.save(model, tmp_path / "adapter")
    loaded = peftlab.train(*peftlab.load(tmp_path / "adapter"), tiny_task, "lora", **FAST)
    assert TRAINED_BEFORE in loaded.method.notes


def test_a_training_that_made_no_step_is_no_earlier_one(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with monkeypatch.context() as full:
        full.setattr("peftlab.training.loop.Loop.try_widest", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    record = peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert TRAINED_BEFORE not in record.method.notes


def test_a_stopped_training_leaves_no_dropout(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        assert model.training
        raise KeyboardInterrupt

    model, tokenizer = peftlab.load_model(str(tiny_model))
    monkeypatch.setattr("peftlab.training.loop.check_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert not any(module.training for module in model.modules())


def test_a_folder_that_holds_something_else_is_refused_before_training(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    model, tokenizer = peftlab.load_model(str(tiny_model))
    monkeypatch.setattr("peftlab.api.train.train_model", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(peftlab.RequestError, match=r"not an adapter of peftlab's \(thesis\.txt\)"):
        peftlab.train(model, tokenizer, tiny_task, "lora", out=tmp_path, **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_base_that_can_not_be_named_is_refused_before_training(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    state_of(model).source = None
    model.name_or_path = ""
    monkeypatch.setattr("peftlab.api.train.train_model", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(peftlab.RequestError, match="this model's base is not known"):
        peftlab.train(model, tokenizer, tiny_task, "lora", out=tmp_path / "a", **FAST)


def test_added_tokens_are_refused_before_training_where_an_adapter_is_asked_for(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    tokenizer.add_tokens(["zebra"])
    model.resize_token_embeddings(len(tokenizer))
    monkeypatch.setattr("peftlab.api.train.train_model", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(peftlab.RequestError, match=r"tokens and its base"):
        peftlab.train(model, tokenizer, tiny_task, "lora", out=tmp_path / "adapter", **FAST)


@pytest.mark.parametrize("own", [False, True])
def test_checkpointing_is_what_is_asked_and_behind_it_what_it_was(
    own: bool, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    recomputed: list[bool] = []
    monkeypatch.setattr(
        "peftlab.training.loop.batch_loss",
        lambda m, *others: recomputed.append(computes_again(m)) or batch_loss(m, *others),
    )
    with activation_checkpointing(model, own):
        before = {name: {**vars(module)} for name, module in model.bert.encoder.named_modules()}
        for asked in (True, False):
            peftlab.train(model, tokenizer, tiny_task, "head", checkpointing=asked, **FAST)
            assert set(recomputed) == {asked}
            recomputed.clear()
        for name, module in model.bert.encoder.named_modules():
            assert {**vars(module)} == before[name]


def computes_again(model: PreTrainedModel) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


class Moved(Exception):
    """The model was sent to a device."""


def test_an_adapter_is_saved_with_the_tokenizer_that_it_was_trained_with(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    """By `save` later too: the base's own gave 4 of 24 texts another answer."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    tokenizer.model_max_length = 7
    peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    peftlab.save(copy.deepcopy(model), tmp_path / "adapter")
    assert peftlab.load(tmp_path / "adapter")[1].model_max_length == 7


def test_a_model_stays_on_its_own_device_of_several(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    closing = contextlib.nullcontext()
    place, metered, forked = torch.device("cuda", 1), [], []

    def to(model: PreTrainedModel, device: Any) -> None:
        raise Moved(device)

    monkeypatch.setattr(type(model), "device", place)
    monkeypatch.setattr(type(model), "to", to)
    monkeypatch.setattr(torch.random, "fork_rng", lambda places: forked.append(places) or closing)
    monkeypatch.setattr("peftlab.api.train.MemoryMeter", lambda place, _: metered.append(place))
    with pytest.raises(Moved, match="cuda:1"):
        peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert (metered, forked) == ([place], [[place]])


def test_the_generator_of_mps_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "as it was")
    monkeypatch.setattr(torch.mps, "set_rng_state", calls.append)
    with pytest.raises(Moved), _for_training(torch.device("mps"), None):
        raise Moved
    assert calls == ["as it was"]


def test_an_adapter_that_answers_every_year_with_2000_is_not_as_in_training(
    tiny_task: Task,
) -> None:
    years = [1990.0 + i % 20 for i in range(len(tiny_task.train))]
    split = dataclasses.replace(tiny_task.train, labels=years)
    task = Task("years", "regression", ("pearson",), split, split)
    then = torch.tensor(years)[:, None]
    assert _relative_deviation(then + 0.01, then, task) < TOLERANCE / 10
    assert _relative_deviation(torch.full_like(then, 2000.0), then, task) > 10 * TOLERANCE
    zeros = torch.zeros_like(then)  # logits that say nothing
    assert _relative_deviation(then, zeros, tiny_task) > TOLERANCE


def test_classes_are_matched_by_their_names(tiny_model: Path, tiny_task: Task) -> None:
    """Where a file's spelling of labels gives another order, or another set of them."""
    model, tokenizer = peftlab.load_model(str(tiny_model))
    unnamed = peftlab.evaluate(model, tokenizer, tiny_task)
    model.config.id2label = dict(enumerate(tiny_task.labels))
    assert peftlab.evaluate(model, tokenizer, tiny_task) == unnamed
    turned = dataclasses.replace(
        tiny_task,
        labels=tuple(name.upper() for name in reversed(tiny_task.labels)),
        train=dataclasses.replace(tiny_task.train, labels=[1 - x for x in tiny_task.train.labels]),
        dev=dataclasses.replace(tiny_task.dev, labels=[1 - x for x in tiny_task.dev.labels]),
    )
    assert peftlab.evaluate(model, tokenizer, turned)["accuracy"] == unnamed["accuracy"]
    other = dataclasses.replace(tiny_task, labels=("no", "yes"))
    with pytest.raises(peftlab.RequestError, match="the model answers other, cat"):
        peftlab.evaluate(model, tokenizer, other)


@pytest.mark.parametrize(
    ("method", "given"),
    [("lora", {"max_length": 9_999}), ("qlora[optimizer=paged]", {})],
)
def test_a_request_that_is_refused_leaves_the_model_as_it_was(
    tiny_model: Path, tiny_task: Task, method: str, given: dict[str, Any]
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="nf4")
    with pytest.raises(peftlab.RequestError):
        peftlab.train(model, tokenizer, tiny_task, method, **FAST, **given)
    peftlab.train(model, tokenizer, tiny_task, "head", **FAST)


@pytest.mark.parametrize("part", ["train", "dev"])
def test_an_empty_split_is_refused_in_words(tiny_model: Path, tiny_task: Task, part: str) -> None:
    task = dataclasses.replace(tiny_task, **{part: Examples([], [])})
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with pytest.raises(peftlab.RequestError, match=f"its {part} split is empty"):
        peftlab.train(model, tokenizer, task, "head", **FAST)
    if part == "dev":
        with pytest.raises(peftlab.RequestError, match="its dev split is empty"):
            peftlab.evaluate(model, tokenizer, task)


def test_answering_much_is_done_inside_the_engine_unless_asked_not_to(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[bool] = []
    engine = passes.engine

    def watched(model: Any, enabled: bool) -> Any:
        entered.append(enabled)
        return engine(model, enabled)

    monkeypatch.setattr(passes, "engine", watched)
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.evaluate(model, tokenizer, tiny_task)
    monkeypatch.setattr(passes, "WORTH_ENTERING", 0)
    scores = [peftlab.evaluate(model, tokenizer, tiny_task, fast=fast) for fast in (True, False)]
    assert entered == [False, True, False]
    assert scores[0] == scores[1]


def test_texts_that_were_cut_are_counted_and_told(tiny_model: Path, tiny_task: Task) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model))
    lengths = [
        [len(tokenizer(text)["input_ids"]) for (text,) in split.texts]
        for split in (tiny_task.train, tiny_task.dev)
    ]
    longer = [sum(n > 7 for n in of_split) for of_split in lengths]
    assert all(longer)
    record = peftlab.train(
        model, tokenizer, tiny_task, "head", epochs=1, batch_size=8, max_length=7
    )
    assert record.task.n_truncated == sum(longer)


@pytest.mark.parametrize("method", ["lora", "lora-drop"])
def test_a_base_in_eight_bits_that_has_answered_is_trained(
    method: str, tiny_model: Path, tiny_task: Task
) -> None:
    """What oneDNN has packed by then has no storage to count; lora-drop prepares on it."""
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="int8")
    peftlab.evaluate(model, tokenizer, tiny_task)
    record = peftlab.train(model, tokenizer, tiny_task, method, epochs=1, batch_size=8)
    assert record.status == "done"


def test_no_kernel_is_built_for_what_is_trained_without_the_engine(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where a minute of compiling would gain nothing."""
    monkeypatch.setattr("peftlab.bench.process.can_pack", lambda model: pytest.fail("built"))
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "lora", fast=False, **FAST)


def test_a_model_is_tried_with_what_cublas_repeats_its_sums_by(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads this once, when it is first used: for a model that is tried, before training."""
    name, seen = "CUBLAS_WORKSPACE_CONFIG", []
    monkeypatch.delenv(name, raising=False)
    model, tokenizer = peftlab.load_model(str(tiny_model))
    monkeypatch.setattr(
        "peftlab.api.train.check_batches", lambda *given: seen.append(os.environ.get(name))
    )
    peftlab.train(model, tokenizer, tiny_task, "lora", **FAST)
    assert seen == [":4096:8"] and name not in os.environ
