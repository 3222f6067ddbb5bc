"""What is said while a suite runs."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from peftlab.api.progress import Bars, Lines, describe_task
from peftlab.bench import run as room
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.outcome import Failed, failure_record
from peftlab.bench.suite import make_suite
from peftlab.records.record import Failure, Record
from peftlab.tasks import Baselines, Task


def stars(folder: Path, model: Path) -> Grid:
    path = folder / "stars.csv"
    rows = [f"text {i},{1 + i % 5}" for i in range(50)]
    path.write_text("\n".join(["review,rating", *rows]))
    data = {"path": path, "text": ["review"], "label": "rating"}
    return resolve(make_suite(model=str(model), data=data, methods=["head"], seeds=[0]))


def text(kind: type[Lines | Bars]) -> tuple[Lines | Bars, io.StringIO]:
    said = io.StringIO()
    return kind(Console(file=said, width=200)), said


def test_the_plan_says_that_stars_are_taken_as_classes(tmp_path: Path, tiny_model: Path) -> None:
    observer, said = text(Lines)
    observer.suite(stars(tmp_path, tiny_model), 0, "out")
    note = "rating holds 5 whole numbers from 1 to 5, taken as classes; --kind regression asks for"
    assert f"task stars: {note} numbers" in said.getvalue()


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_a_cell_s_warnings_follow_its_score(
    kind: type[Lines | Bars], tmp_path: Path, tiny_model: Path
) -> None:
    grid = stars(tmp_path, tiny_model)
    cell = grid.cells[0]
    record = Record.model_validate(
        {
            **{name: getattr(cell, name) for name in ("suite", "model", "task", "method")},
            **cell.record_fields,
            **{"seed": 0, "status": "done", "score": {"accuracy": 0.97}},
            "warnings": ["never predicts '3'", "collapsed: no better than always answering '1'"],
            "environment": {
                **{"commit": None, "dirty": None, "python": "3", "packages": {}},
                **{"processor": "", "gpu": None, "threads": 1},
            },
        }
    )
    observer, said = text(kind)
    with observer:
        observer.suite(grid, 0, "out")
        observer.end(record)
    lines = [line.strip() for line in said.getvalue().splitlines()]
    score = next(i for i, line in enumerate(lines) if "accuracy 0.970" in line)
    assert lines[score + 1 : score + 3] == [f"warning: {warning}" for warning in record.warnings]


def test_baselines_are_told_and_a_long_wait_for_them_is_explained(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = threading.Event()

    def slow(task: Task) -> Baselines:
        if room.SILENT_S < 1:
            assert noted.wait(60)
        scores = {"majority": {"accuracy": 0.25}, "tf-idf": {"accuracy": 0.5}}
        return Baselines(scores, ["a note"])

    class Noted(Lines):
        def note(self, text: str) -> None:
            super().note(text)
            noted.set()

    grid = stars(tmp_path, tiny_model)
    monkeypatch.setattr(room, "baselines", slow)
    lines = {}
    for patience in (0.05, 30.0):
        monkeypatch.setattr(room, "SILENT_S", patience)
        observer, said = text(Noted)
        room.with_baselines(grid.cells, grid.tasks, observer)
        lines[patience] = said.getvalue().splitlines()
    told = [
        "task stars: accuracy of baselines: majority 0.250, tf-idf 0.500",
        "task stars: a note",
    ]
    assert lines == {0.05: ["task stars: computing its baselines", *told], 30.0: told}


def test_bars_show_one_training_that_is_no_suite(tmp_path: Path, tiny_model: Path) -> None:
    """`peftlab.train` in a terminal."""
    (cell,) = stars(tmp_path, tiny_model).cells
    said = io.StringIO()
    with Bars(Console(file=said, width=200, force_terminal=True)) as bars:
        bars.cell(cell)
        bars.step(cell, {"step": 1, "loss": 0.5}, 2)
        bars.epoch(cell, 1, {"accuracy": 0.25})
    assert "stars · head · seed 0" in said.getvalue()


def test_of_two_classes_it_is_said_which_one_f1_is_of(tiny_task: Task) -> None:
    assert describe_task(tiny_task.judged_by("f1")).endswith("metric f1 of cat")
    assert describe_task(tiny_task).endswith("metric accuracy")


def failed(cell: Cell, message: str) -> Record:
    failure = Failure(kind="Boom", message=message)
    return failure_record(cell, Failed(failure=failure, environment=cell.environment()))


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_a_class_s_name_gives_the_terminal_no_orders(
    kind: type[Lines | Bars], tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "mail.csv"
    rows = [f"text {i},{('fine', chr(27) + '[2Jwiped')[i % 2]}" for i in range(40)]
    path.write_text("\n".join(["text,label", *rows]))
    data = {"path": path, "text": ["text"], "label": "label"}
    grid = resolve(make_suite(model=str(tiny_model), data=data, methods=["head"], seeds=[0]))
    observer, said = text(kind)
    with observer:
        observer.suite(grid, 0, "out")
        observer.note(f"a note of {chr(27)}[2J")
        observer.end(failed(grid.cells[0], f"{chr(27)}[2J"))
    assert chr(27) not in said.getvalue() and "[2J" in said.getvalue()
