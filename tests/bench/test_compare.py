"""The whole path on a tiny model: cells in processes of their own, records, resuming, failures."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import peftlab
from peftlab.api.export import _best_kept, export
from peftlab.api.request import resolve_request
from peftlab.bench import execute, outcome, run
from peftlab.bench.cell import Order
from peftlab.bench.grid import resolve
from peftlab.bench.process import make_plan
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.machine import environment
from peftlab.records.record import Failure, Record
from peftlab.records.sides import join
from peftlab.records.store import NEEDED_MIB, Store
from peftlab.tasks import Task
from sessions import FakeSession

pytestmark = pytest.mark.usefixtures("warm")

WORKER = "peftlab.bench.worker"
FAST = {"epochs": 1, "batch_size": 8}


def asked(model: Path, task: Task, **request: Any) -> dict[str, Any]:
    base = {"model": str(model), "tasks": [task], "methods": ["head", "lora"], "seeds": [0]}
    return base | {"training": FAST} | request


def go(out: Path, model: Path, task: Task, rerun: bool = False, **request: Any) -> list[Record]:
    grid = resolve(make_suite(**asked(model, task, **request)))
    return run_grid(grid, out, Observer(), rerun)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains: for what is asked of a folder, not of a training."""
    FakeSession.made = []
    monkeypatch.setattr(run, "Session", FakeSession)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_task: Task, warm: None
) -> tuple[Path, list[Record]]:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    methods = ["full", "head", "bitfit", "lora"]
    return out, go(out, tiny_model, tiny_task, methods=methods, seeds=[0, 1])


def test_every_cell_has_a_record_with_everything_measured(
    done: tuple[Path, list[Record]],
) -> None:
    out, records = done
    assert [r.status for r in records] == ["done"] * 8, [r.failure for r in records]
    for record in records:
        assert record.score is not None
        assert set(record.score) == {"accuracy", "f1", "macro_f1", "matthews"}
        assert record.n_trainable is not None
        assert record.n_trainable.head == 32 * 32 + 32 + 2 * 32 + 2
        assert record.speed is not None
        assert record.speed.examples_per_s is not None
        assert record.memory is not None
        assert record.total_s is not None
        assert record.total_s > (record.train_s or 0) + (record.eval_s or 0)
        assert record.environment.packages["torch"]
        stored = Record.model_validate_json((out / "records" / f"{record.cell}.json").read_bytes())
        assert stored == record
    if sys.platform == "linux":
        assert all(r.memory and r.memory.train_peak_mib for r in records)


def test_curves_and_predictions_lie_beside_the_record(
    done: tuple[Path, list[Record]], tiny_task: Task
) -> None:
    out, records = done
    for record in records:
        curve = (out / "curves" / f"{record.cell}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in curve]
        assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4, 5, 6]
        assert rows[-1] == {"epoch": 1, "score": record.score}
        lines = (out / "predictions" / f"{record.cell}.jsonl").read_text().splitlines()
        predictions = [json.loads(line) for line in lines]
        assert [p["index"] for p in predictions] == list(range(len(tiny_task.dev)))
        assert [p["label"] for p in predictions] == list(tiny_task.dev.labels)
        right = sum(p["label"] == p["prediction"] for p in predictions) / len(predictions)
        assert record.score is not None
        assert right == pytest.approx(record.score["accuracy"])
        assert all(p["prediction"] == p["logits"].index(max(p["logits"])) for p in predictions)


def test_nothing_temporary_is_left(done: tuple[Path, list[Record]]) -> None:
    out, _ = done
    assert not list(out.rglob("*.tmp"))
    ours = {".lock", "suite.json", "records", "curves", "predictions", "adapters"}
    assert {p.name for p in out.iterdir()} == ours
    assert not [path for path in (out / "adapters").iterdir() if path.name.startswith(".")]


def test_every_adapter_is_kept_and_of_whole_models_the_best(
    done: tuple[Path, list[Record]],
) -> None:
    out, records = done
    kept = {path.name for path in (out / "adapters").iterdir()}
    full = [record for record in records if record.method.name == "full"]
    best = max(full, key=lambda record: (record.score or {})["accuracy"])
    assert kept == {record.cell for record in records if record not in full or record is best}


def test_a_kept_adapter_is_the_model_of_its_record(
    done: tuple[Path, list[Record]], tiny_task: Task
) -> None:
    out, records = done
    for record in records:
        folder = out / "adapters" / record.cell
        if folder.is_dir():
            model, tokenizer = peftlab.load(folder)
            assert peftlab.evaluate(model, tokenizer, tiny_task) == record.score, record.cell


@pytest.mark.parametrize(("keep", "n_kept"), [("best", 2), ("none", 0)])
def test_fewer_adapters_are_kept_if_asked(
    keep: Any, n_kept: int, tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    grid = resolve(make_suite(**asked(tiny_model, tiny_task, seeds=[0, 1])))
    records = run_grid(grid, tmp_path, Observer(), keep=keep)
    kept = list((tmp_path / "adapters").glob("*"))
    assert len(kept) == n_kept
    for path in kept:
        rivals = [r for r in records if r.method.name in path.name]
        best = max(rivals, key=lambda r: ((r.score or {})["accuracy"], -r.seed))
        assert path.name == best.cell
    every = run_grid(grid, tmp_path / "all", Observer(), keep="all")
    assert len(list((tmp_path / "all" / "adapters").glob("*"))) == len(every)
    run_grid(grid, tmp_path / "all", Observer(), keep="best")  # and trains nothing
    assert len(list((tmp_path / "all" / "adapters").glob("*"))) == 2


def test_of_whole_models_one_is_kept_whatever_the_commands(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    kept = []
    for seed in (0, 2, 1):  # a higher one scores higher here
        go(tmp_path, tiny_model, tiny_task, methods=["full"], seeds=[seed])
        kept += [path.name.partition("-s")[2][0] for path in (tmp_path / "adapters").iterdir()]
    assert kept == ["0", "2", "2"]
    other = {"epochs": 2, "batch_size": 8}
    go(tmp_path, tiny_model, tiny_task, methods=["full"], seeds=[3], training=other)
    assert len(list((tmp_path / "adapters").iterdir())) == 2  # of another row


def test_what_a_killed_command_left_of_its_tasks_is_deleted(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    (tmp_path / "out" / "scratch").mkdir(parents=True)
    (tmp_path / "out" / "scratch" / "0.json").write_text("texts")
    go(tmp_path / "out", tiny_model, tiny_task, methods=["head"])
    assert not (tmp_path / "out" / "scratch").exists()


def test_a_task_lies_in_the_folder_while_its_cells_run(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    store = Store(tmp_path)
    with run.Session(store, {tiny_task.name: tiny_task}, Observer()) as session:
        session.start()
        assert Task.read(tmp_path / "scratch" / "0.json") == tiny_task
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "records" / "x.json").mkdir(parents=True)
    assert Store(tmp_path).read("x") is None


def test_whole_models_need_room_on_the_disk_before_any_is_trained(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of each row, and a new one beside it."""
    size = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    free = NEEDED_MIB * 2**20 + 1.5 * size
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(RequestError, match="MiB of free disk space"):
        go(tmp_path / "full", tiny_model, tiny_task, methods=["full"])
    assert not FakeSession.made
    go(tmp_path / "lora", tiny_model, tiny_task, methods=["lora"])
    assert len(FakeSession.made) == 1


def test_the_best_adapter_is_the_best_of_those_that_were_kept(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    """The best seed, the second here, kept none, so the first seed's is all there is."""
    one = asked(tiny_model, tiny_task, methods=["head"], seeds=[1])
    run_grid(resolve(make_suite(**one)), tmp_path, Observer(), keep="none")
    two = resolve(make_suite(**one | {"seeds": [0, 1]}))
    records = run_grid(two, tmp_path, Observer(), keep="best")
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [records[0].cell]


def test_a_method_of_many_ranks_is_not_answered_twice_at_its_own(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another path rounds otherwise: a record had two scores at one rank."""
    told: list[tuple[int, list[list[float]]]] = []
    grid = resolve(make_suite(**asked(tiny_model, tiny_task, methods=["dylora[rank=2]"])))
    tiny_task.write(tmp_path / "task.json")

    class Listening:
        def step(self, row: dict[str, Any], total: int) -> None: ...

        def epoch(self, epoch: int, outputs: list[list[float]]) -> None:
            told.append((0, list(outputs)))

        def rank(self, rank: int, outputs: list[list[float]]) -> None:
            told.append((rank, outputs))

    from peftlab.bench import process

    plain = process.compute_outputs
    monkeypatch.setattr(process, "compute_outputs", lambda *given: plain(*given) + 1)
    process.run_cell(Order(cell=grid.cells[0], task_file=tmp_path / "task.json"), Listening())
    (_, last), (one, other), (two, own) = told[-3:]
    assert (one, two) == (1, 2)
    assert own == last and other != last


def test_a_record_holds_what_only_some_methods_have(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """Every rank's score, the time of preparing, a base in four bits; batches taken in parts."""
    methods = [f"{name}[rank=2]" for name in ("dylora", "lora-drop", "qlora")]
    training = {**FAST, "accumulation": 3, "checkpointing": True}
    dylora, drop, qlora = go(tmp_path, tiny_model, tiny_task, methods=methods, training=training)
    assert [r.failure for r in (dylora, drop, qlora)] == [None] * 3
    assert dylora.score_by_rank is not None
    assert list(dylora.score_by_rank) == ["1", "2"]
    assert dylora.score_by_rank["2"] == dylora.score
    assert (drop.score_by_rank, qlora.score_by_rank) == (None, None)
    assert drop.prepare_s is not None
    assert drop.prepare_s > 0
    assert (dylora.prepare_s, qlora.prepare_s) == (None, None)
    assert qlora.precision == "nf4"
    assert (qlora.training["accumulation"], qlora.training["checkpointing"]) == (3, True)


def test_a_task_of_python_s_own_is_not_exported_unchecked(
    done: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="handed over in Python"):
        export(done[0], tmp_path / "best")


def test_the_adapters_of_joined_folders_are_where_they_were(
    done: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    other = shutil.copytree(done[0], tmp_path / "other")
    join([done[0], other], tmp_path / "both")
    store = Store(tmp_path / "both")
    with pytest.raises(RequestError, match=r"export it from the folder that it is of: .*other"):
        _best_kept(store, store.records()[:1])


def test_the_home_folder_is_known_of_where_a_comparison_goes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_request(None, {"model": str(tiny_model)}, out="~/runs").out == tmp_path / "runs"


def test_a_second_run_trains_nothing_and_gives_the_same_records(
    done: tuple[Path, list[Record]],
    tiny_model: Path,
    tiny_task: Task,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, records = done
    monkeypatch.setattr(run, "Worker", lambda: pytest.fail("a worker was started"))
    methods = ["full", "head", "bitfit", "lora"]
    again = go(out, tiny_model, tiny_task, methods=methods, seeds=[0, 1])
    assert again == records


def test_a_new_method_trains_only_its_own_cells(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    first = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    stamp = (tmp_path / "records" / f"{first[0].cell}.json").stat().st_mtime_ns
    both = go(tmp_path, tiny_model, tiny_task, methods=["head", "lora"])
    assert both[0] == first[0]
    assert both[1].status == "done"
    assert (tmp_path / "records" / f"{first[0].cell}.json").stat().st_mtime_ns == stamp


def test_the_same_cell_twice_gives_the_same_bits(
    done: tuple[Path, list[Record]], tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    out, records = done
    again = go(tmp_path, tiny_model, tiny_task, methods=["lora", "full"], seeds=[0])
    for record in again:
        assert record.cell in {r.cell for r in records}
        name = f"{record.cell}.jsonl"
        one = (out / "predictions" / name).read_text()
        assert (tmp_path / "predictions" / name).read_text() == one


def test_a_seed_decides_the_head_the_draws_and_the_order(
    done: tuple[Path, list[Record]], tiny_model: Path, tiny_task: Task
) -> None:
    out, records = done
    lora = [record.cell for record in records if record.method.name == "lora"]
    one, other = (peftlab.load(out / "adapters" / cell)[0].state_dict() for cell in lora)
    alike = [name for name in one if torch.equal(one[name], other[name])]
    assert not [name for name in alike if "lora" in name or name.startswith("classifier")]
    for cell in resolve(make_suite(**asked(tiny_model, tiny_task, seeds=[3, 4]))).cells:
        assert make_plan(cell, tiny_task, packed=False).seed == cell.seed


def test_a_cell_is_what_train_gives_in_one_s_own_hands(
    done: tuple[Path, list[Record]], tiny_model: Path, tiny_task: Task
) -> None:
    out, records = done
    cell = next(r for r in records if r.method.name == "lora" and r.seed == 1)
    model, tokenizer = peftlab.load_model(str(tiny_model), num_labels=2, seed=1)
    record = peftlab.train(model, tokenizer, tiny_task, "lora", epochs=1, batch_size=8, seed=1)
    kept = peftlab.load(out / "adapters" / cell.cell)[0].state_dict()
    own = model.state_dict()
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[name], kept[name]) for name in own)
    assert record.score == cell.score
    assert record.n_trainable == cell.n_trainable
    assert peftlab.evaluate(model, tokenizer, tiny_task) == record.score
    answers = peftlab.predict(model, tokenizer, ["the cat sees", "the dog likes"])
    assert len(answers) == 2
    assert set(answers) <= {"other", "cat"}
    with pytest.raises(peftlab.RequestError, match="all single texts or all pairs"):
        peftlab.predict(model, tokenizer, ["the cat sees", ("the dog", "a fish")])


def test_rerun_runs_done_cells_again(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    for rerun, n_made in ((False, 1), (False, 1), (True, 2)):
        go(tmp_path, tiny_model, tiny_task, methods=["head"], rerun=rerun)
        assert len(FakeSession.made) == n_made


def test_a_run_that_fails_takes_nothing_from_one_that_did_not(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(execute.Worker):
        def run(self, order: Order, told: outcome.CellScorer) -> outcome.Failed:
            failure = Failure(kind="MemoryError", message="no room")
            return outcome.Failed(failure=failure, environment=environment(1, "fp32"))

    (before,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    monkeypatch.setattr(run, "Worker", Broken)
    (failed,) = go(tmp_path, tiny_model, tiny_task, methods=["head"], rerun=True)
    assert failed.status == "failed"
    (after,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    assert after == before


def test_a_diverging_cell_fails_and_the_suite_goes_on(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    methods = [{"name": "full", "lr": 1e30}, "head"]
    full, head = go(tmp_path, tiny_model, tiny_task, methods=methods)
    assert full.status == "failed", full.score
    assert full.failure is not None
    assert full.failure.kind == "Diverged"
    assert "learning rate (1e+30 at its highest) is too high" in full.failure.message
    assert full.score is None
    assert head.status == "done"


@pytest.mark.parametrize("asked", [False, True])
def test_what_a_dead_worker_leaves_need_not_be_utf_8(
    asked: bool,
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    cold: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = "input(); " * asked  # for its order
    code = rf"import os; {waits}os.write(2, b'crash in \xff\n'); os._exit(3)"
    monkeypatch.setattr(execute, "COMMAND", [sys.executable, "-c", code])
    started = execute.Worker._start

    def dead(worker: execute.Worker) -> Any:  # and its words written, before it is asked for a cell
        process, reaper = started(worker)
        if not asked:
            reaper.join()
        return process, reaper

    monkeypatch.setattr(execute.Worker, "_start", dead)
    (record,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    assert record.failure is not None and "crash in" in record.failure.message


def test_a_training_whose_adapter_can_not_be_written_is_done(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "def save(*_): raise OSError(28, 'No space left on device')"
    code = (
        f"from peftlab.bench import process, worker\n{broken}\nprocess.save = save\nworker.main()"
    )
    monkeypatch.setattr(execute, "COMMAND", [sys.executable, "-c", code])
    (record,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    assert record.status == "done" and record.score is not None
    note = record.method.notes[-1]
    assert note == "its adapter was not kept: [Errno 28] No space left on device"
    assert not list(tmp_path.glob("adapters/*"))


def workers(caller: int) -> list[psutil.Process]:
    """Those of `compare` in the process `caller`."""
    found = []
    for child in psutil.Process(caller).children():
        with suppress(psutil.Error):  # it has ended
            found += [child] if WORKER in child.cmdline() else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("which", ["own", "parent"])
def test_a_killed_process_fails_its_cell_alone_and_is_tried_again(
    which: str, tmp_path: Path, tiny_model: Path, tiny_task: Task, kept_worker: Any
) -> None:
    """From outside, as the kernel does out of memory: the cell's own, or its warm parent."""
    killed = []

    class Killer(Observer):
        def step(self, cell: Any, row: dict[str, Any], total: int) -> None:
            if cell.method.name == "head" and not killed:
                killed.append(cell.name)
                parent = psutil.Process(kept_worker.process.pid)
                (own,) = parent.children()
                {"own": own, "parent": parent}[which].kill()

    grid = resolve(
        make_suite(**asked(tiny_model, tiny_task, training={"epochs": 2, "batch_size": 2}))
    )  # behind the first epoch a cell waits for its score
    head, lora = run_grid(grid, tmp_path, Killer())
    assert head.status == "failed"
    assert head.failure is not None
    assert "most likely the machine ran out of memory" in head.failure.message
    assert lora.status == "done"
    head, lora = run_grid(grid, tmp_path, Observer())
    assert head.status == "done"


def test_a_damaged_record_is_kept_aside_and_its_cell_runs_again(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: None
) -> None:
    (record,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    path = tmp_path / "records" / f"{record.cell}.json"
    path.write_text("half of a rec")
    (again,) = go(tmp_path, tiny_model, tiny_task, methods=["head"])
    assert again.score == record.score
    assert Record.model_validate_json(path.read_text()) == again
    assert path.with_name(f"{path.name}.unreadable").read_text() == "half of a rec"


def test_a_cell_waits_while_its_answers_are_scored(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its next steps would be timed beside other work."""
    score = Task.score

    def slow(task: Task, answers: Any) -> dict[str, float]:
        time.sleep(0.5)
        return score(task, answers)

    monkeypatch.setattr(Task, "score", slow)
    monkeypatch.setattr(outcome, "score_warnings", lambda *_: [])
    (record,) = go(tmp_path, tiny_model, tiny_task, methods=["head"], training={"epochs": 3})
    assert record.eval_s > 1.5
    assert record.total_s > record.train_s + record.eval_s  # the last one too, and none is training


def test_what_a_killed_cell_has_left_half_said_is_no_event() -> None:
    lines = ['{"event": "step", "row": {"lo', "", '{"event": "end", "exit": -9}']
    told = SimpleNamespace(process=SimpleNamespace(stdout=[f"{line}\n" for line in lines]))
    assert list(execute.Worker._events(told)) == [{"event": "end", "exit": -9}]


def test_where_fork_is_unsafe_a_fresh_process_runs_the_cell(
    done: tuple[Path, list[Record]],
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    monkeypatch: pytest.MonkeyPatch,
    cold: None,
) -> None:
    """And what a library does as that process exits can't undo the result."""
    crash = "atexit.register(lambda: os.kill(os.getpid(), 11)) if '--once' in sys.orig_argv else 0"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import atexit, os, sys\n{crash}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    code = "from peftlab.bench import worker; worker.CAN_FORK = False; worker.main()"
    monkeypatch.setattr(execute, "COMMAND", [sys.executable, "-c", code])
    (record,) = go(tmp_path / "out", tiny_model, tiny_task, methods=["head"])
    forked = next(r for r in done[1] if r.cell == record.cell)
    assert record.status == "done", record.failure
    assert record.score == forked.score


FORK_WITHOUT_CUDA = """
import json
import sys
from peftlab.bench import worker

def fresh(order, events):
    print(json.dumps({"event": "note", "line": "fresh"}), file=events)
    return 0

worker._in_fresh_process = fresh
worker._warm = lambda: None
worker._import_architecture = lambda order: None
worker.run_order = lambda order, events, wait: events.write('{"event": "note", "line": "fork"}')
worker.main()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the fork can use CUDA")
@pytest.mark.parametrize(("device", "where"), [("cuda", "fresh"), ("cpu", "fork")])
def test_a_fork_that_can_not_use_cuda_leaves_the_cell_to_a_fresh_process(
    device: str, where: str
) -> None:
    """As where an import of torchao's has asked for the card's capability before the fork."""
    order = json.dumps({"cell": {"training": {"device": device}}})
    command = [sys.executable, "-c", FORK_WITHOUT_CUDA]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        print(order, file=process.stdin, flush=True)
        events = []
        while not events or events[-1]["event"] != "end":
            line = process.stdout.readline()
            events += [json.loads(line)] if line.strip() else []
        process.stdin.close()
    assert events == [{"event": "note", "line": where}, {"event": "end", "exit": 0}]


SCRIPT = """
import sys, peftlab
from pathlib import Path
from peftlab.tasks import Task
task = Task.read(Path({task!r}))
records = peftlab.compare(
    model={model!r}, tasks=[task], methods=["head", "lora"], seeds=[0], out={out!r},
    epochs={epochs}, batch_size={batch},
)
print(len(records), *(record.status for record in records))
"""


def _script(tmp_path: Path, model: Path, task: Task, epochs: int = 1, batch: int = 8) -> Path:
    task.write(tmp_path / "task.json")
    text = SCRIPT.format(
        task=str(tmp_path / "task.json"),
        model=str(model),
        out=str(tmp_path / "out"),
        epochs=epochs,
        batch=batch,
    )
    (tmp_path / "script.py").write_text(text)
    return tmp_path / "script.py"


@pytest.mark.slow
def test_compare_works_where_there_is_no_main_file(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """As in a notebook: the code comes from a string and an event loop is running."""
    code = _script(tmp_path, tiny_model, tiny_task).read_text()
    cell = f"import asyncio\nasync def cell():\n    exec({code!r}, {{}})\nasyncio.run(cell())"
    command = [sys.executable, "-c", cell]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == "2 done done\n", run.stderr


@pytest.mark.slow
def test_when_the_caller_is_killed_its_cells_die_too(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    script = _script(tmp_path, tiny_model, tiny_task, epochs=5000, batch=1)
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True) as caller:
        assert caller.stderr is not None
        for line in caller.stderr:
            if "epoch 1:" in line:
                break
        (parent,) = workers(caller.pid)
        family = [parent, *parent.children()]
        assert len(family) == 2
        caller.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in alive)  # whom nobody waits for


def test_texts_that_lie_in_the_folder_meanwhile_are_for_their_owner_alone(
    tmp_path: Path, tiny_task: Task
) -> None:
    with run.Session(Store(tmp_path), {tiny_task.name: tiny_task}, Observer()) as session:
        session.start()
        assert stat.S_IMODE((tmp_path / "scratch").stat().st_mode) == 0o700
