"""A comparison that is stopped within a training, and the next one, which goes on from there."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console
from safetensors import safe_open

from conftest import KeptWorker
from peftlab.api.train import resumable_folder, train_folder
from peftlab.bench import execute, run, speed
from peftlab.bench.cell import Cell, Order
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.outcome import Failed
from peftlab.bench.own_method import OwnMethod
from peftlab.bench.process import _made_by
from peftlab.bench.resume import done_cells
from peftlab.bench.run import Observer, Session, run_grid
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.machine import environment, own_code
from peftlab.records.record import Environment, Failure, Record
from peftlab.records.store import Store
from peftlab.tasks import Task
from peftlab.training import Checkpoint
from sessions import FakeSession

pytestmark = pytest.mark.usefixtures("warm")

WRITING = """
from pathlib import Path
from peftlab.bench import process, worker
from peftlab.training import checkpoint

checkpoint.MIN_INTERVAL_S, checkpoint.WRITE_SHARE = 0.0, float("inf")  # after each step
save = process.save

def save_if_there_is_room(*given):
    if Path({full!r}).exists():
        raise OSError(28, "No space left on device")
    save(*given)

process.save = save_if_there_is_room
worker.main()
"""
KILLED_AT = 40


@pytest.fixture
def grid(tiny_model: Path, tiny_task: Task) -> Grid:
    training = {"epochs": 5, "batch_size": 2}  # 120 steps
    asked = {"model": str(tiny_model), "tasks": [tiny_task], "methods": ["lora"], "seeds": [0]}
    return resolve(make_suite(**asked, training=training))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While there is this file, the worker `writing` can't save an adapter."""
    return tmp_path_factory.mktemp("disk") / "full"


@pytest.fixture(scope="module")
def writing(full: Path, warm: None) -> Iterator[KeptWorker]:
    """A worker whose cells keep what they have come to after each step."""
    worker = KeptWorker()
    with pytest.MonkeyPatch.context() as patch:
        code = WRITING.format(full=str(full))
        patch.setattr(execute, "COMMAND", [sys.executable, "-c", code])
        patch.setattr(run, "Worker", worker)
        yield worker
    worker.end()


def losses(out: Path, record: Record) -> list[tuple[int, float]]:
    lines = (out / "curves" / f"{record.cell}.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines) if "step" in row]


def test_a_killed_cell_goes_on_and_its_files_are_those_of_one_that_was_not(
    grid: Grid, tmp_path: Path, writing: KeptWorker
) -> None:
    class Watch(Observer):
        def __init__(self) -> None:
            self.first = 0
            self.notes: list[str] = []

        def note(self, line: str) -> None:
            if "goes on" in line:
                self.notes.append(line)

        def step(self, cell: Any, row: dict[str, Any], total: int) -> None:
            self.first = self.first or row["step"]

    class Killer(Observer):
        def step(self, cell: Any, row: dict[str, Any], total: int) -> None:
            if row["step"] >= KILLED_AT:
                for own in psutil.Process(writing.process.pid).children():
                    own.kill()

    out, store, watch = tmp_path / "out", Store(tmp_path / "out"), Watch()
    (killed,) = run_grid(grid, out, Killer())
    assert killed.failure is not None and killed.failure.kind == "ProcessDied"
    add_seconds(store.checkpoint(killed.cell))
    (record,) = run_grid(grid, out, watch)
    assert record.status == "done", record.failure
    assert watch.first >= KILLED_AT - 1  # a step is told first and kept then
    assert watch.notes == [f"goes on after step {watch.first} of 120, where it was stopped"]
    assert f"stopped, and went on after step {watch.first} of 120" in record.method.notes
    assert not (out / "checkpoints").exists()

    (whole,) = run_grid(grid, tmp_path / "whole", Observer())
    assert whole.score == record.score and whole.best == record.best
    assert losses(out, record) == losses(tmp_path / "whole", whole)
    predictions = [Store(one).predictions(record.cell) for one in (out, tmp_path / "whole")]
    assert predictions[0].read_text() == predictions[1].read_text()
    assert record.train_s > 1000 and record.eval_s > 500
    assert record.total_s > record.train_s + record.eval_s
    assert "the model does not compute with pooler, so training leaves it" in record.method.notes


def test_train_goes_on_within_its_training_also_where_the_adapter_was_lost(
    grid: Grid, tmp_path: Path, full: Path, writing: KeptWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the scores were kept, and hours of training were not."""
    out, notes = tmp_path / "mine", []

    class Shown(Observer):
        def note(self, line: str) -> None:
            notes.append(line)

    monkeypatch.setattr("peftlab.api.train.observer", lambda *_: Shown())
    full.write_text("")
    with pytest.raises(RequestError, match="its adapter was not kept") as refused:
        train_folder(grid, out, Console(quiet=True))
    full.unlink()
    kept = resumable_folder(grid, out)
    assert kept is not None and str(kept) in str(refused.value)
    (trained,) = grid.cells
    set_aside = kept / "records" / f"{trained.name}.json.unreadable"
    set_aside.write_text("")  # a record of an earlier version
    record = train_folder(grid, out, Console(quiet=True))
    assert "goes on after step 120 of 120, where it was stopped" in notes
    assert (out / "adapter_model.safetensors").exists() and not kept.exists()
    assert Record.model_validate_json((out / "record.json").read_bytes()) == record


def test_compare_makes_an_adapter_that_was_lost_from_where_its_training_ended(
    grid: Grid, tmp_path: Path, full: Path, writing: KeptWorker
) -> None:
    class Steps(Observer):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
            self.steps.append(row["step"])

    out, store, again = tmp_path / "out", Store(tmp_path / "out"), Steps()
    full.write_text("")
    (first,) = run_grid(grid, out, Observer())
    full.unlink()
    assert first.status == "done" and store.lost_adapter(first.cell)
    assert done_cells(store, grid.cells) and not done_cells(store, grid.cells, keeps_adapters=True)
    (record,) = run_grid(grid, out, again)
    assert set(again.steps) <= {120} and record.score == first.score
    assert store.adapter(record.cell).is_dir() and not store.checkpoint(record.cell).exists()
    assert not any("not kept" in note for note in record.method.notes)


def add_seconds(kept: Path) -> None:
    """Make the training before the stop so long that what comes behind it is nothing to it."""
    with safe_open(kept, "pt") as file:
        checkpoint = Checkpoint(kept, json.loads(file.metadata()["state"])["made_by"])
    state = checkpoint.read()
    assert state is not None
    state["loop"]["elapsed_s"] += 1000
    state["eval_s"] += 500
    state["loop"]["unused"] = ["pooler"]
    checkpoint.write(state)


def ends(cell: Cell, grid: Grid, out: Path, kind: str, **asked: Any) -> Order:
    """What the worker is asked for by a session; the cell fails there, its training kept."""
    session = Session(Store(out), grid.tasks, Observer())
    orders: list[Order] = []

    def fail(order: Order, told: object) -> Failed:
        orders.append(order)
        if order.checkpoint is not None:
            order.checkpoint.parent.mkdir(parents=True)
            order.checkpoint.write_text("")
        failure = Failure(kind=kind, message="it was")
        return Failed(failure=failure, environment=environment(1, "fp32"))

    session.worker = SimpleNamespace(run=fail)  # type: ignore[assignment]
    session.files = {name: out / name for name in grid.tasks}
    session.run(cell, keep_adapter=True, **asked)
    return orders[0]


def test_what_would_end_the_same_again_is_not_kept(grid: Grid, tmp_path: Path) -> None:
    (cell,) = grid.cells
    for kind, stays in (("ProcessDied", True), ("RuntimeError", True), ("Diverged", False)):
        order = ends(cell, grid, tmp_path / kind, kind)
        assert order.checkpoint == Store(tmp_path / kind).checkpoint(cell.name)
        assert order.checkpoint.exists() == stays, kind


def test_a_method_of_one_s_own_and_a_round_for_speed_begin_anew(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = grid.cells
    own = cell.model_copy(update={"own": OwnMethod.model_construct()})
    assert ends(own, grid, tmp_path / "own", "ProcessDied").checkpoint is None
    assert ends(cell, grid, tmp_path / "speed", "Stopped", goes_on=False).checkpoint is None
    asked = []

    class Session(FakeSession):
        def run(self, cell: Cell, keep_adapter: bool, goes_on: bool = True) -> Record:
            asked.append(goes_on)
            return super().run(cell, keep_adapter)

    monkeypatch.setattr(speed, "Session", Session)
    speed.measure_speed(grid, 1, tmp_path / "rounds", Observer())
    assert asked == [False]


def test_rerun_begins_anew(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Session", FakeSession)
    kept = Store(tmp_path).checkpoint(grid.cells[0].name)
    kept.parent.mkdir()
    kept.write_text("")
    half = kept.with_name(".tmpOzIwGV")  # safetensors' own
    half.write_text("")
    run_grid(grid, tmp_path, Observer())
    assert kept.exists() and not half.exists()
    run_grid(grid, tmp_path, Observer())  # it is done: a kill came before the file was deleted
    assert not kept.parent.exists()
    kept.parent.mkdir()
    kept.write_text("")
    run_grid(grid, tmp_path, Observer(), rerun=True)
    assert not kept.parent.exists()


def test_the_request_finds_its_model_from_any_folder(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative one is a name of the hub's from elsewhere."""
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.chdir(tiny_model.parent)
    asked = {"model": f"./{tiny_model.name}", "tasks": [tiny_task], "methods": ["head"]}
    run_grid(resolve(make_suite(**asked, seeds=[0])), tmp_path, Observer())
    assert Store(tmp_path).suites()[0]["model"] == str(tiny_model.resolve())


def test_what_can_t_be_deleted_hinders_nothing(grid: Grid, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.checkpoint("cell").mkdir(parents=True)
    store.forget_checkpoint("cell")
    (tmp_path / "other").write_text("")
    store = Store(tmp_path / "other")
    store.forget_checkpoint("cell")


def test_only_where_code_and_machine_are_the_same_does_one_go_on(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = grid.cells
    here = _made_by(cell, "torch")
    assert json.loads(json.dumps(here)) == here
    left_out = {"commit", "dirty", "spin_count"}  # the code says more; how busy it was, no bit
    assert here.keys() == (Environment.model_fields.keys() - left_out) | {"cell", "code", "vectors"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert _made_by(cell, "torch") == here
    assert _made_by(cell, "dropout.cpp") != here
    assert _made_by(cell.model_copy(update={"seed": 1}), "torch") != here
    for name, value in (
        ("peftlab.machine.processor", "other"),
        ("peftlab.machine.packages", {"torch": "other"}),
        ("peftlab.bench.process.own_code", "other"),
        ("torch.backends.cpu.get_cpu_capability", "DEFAULT"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, lambda value=value: value)
            assert _made_by(cell, "torch") != here, name


def test_the_code_is_every_file_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftlab.machine.__file__", str(tmp_path / "machine.py"))
    seen = set()
    for file, text in (("a.py", ""), ("a.py", "1"), ("engine/b.cpp", ""), ("engine/b.txt", "1")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
        seen.add(own_code.__wrapped__())
    assert len(seen) == 3


def test_train_begins_anew_where_neither_adapter_nor_checkpoint_could_be_written(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the record would count as done, and the same command fail for ever."""
    monkeypatch.setattr(run, "Session", FakeSession)
    monkeypatch.setattr("peftlab.api.train._copy_files", lambda *_: None)
    original, console = FakeSession.run, Console(file=io.StringIO())

    def full(self: FakeSession, cell: Cell, keep_adapter: bool, goes_on: bool = True) -> Record:
        return original(self, cell, keep_adapter=False)

    with monkeypatch.context() as patch:
        patch.setattr(FakeSession, "run", full)
        with pytest.raises(RequestError, match="the same command takes it up"):
            train_folder(grid, tmp_path / "model", console, quiet=True)
    FakeSession.made.clear()
    train_folder(grid, tmp_path / "model", console, quiet=True)
    assert len(FakeSession.made) == 1 and (tmp_path / "model").is_dir()
