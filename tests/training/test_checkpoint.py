"""A training that was stopped goes on, and gives the bits of one that never was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from peftlab import atomic
from peftlab.layers import adapter_state
from peftlab.methods import METHODS, Prepared, inject, injected
from peftlab.models import load_model, load_tokenizer
from peftlab.tasks import Task
from peftlab.training import Checkpoint, FitResult, Loop, MemoryMeter, Rehearsal, encode, fit
from peftlab.training import checkpoint as module
from plans import changed, plan

PLAN = plan(epochs=2, batch_size=8, lr=1e-2, head_lr=1e-2, warmup=0.1)  # 12 steps
CHECKED = 3  # after so many of them the guard has looked


class Stopped(Exception):
    pass


class Run:
    """One process's part of a training."""

    def __init__(self) -> None:
        self.fitted = FitResult()
        self.rows: list[dict[str, Any]] = []
        self.answers: dict[int, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}

    @property
    def losses(self) -> list[tuple[int, float, float]]:
        return [(r["step"], r["loss"], r["lr"]) for r in self.fitted.curve if "step" in r]


Go = Callable[..., Run]


@pytest.fixture
def go(tiny_model: Path, tiny_task: Task) -> Go:
    tokenizer = load_tokenizer(tiny_model)
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    dev = encode(tokenizer, tiny_task.dev.texts, tiny_task.dev.labels, 32)

    def run(
        name: str = "lora",
        kept: Checkpoint | None = None,
        stop: int | None = None,
        precision: str | None = None,
        **changes: Any,
    ) -> Run:
        """Train; the process ends while it tells of the step `stop`."""
        asked, done = changed(PLAN, **changes), Run()
        held = precision or METHODS[name].base_precision or "fp32"
        model, _ = load_model(str(tiny_model), precision=held, seed=asked.seed)
        torch.manual_seed(asked.seed)
        inject(model, name)
        method = injected(model)
        assert method is not None
        if isinstance(method, Prepared):
            method.prepare(model, Rehearsal(method, train, asked))

        def on_row(row: dict[str, Any], total: int) -> None:
            done.rows.append(row)
            if row["step"] == stop:
                raise Stopped

        loop = Loop(model, method, train, asked)
        done.fitted = fit(loop, dev, on_row, done.answers.__setitem__, MemoryMeter(), kept)
        done.tensors = adapter_state(model)
        return done

    return run


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Checkpoint]:
    """The file as each process opens it; it is written after each step."""
    monkeypatch.setattr(module, "MIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "WRITE_SHARE", float("inf"))
    return lambda: Checkpoint(tmp_path / "checkpoints" / "cell.safetensors", {"commit": "a"})


def check_same(one: Run, other: Run) -> None:
    assert one.losses == other.losses
    assert one.answers.keys() == other.answers.keys()
    assert all(torch.equal(answer, other.answers[n]) for n, answer in one.answers.items())
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_training_goes_on_to_the_same_bits(
    name: str, go: Go, kept: Callable[[], Checkpoint]
) -> None:
    whole = go(name)
    with pytest.raises(Stopped):
        go(name, kept(), stop=9)
    last = go(name, kept())
    assert [row["step"] for row in last.rows] == [8, 9, 10, 11, 12]  # of the first it only tells
    check_same(last, whole)


def test_one_that_is_stopped_again_goes_on_again(go: Go, kept: Callable[[], Checkpoint]) -> None:
    whole = go()
    for stop in (5, 9):
        with pytest.raises(Stopped):
            go(kept=kept(), stop=stop)
    last = go(kept=kept())
    assert last.fitted.stops == [4, 8]
    assert "stopped, and went on after step 4, 8 of 12" in last.fitted.notes
    check_same(last, whole)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lora", {"precision": "bf16"}),
        ("lora", {"precision": "int8"}),
        ("dora", {"accumulation": 2}),
        ("lora", {"checkpointing": True}),
        ("lora", {"fast": False}),
        ("lora", {"seed": 3}),
    ],
)
def test_so_it_does_at_other_settings(
    name: str, changes: dict[str, Any], go: Go, kept: Callable[[], Checkpoint]
) -> None:
    whole = go(name, **changes)
    with pytest.raises(Stopped):
        go(name, kept(), stop=6, **changes)
    check_same(go(name, kept(), **changes), whole)


def test_a_stop_between_an_epoch_s_last_step_and_its_answers_loses_neither(
    go: Go, kept: Callable[[], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(
            "peftlab.training.loop.compute_outputs", lambda *_: (_ for _ in ()).throw(Stopped)
        )
        go(kept=kept())
    last = go(kept=kept())
    assert [row["step"] for row in last.rows] == [6, *range(7, 13)]
    check_same(last, whole)


def test_what_was_measured_before_the_stop_counts(
    go: Go, kept: Callable[[], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryMeter, "_peak", lambda self: 5000.0)
    with pytest.raises(Stopped):
        go(kept=kept(), stop=8)
    state = kept().read()
    assert state is not None
    before = state["eval_s"]
    resets: list[MemoryMeter] = []

    def reset(meter: MemoryMeter) -> bool:
        resets.append(meter)
        return True

    monkeypatch.setattr(MemoryMeter, "_reset", reset)
    # putting it back takes more than training
    monkeypatch.setattr(MemoryMeter, "_peak", lambda _: 9000.0 if len(resets) == 1 else 3000.0)
    fitted = go(kept=kept()).fitted
    assert fitted.memory is not None and fitted.memory.peak_mib == 5000
    assert len(fitted.speed.seconds) == 5  # since then alone: it may be busier, or less
    steps = [row for row in fitted.curve if "step" in row]
    assert fitted.train_s == pytest.approx(steps[-1]["time_s"], abs=1e-3)
    assert steps[6]["time_s"] < steps[7]["time_s"]
    assert fitted.earlier_s == pytest.approx(steps[6]["time_s"] + before, abs=1e-3)
    assert fitted.eval_s > before > 0
    assert fitted.parts == 1.0


def test_what_was_read_is_not_held_while_it_trains(go: Go, kept: Callable[[], Checkpoint]) -> None:
    """Of full fine-tuning the copies of what trains are as large as the model."""

    class Reads(Checkpoint):
        def read(self) -> dict[str, Any] | None:
            state = super().read()
            assert state is not None
            read.extend(weakref.ref(tensor) for tensor in state["loop"]["model"].values())
            return state

        def is_due(self) -> bool:
            held.append(sum(one() is not None for one in read))
            return False

    read: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    with pytest.raises(Stopped):
        go("full", kept(), stop=8)
    go("full", Reads(kept().path, kept().made_by))
    assert len(read) > 10
    assert held == [0] * 5


def test_nothing_is_kept_before_the_guard_has_looked(
    go: Go, kept: Callable[[], Checkpoint]
) -> None:
    """Else a training that goes on would not be looked at."""
    with pytest.raises(Stopped):
        go(kept=kept(), stop=CHECKED)
    assert kept().read() is None
    with pytest.raises(Stopped):
        go(kept=kept(), stop=CHECKED + 1)
    state = kept().read()
    assert state is not None and state["loop"]["index"] == CHECKED


def test_another_s_file_and_a_damaged_one_are_not_taken_up(
    go: Go, kept: Callable[[], Checkpoint]
) -> None:
    with pytest.raises(Stopped):
        go(kept=kept(), stop=8)
    path = kept().path
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing half written
    other = Checkpoint(path, {"commit": "b"})
    assert other.read() is None and kept().read() is not None
    path.write_bytes(path.read_bytes()[:-100])
    assert kept().read() is None
    path.write_bytes(b"")
    assert kept().read() is None
    for metadata in (None, {"state": "{}"}, {"state": "[" * 100_000 + "]" * 100_000}):
        save_file({}, path, metadata)
        assert kept().read() is None
    path.write_text("no such file")
    assert kept().read() is None
    last = go(kept=kept())
    assert last.rows[0]["step"] == 1 and last.fitted.stops == []


@pytest.mark.parametrize(
    "part",
    [("loop", "losses"), ("loop", "model", "classifier.bias"), ("loop", "model")],
)
def test_what_can_t_be_put_back_fails_once_and_the_next_training_begins_anew(
    part: tuple[str, ...], go: Go, kept: Callable[[], Checkpoint]
) -> None:
    with pytest.raises(Stopped):
        go(kept=kept(), stop=8)
    state = kept().read()
    inner: Any = state
    assert state is not None
    for name in part[:-1]:
        inner = inner[name]
    if part[-1] == "classifier.bias":
        inner[part[-1]] = torch.zeros(1)  # which a copy would stretch
    else:
        del inner[part[-1]]
    kept().write(state)
    with pytest.raises((KeyError, ValueError)):
        go(kept=kept())
    assert go(kept=kept()).rows[0]["step"] == 1


def test_a_full_disk_is_told_and_hinders_nothing(
    go: Go, kept: Callable[[], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is due it is tried again, since a disk may be freed."""
    errors: list[Exception] = [OSError(28, "No space left")] * 3 + [TypeError("no JSON")]

    def full(path: Path, write: object) -> None:
        if errors:
            raise errors.pop()
        kept_at.append(path)

    told: list[str] = []
    kept_at: list[Path] = []
    whole, one = go(), kept()
    one.tell = told.append
    monkeypatch.setattr(atomic, "replace_file", full)
    done = go(kept=one)
    assert told.pop(0) == "were it stopped now, it could not go on from here: no JSON"
    assert len(kept_at) == 6 and one.fault is None
    check_same(done, whole)
    assert told == ["were it stopped now, it could not go on from here: [Errno 28] No space left"]


def test_room_is_left_for_what_comes_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"model": torch.zeros(2**18)}  # 1 MiB
    for free, fault in (
        (2 * 2**20, None),
        (2 * 2**20 - 1, "less than 2 MiB of disk space are free, twice what it takes"),
    ):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        one = Checkpoint(tmp_path / f"{free}.safetensors", {})
        one.write(state)
        assert one.fault == fault
        assert (one.read() is not None) == (fault is None)


def test_it_is_written_once_a_minute_and_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, takes = [0.0], iter([0.1, 5.0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def write(path: Path, write: object) -> None:
        now[0] += next(takes)

    monkeypatch.setattr(atomic, "replace_file", write)
    monkeypatch.setattr(Checkpoint, "_check_room", lambda *_: None)
    one = Checkpoint(tmp_path / "cell.safetensors", {})
    one.start(5_000_000)
    assert one.due == 60
    one.start(1_000_000_000)  # the first one, too
    assert one.due == 500
    for wait in (60, 500):
        assert not one.is_due()
        now[0] = one.due
        assert one.is_due()
        one.write({"index": 1})
        assert one.due == pytest.approx(now[0] + wait)


def test_numbers_and_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    one = Checkpoint(tmp_path / "cell.safetensors", {"torch": "2"})
    both = torch.arange(6.0).reshape(2, 3)
    state = {
        "losses": [0.1, 1e-300, float("inf")],
        "tensor": {"tensor": torch.tensor(3, dtype=torch.int64)},
        "answers": [both.t(), both.bfloat16()],
        "none": None,
    }
    one.write(state)
    again = one.read()
    assert again is not None
    assert again["losses"] == state["losses"] and again["none"] is None
    assert torch.equal(again["tensor"]["tensor"], torch.tensor(3))
    assert torch.equal(again["answers"][0], both.t())
    assert again["answers"][1].dtype == torch.bfloat16


def test_what_the_guard_found_unused_is_told_after_a_stop_too(
    go: Go, kept: Callable[[], Checkpoint]
) -> None:
    """It has looked before the first state is written, and does not look again."""
    with pytest.raises(Stopped):
        go(kept=kept(), stop=8)
    state = kept().read()
    assert state is not None and state["loop"]["unused"] == []
    state["loop"]["unused"] = ["bert.spare.weight"]
    kept().write(state)
    notes = go(kept=kept()).fitted.notes
    assert "the model does not compute with bert.spare.weight, so training leaves it" in notes


def test_the_rows_of_a_curve_are_at_the_same_epochs_after_a_stop(
    go: Go, kept: Callable[[], Checkpoint]
) -> None:
    """The second stop finds in them where the first epoch ended."""
    whole = [row["epoch"] for row in go().fitted.curve]
    for stop in (5, 9):
        with pytest.raises(Stopped):
            go(kept=kept(), stop=stop)
    assert [row["epoch"] for row in go(kept=kept()).fitted.curve] == pytest.approx(whole)
