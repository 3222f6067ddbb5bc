"""What a comparison leaves in its folder while it runs, and what `watch` makes of it."""

from __future__ import annotations

import dataclasses
import io
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from peftlab.api import live
from peftlab.api.compare import run
from peftlab.api.request import ResolvedRequest
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.run import Observer, write_suite
from peftlab.bench.suite import make_suite
from peftlab.cli import app
from peftlab.errors import RequestError
from peftlab.records.lock import HOLDER, locked
from peftlab.records.now import FILE, Now, clear_now, read_now, write_now
from peftlab.records.record import Failure
from peftlab.records.store import Store
from peftlab.report.watching import view
from peftlab.tasks import Task
from sessions import FakeSession


@pytest.fixture
def grid(tiny_model: Path, tiny_task: Task) -> Grid:
    return resolve(
        make_suite(model=str(tiny_model), tasks=[tiny_task], methods=["head", "lora"], seeds=[0, 1])
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Now | None, str, bool]]:
    """What lies in the folder, and what is shown, whenever a cell has just ended."""
    found: list[tuple[Now | None, str, bool]] = []

    class Watched(FakeSession):
        def run(self, cell, keep_adapter, goes_on=True):  # type: ignore[no-untyped-def]
            record = super().run(cell, keep_adapter)
            out = tmp_path / "out"
            page = (out / "report" / "index.html").is_file()
            found.append((read_now(out), shown(out), page))
            return record

    FakeSession.made = []
    monkeypatch.setattr("peftlab.bench.run.Session", Watched)
    return found


def shown(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(view(folder).shown)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def console() -> Console:
    return Console(file=io.StringIO())


def test_while_it_runs_the_folder_says_what_and_afterwards_nothing(
    grid: Grid, seen: list[tuple[Now | None, str, bool]], tmp_path: Path
) -> None:
    run(ResolvedRequest(grid, tmp_path / "out"), console())
    titles = [now.title for now, _, _ in seen if now]
    assert titles == [cell.title for cell in grid.cells]
    assert "1 of 4 cells done" in seen[0][1] and "running: tiny · head · seed 0" in seen[0][1]
    assert "about 3 seconds left" in seen[0][1]  # each of FakeSession's takes one
    assert not (tmp_path / "out" / FILE).exists()
    last = view(tmp_path / "out")
    assert last.finished and "4 of 4 cells done" in shown(tmp_path / "out")
    assert not any(page for _, _, page in seen)


def test_a_command_is_not_over_before_its_last_part(
    grid: Grid,
    seen: list[tuple[Now | None, str, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`watch` took the end of the trials, or of the cells, for the end of all that was asked."""
    between: list[bool] = []
    monkeypatch.setattr(
        "peftlab.api.compare.measure_speed",
        lambda grid, rounds, out, progress: between.append(view(out).finished),
    )
    run(ResolvedRequest(grid, tmp_path / "out"), console(), repeat_speed=2)
    assert between == [False]
    assert view(tmp_path / "out").finished


def test_the_page_is_kept_current_where_that_is_asked(
    grid: Grid,
    seen: list[tuple[Now | None, str, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "FIRST_S", 0.0)
    run(ResolvedRequest(grid, tmp_path / "out"), console(), page=True)
    assert all(page for _, _, page in seen)
    # it took its share of the time after the first cell: the others ended too soon after that
    assert '"n_cells": 1' in (tmp_path / "out" / "report" / "table.json").read_text()


def test_steps_scores_and_memory_are_written_every_other_second(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two seconds that went by, whatever the machine's clock says meanwhile."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    (tmp_path / "records").mkdir()
    command = ExitStack()
    progress = live.Live(Observer(), tmp_path, command, page=False)
    cell = grid.cells[0]

    def step(number: int, after_s: float) -> Now:
        clock[0] += after_s
        row = {"step": number, "epoch": 0.1, "loss": 0.5 / number, "memory_mib": 70.0 + number}
        progress.step(cell, row, 8)
        now = read_now(tmp_path)
        assert now is not None
        return now

    with command, progress:
        progress.cell(cell)
        assert step(1, 0.1).step == 1
        assert step(2, 0.1).step == 1  # too soon
        third = step(3, 2.5)
        assert (third.step, third.steps, third.memory_mib) == (3, 8, 73.0)
        assert step(4, 0.1).step == 3
        progress.epoch(cell, 1, {"accuracy": 0.75})  # it brings the step along
        now = read_now(tmp_path)
        assert now is not None and (now.epoch, now.score, now.step) == (1, 0.75, 4)
        assert now.written_s == 1000.0
    assert read_now(tmp_path) is None


def suite_json(folder: Path, grid: Grid) -> None:
    folder.mkdir()
    write_suite(Store(folder), grid)


def test_a_command_that_was_killed_shows_no_sign_of_life(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    suite_json(out, grid)
    assert "nothing is running here" in shown(out) and not view(out).finished
    long_ago = time.time() - 3600
    write_now(out, Now(cell="x", title="a · b", step=1, steps=4, written_s=long_ago))
    text = shown(out)
    assert "[######..................] step 1/4" in text
    assert "no sign of life for 60 minutes" in text and not view(out).finished
    later = (out / FILE).read_text().replace("{", '{"not_yet": 1, ', 1)
    (out / FILE).write_text(later)
    assert "step 1/4" in shown(out)
    (out / FILE).write_text("half of")
    assert "nothing is running here" in shown(out)


def test_the_command_looks_once_where_no_terminal_is_and_explains_what_is_no_folder(
    grid: Grid, tmp_path: Path
) -> None:
    suite_json(tmp_path / "out", grid)
    done = CliRunner().invoke(app, ["watch", str(tmp_path / "out")])
    assert done.exit_code == 0 and "0 of 4 cells done" in done.stdout
    with pytest.raises(RequestError, match=r"has no suite\.json; give the output folder"):
        view(tmp_path)


def test_while_settings_are_looked_for_there_is_no_suite_yet(grid: Grid, tmp_path: Path) -> None:
    trials = Store(tmp_path / "tuning")
    trials.prepare()
    FakeSession(trials, {}, Observer()).run(grid.cells[0], keep_adapter=False)
    now = time.time()
    write_now(tmp_path, Now(cell="x", title="tiny · lora (lr 1)", written_s=now))
    text = shown(tmp_path)
    assert "trials find settings: 1 done so far" in text and "running: tiny · lora (lr 1)" in text
    assert not view(tmp_path).finished


def test_it_ends_where_every_cell_of_the_latest_suite_has_ended(grid: Grid, tmp_path: Path) -> None:
    """One that failed has, and what an earlier suite asked for is not waited for."""
    out = tmp_path / "out"
    suite_json(out, grid)
    latest = dataclasses.replace(grid, cells=grid.cells[:2])
    write_suite(Store(out), latest)
    session = FakeSession(Store(out), {}, Observer())
    _, second = [session.run(cell, keep_adapter=False) for cell in latest.cells]
    failure = Failure(kind="Diverged", message="NaN")
    Store(out).write_record(
        second.model_copy(update={"status": "failed", "score": None, "failure": failure})
    )
    assert view(out).finished and "1 of 2 cells done, 1 failed" in shown(out)
    write_now(out, Now(cell="x", title="x", written_s=time.time()))
    assert not view(out).finished
    write_now(out, Now(cell="x", title="x", written_s=time.time() - 3600))
    assert view(out).finished


def test_of_the_cell_that_runs_the_steps_that_are_left_take_time(
    grid: Grid, tmp_path: Path
) -> None:
    """By what it had taken, one that had been stopped had more time left than it took in all."""
    out = tmp_path / "out"
    suite_json(out, grid)
    done, running, *_ = grid.cells
    record = FakeSession(Store(out), {}, Observer()).run(done, keep_adapter=False)
    Store(out).write_record(record.model_copy(update={"total_s": 20.0}))
    now = Now(cell=running.name, title="x", step=3, steps=4, written_s=time.time())
    write_now(out, now)
    assert "about 45 seconds left" in shown(out)  # 5 of this one, and two more
    write_now(out, now.model_copy(update={"cell": "a trial's"}))
    assert "about 60 seconds left" in shown(out)
    for cell in grid.cells[1:]:
        FakeSession(Store(out), {}, Observer()).run(cell, keep_adapter=False)
    assert " left" not in shown(out)  # all are done: one of them runs again, or a round for speed


def test_what_somebody_reads_just_now_ends_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows deletes no file that is open, and `watch` reads these two every other second."""
    write_now(tmp_path, Now(cell="x", title="x", written_s=0))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name in (FILE, HOLDER):
            raise PermissionError(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    with locked(tmp_path):
        clear_now(tmp_path)


def test_what_another_command_says_in_the_folder_is_left_there(grid: Grid, tmp_path: Path) -> None:
    with ExitStack() as command:
        progress = live.Live(Observer(), tmp_path, command, page=False)
        progress.cell(grid.cells[0])
        theirs = Now(cell="x", title="theirs", written_s=1.0)
        write_now(tmp_path, theirs)
    assert read_now(tmp_path) == theirs


def test_a_recipe_s_parts_are_one_command(
    grid: Grid, seen: list[tuple[Now | None, str, bool]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with ExitStack() as command:
        run(ResolvedRequest(grid, out), console(), command=command)
        assert not view(out).finished
    assert view(out).finished
