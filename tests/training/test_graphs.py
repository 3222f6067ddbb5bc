"""CUDA graphs: what is captured and replayed, by a stand-in for CUDA's own capture.

No CUDA device was at hand: that torch captures a transformer's pass is not tested here.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peftlab.errors import RequestError
from peftlab.methods import METHODS, inject, make, parse_methods
from peftlab.models import load_model, load_tokenizer
from peftlab.settings import Training
from peftlab.tasks import Task
from peftlab.training import Loop, encode
from peftlab.training.batches import Batch
from peftlab.training.graphs import CAPTURED_AT, Graphs, capture
from peftlab.training.passes import batch_loss
from plans import plan

CPU = torch.device("cpu")


class Captures:
    """Captures by hand: nothing is done until it is replayed, and results lie in one place.

    As a graph's do, a replay's tensors must lie where they lay.
    """

    def __init__(self) -> None:
        self.shared: list[Any] = []
        self.replayed = 0
        self.model = nn.Module()
        self.losses: list[weakref.ref[Tensor]] = []  # of all passes so far

    def batch_loss(self, *given: Any) -> Tensor:
        loss = batch_loss(*given)
        self.losses.append(weakref.ref(loss))
        return loss

    def __call__(
        self, work: Callable[[], Tensor], shared: Any, place: torch.device
    ) -> tuple[Tensor, Callable[[], None], Any]:
        gc.collect()
        # torch refuses to capture while a pass of another stream is kept
        assert all(loss() is None for loss in self.losses)
        result = torch.zeros((), device=place)
        self.shared.append(shared)
        lay = self.places()

        def replay() -> None:
            now = self.places()
            assert {name: now[name] for name in lay} == lay
            self.replayed += 1
            torch._foreach_copy_([result], [work()])

        return result, replay, "shared"

    def places(self) -> dict[str, list[int]]:
        """Where parameters, their gradients and buffers lie, by name."""
        found = {name: [p.data_ptr()] for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            found[name] += [] if p.grad is None else [p.grad.data_ptr()]
        return found | {name: [b.data_ptr()] for name, b in self.model.named_buffers()}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    made = Captures()
    monkeypatch.setattr("peftlab.training.graphs.capture", made)
    monkeypatch.setattr("peftlab.training.loop.batch_loss", made.batch_loss)
    return made


def loop_of(
    folder: Path, task: Task, method: str, captures: Captures | None = None, **settings: Any
) -> Loop:
    (asked,) = parse_methods(method)
    own = make(asked.pop("name"), asked)
    model, _ = load_model(str(folder), precision=own.base_precision or "fp32", seed=0)
    torch.manual_seed(0)
    inject(model, own)
    train = encode(load_tokenizer(folder), task.train.texts, task.train.labels, 32)
    run = plan(epochs=8, batch_size=8, lr=1e-2, head_lr=1e-2, fast=False, **settings)
    if captures is not None:
        captures.model = model
    return Loop(model, own, train, run)


def losses(*given: Any, **settings: Any) -> tuple[list[float], Any]:
    loop = loop_of(*given, **settings)
    loop.try_widest()
    found = [row["loss"] for epoch in range(8) for row in loop.epoch(epoch)]
    return found, {name: p for name, p in loop.model.named_parameters() if p.requires_grad}


ASKED = [({"vera": "vera[rank=3]"}.get(name, name), 1) for name in METHODS]
CORRECTED = "lora-fa[correct_gradient=true]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "accumulation"),
    [*ASKED, (CORRECTED, 1), *((one, 2) for one in ("lora", CORRECTED, "vera[rank=3]", "dylora"))],
)
def test_a_training_by_graphs_is_the_training(
    method: str, accumulation: int, tiny_model: Path, tiny_task: Task, captures: Captures
) -> None:
    given: tuple[Any, ...] = (tiny_model, tiny_task, method)
    plain, trained = losses(*given, accumulation=accumulation)
    replayed, by_graphs = losses(*given, captures, accumulation=accumulation, graphs=True)
    assert replayed == plain
    assert all(torch.equal(p, by_graphs[name]) for name, p in trained.items())
    if METHODS[method.partition("[")[0]]().steps_alike:
        assert captures.replayed > 48 * accumulation / 2
        assert captures.shared == [None, *["shared"] * (len(captures.shared) - 1)]
    else:
        assert not captures.shared


def test_the_current_device_is_what_it_was_after_a_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To set a stream makes its device the current one, which only leaving `device` puts right."""
    done: list[str] = []

    @contextmanager
    def entered(name: str) -> Iterator[None]:
        done.append(f"enter {name}")
        yield
        done.append(f"leave {name}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None, pool=list))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "its own")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "outside")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: done.append(f"set {stream}"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered("device"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: entered("graph"))
    capture(lambda: torch.zeros(()), None, torch.device("cuda:1"))
    order = ["enter device", "enter graph", "leave graph", "set outside", "leave device"]
    assert done == order


def test_what_can_t_be_captured_shows_before_the_first_step(
    tiny_model: Path, tiny_task: Task, captures: Captures
) -> None:
    loop = loop_of(tiny_model, tiny_task, "lora", captures, graphs=True)
    loop.try_widest()
    assert (len(captures.shared), captures.replayed) == (1, 1)
    assert not any(p.grad.any() for p in loop.parameters if p.grad is not None)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_loop_that_is_over_is_gone(
    graphs: bool, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the collector's leisure: it holds the model, Adam's moments, and graphs' memory."""

    def nothing(work: object, shared: Any, place: torch.device) -> Any:  # keeps none of it
        return torch.zeros(()), lambda: None, shared

    monkeypatch.setattr("peftlab.training.graphs.capture", nothing)
    loop = loop_of(tiny_model, tiny_task, "lora", graphs=graphs)
    loop.try_widest()
    optimizer = weakref.ref(loop.optimizer)
    gc.collect()
    gc.disable()
    try:
        del loop
        assert optimizer() is None
    finally:
        gc.enable()


def batch(size: int, place: torch.device = CPU) -> Batch:
    ids = torch.ones(size, 4, dtype=torch.long, device=place)
    return Batch({"input_ids": ids}, torch.zeros(size, dtype=torch.long, device=place))


def test_a_shape_is_captured_when_it_was_met_often_enough(captures: Captures) -> None:
    seen: list[int] = []

    def run(given: Batch, weight: Tensor) -> Tensor:
        seen.append(len(given.labels))
        return weight * given.inputs["input_ids"].sum()

    graphs, one = Graphs(CPU), torch.ones(())
    for _ in range(CAPTURED_AT - 1):
        graphs(run, batch(2), one)
        graphs(run, batch(3), one)
    assert not captures.shared
    first = graphs(run, batch(2), 2 * one)
    twice = Batch({"input_ids": 5 * batch(2).inputs["input_ids"]}, batch(2).labels)
    second = graphs(run, twice, one)
    assert (first.item(), second.item()) == (16.0, 40.0)  # the first is kept when it is done again
    assert (len(captures.shared), captures.replayed) == (1, 2)
    assert seen == [2, 3] * (CAPTURED_AT - 1) + [2, 2]


def test_what_is_captured_lies_on_the_device(captures: Captures) -> None:
    place = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        graphs, weight = Graphs(place), torch.ones((), device=place)
        for _ in range(CAPTURED_AT + 1):
            loss = graphs(
                lambda own, weight: weight * own.inputs["input_ids"].sum(),
                batch(2, place),
                weight,
            )
        (own,) = graphs.recordings.values()
    assert {tensor.device for tensor in (*own.static_inputs, own.loss, loss)} == {place}


def test_a_pass_that_can_t_be_captured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Capture:
        """As torch.cuda.graph: what ends a capture is told by its end in other words."""

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("capture was invalidated")

    def refused(*_: Any) -> None:
        with Capture():
            raise kind("a copy from the host is not permitted")

    monkeypatch.setattr("peftlab.training.graphs.capture", refused)
    graphs, kind = Graphs(CPU), RuntimeError
    with pytest.raises(RequestError, match=r"\(a copy .* permitted\); train without --graphs"):
        for _ in range(CAPTURED_AT):
            graphs(lambda own, weight: weight, batch(2), torch.ones(()))


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
