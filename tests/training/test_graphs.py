"""CUDA graphs: what is captured and replayed, by a stand-in for CUDA's own capture.

No CUDA device was at hand: that torch captures a transformer's pass is not tested here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from peftlab.errors import RequestError
from peftlab.methods import METHODS, inject, make
from peftlab.models import load_model, load_tokenizer
from peftlab.settings import Training
from peftlab.tasks import Task
from peftlab.training import Loop, encode
from peftlab.training.batches import Batch
from peftlab.training.graphs import MET, Graphs
from plans import plan

CPU = torch.device("cpu")


class Captures:
    """Captures by hand: nothing is done until it is replayed, and results lie in one place."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.replayed = 0

    def __call__(
        self, work: Callable[[], Tensor], pool: Any, place: torch.device
    ) -> tuple[Tensor, Callable[[], None], Any]:
        result = torch.zeros((), device=place)
        self.pools.append(pool)

        def replay() -> None:
            self.replayed += 1
            torch._foreach_copy_([result], [work()])

        return result, replay, "pool"


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    made = Captures()
    monkeypatch.setattr("peftlab.training.graphs.captured", made)
    return made


def losses(folder: Path, task: Task, method: str, **settings: Any) -> tuple[list[float], Any]:
    own = make(method, {"rank": 3} if method == "vera" else {})
    model, _ = load_model(str(folder), precision=own.base_precision or "fp32", seed=0)
    torch.manual_seed(0)
    inject(model, own)
    train = encode(load_tokenizer(folder), task.train.texts, task.train.labels, 32)
    run = plan(epochs=8, batch_size=8, lr=1e-2, head_lr=1e-2, fast=False, **settings)
    loop = Loop(model, own, train, run)
    found = [row["loss"] for epoch in range(8) for row in loop.epoch(epoch)]
    return found, {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_by_graphs_is_the_training(
    method: str, accumulation: int, tiny_model: Path, tiny_task: Task, captures: Captures
) -> None:
    given: tuple[Any, ...] = (tiny_model, tiny_task, method)
    plain, trained = losses(*given, accumulation=accumulation)
    replayed, by_graphs = losses(*given, accumulation=accumulation, graphs=True)
    assert replayed == plain
    assert all(torch.equal(p, by_graphs[name]) for name, p in trained.items())
    if METHODS[method]().steps_alike:
        assert captures.replayed > 48 * accumulation / 2
        assert captures.pools == [None, *["pool"] * (len(captures.pools) - 1)]
    else:
        assert not captures.pools


def batch(size: int, place: torch.device = CPU) -> Batch:
    ids = torch.ones(size, 4, dtype=torch.long, device=place)
    return Batch({"input_ids": ids}, torch.zeros(size, dtype=torch.long, device=place))


def test_a_shape_is_captured_when_it_was_met_often_enough(captures: Captures) -> None:
    seen: list[int] = []

    def run(given: Batch, weight: Tensor) -> Tensor:
        seen.append(len(given.labels))
        return weight * given.inputs["input_ids"].sum()

    graphs, one = Graphs(run, CPU), torch.ones(())
    for _ in range(MET - 1):
        graphs(batch(2), one)
        graphs(batch(3), one)
    assert not captures.pools
    first = graphs(batch(2), 2 * one)
    twice = Batch({"input_ids": 5 * batch(2).inputs["input_ids"]}, batch(2).labels)
    second = graphs(twice, one)
    assert (first.item(), second.item()) == (16.0, 40.0)  # the first is kept when it is done again
    assert (len(captures.pools), captures.replayed) == (1, 2)
    assert seen == [2, 3] * (MET - 1) + [2, 2]


def test_what_is_captured_lies_on_the_device(captures: Captures) -> None:
    place = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        graphs = Graphs(lambda own, weight: weight * own.inputs["input_ids"].sum(), place)
        weight = torch.ones((), device=place)
        for _ in range(MET + 1):
            loss = graphs(batch(2, place), weight)
        (own,) = graphs.recorded.values()
    assert {tensor.device for tensor in (*own.reads, own.loss, loss)} == {place}


def test_a_pass_that_can_t_be_captured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("peftlab.training.graphs.captured", refused)
    graphs = Graphs(lambda own, weight: weight, CPU)
    with pytest.raises(RequestError, match=r"not permitted .*; train without --graphs"):
        for _ in range(MET):
            graphs(batch(2), torch.ones(()))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"device": "cpu"}, "on cpu"),
        ({"device": "cuda", "checkpointing": True}, "with checkpointing"),
        ({"device": "cuda", "class_weights": "balanced"}, "with weights of classes"),
    ],
)
def test_graphs_that_can_t_be_are_refused(settings: dict[str, Any], where: str) -> None:
    device = settings.pop("device")
    decided = {"lr": 1e-3, "head_lr": 1e-3, "epochs": 1, "max_length": 8, "threads": 1}
    with pytest.raises(RequestError, match=f"can't be captured {where}; leave --graphs out"):
        Training(graphs=True, **settings).resolved(device=device, **decided)
    assert Training(graphs=True).resolved(device="cuda", **decided).graphs
