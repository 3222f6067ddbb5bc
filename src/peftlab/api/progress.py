"""Progress of a suite: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from peftlab.bench.cell import Cell
from peftlab.bench.grid import LEAST_EPOCHS, LEAST_UPDATES, Grid
from peftlab.bench.run import Observer
from peftlab.errors import expect
from peftlab.naming import counted, title
from peftlab.records.record import Record
from peftlab.records.rows import LOWER_IS_BETTER
from peftlab.report.text import number, printable
from peftlab.tasks import Task

LINE_EVERY_S = 10.0


def callers_console(quiet: bool = False) -> Console:
    """The console of a call from Python: standard error, in a notebook without bars.

    A notebook would keep every frame of a bar. Rich's own display there needs ipywidgets, warns
    without it, and loses a cell's output if two commands run at once.

    Raises:
        RequestError: if `quiet` is neither True nor False.
    """
    expect("quiet", quiet, bool, "True or False")
    console = Console(stderr=True, quiet=quiet)
    if not console.is_jupyter:
        return console
    return Console(stderr=True, quiet=quiet, force_jupyter=False, force_terminal=False)


def observer(console: Console, quiet: bool = False) -> Observer:
    """The observer for the console: bars on a terminal, lines elsewhere, nothing if quiet."""
    if quiet:
        return Observer()
    return Bars(console) if console.is_terminal else Lines(console)


class Lines(Observer):
    """Plain lines: the suite, each cell's start and end, and a step every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.number = self.n_cells = 0
        self.last_line_s = 0.0

    def suite(self, grid: Grid, n_done: int, out: str) -> None:
        self.number, self.n_cells = n_done, len(grid.cells)
        for line in describe(grid, n_done, out):
            self._print(line)

    def stage(self, what: str, total: int) -> None:
        self.number, self.n_cells = 0, total
        self._print(what)

    def note(self, line: str) -> None:
        self._print(line)

    def cell(self, cell: Cell) -> None:
        self.number += 1
        count = ""  # a single cell has none
        if self.n_cells:
            self.n_cells = max(self.n_cells, self.number)  # trials that tie add some
            count = f"[{self.number}/{self.n_cells}] "
        self._print(f"{count}{cell.title}")

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        if time.monotonic() - self.last_line_s > LINE_EVERY_S:
            self._print(f"    step {row['step']}/{total}: loss {row['loss']:.3f}")

    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None:
        self._print(f"    epoch {epoch}: {_main_score(cell, score)}")

    def end(self, record: Record) -> None:
        self._print(f"    {summary(record)}")
        for warning in record.warnings:
            self._print(f"    warning: {warning}")

    def _print(self, line: str) -> None:
        self.last_line_s = time.monotonic()
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class Bars(Observer):
    """Two bars: the suite's cells, and the cell's steps with loss, latest score and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self.bars: list[TaskID] = []
        self.score = ""

    def __enter__(self) -> Self:
        self.progress.start()
        self.bars = [
            self.progress.add_task(what, total=None, note="", visible=False)
            for what in ("cells", "")
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self.bars[1:]:
            self.progress.remove_task(bar)
        self.progress.stop()

    def suite(self, grid: Grid, n_done: int, out: str) -> None:
        for line in describe(grid, n_done, out):
            self.console.print(printable(line), markup=False, highlight=False)
        total = len(grid.cells)
        self.progress.update(self.bars[0], total=total, completed=n_done, visible=True)

    def stage(self, what: str, total: int) -> None:
        self.console.print(printable(what), markup=False, highlight=False)
        self.progress.update(self.bars[0], description="trainings", total=total, visible=True)

    def note(self, line: str) -> None:
        self.progress.console.print(printable(line), markup=False, highlight=False)

    def cell(self, cell: Cell) -> None:
        self.score = ""
        self.progress.reset(
            self.bars[1],
            description=escape(printable(cell.title)),
            total=None,
            note="loading",
            visible=True,
        )

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        note = f"loss {row['loss']:.3f}  {self.score}"
        self.progress.update(self.bars[1], completed=row["step"], total=total, note=note)

    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None:
        self.score = _main_score(cell, score)
        self.progress.update(self.bars[1], note=self.score)

    def end(self, record: Record) -> None:
        self.progress.advance(self.bars[0])
        style = "red" if not record.is_done else None
        name = title(record.task.name, record.method.label, record.seed)
        print_line = partial(self.progress.console.print, markup=False, highlight=False)
        print_line(printable(f"{name}: {summary(record)}"), style=style)
        for warning in record.warnings:
            print_line(printable(f"    warning: {warning}"), style="yellow")


def describe(grid: Grid, n_done: int, out: str) -> list[str]:
    """Lines about a suite that starts: its cells, its model and its tasks."""
    n = len(grid.cells)
    return [
        f"suite {grid.suite.name}: {counted(n, 'cell')}, {n_done} done already, in {out}",
        f"model {grid.cells[0].model.name}: {'; '.join(grid.notes)}",
        *describe_tasks(grid),
    ]


def describe_tasks(grid: Grid) -> list[str]:
    """Lines about each task: its kind, its size, and how long a training on it is."""
    lines = []
    by_default = grid.suite.training.epochs is None
    trainings = {cell.task.name: cell.training for cell in grid.cells}
    for name, task in grid.tasks.items():
        training = trainings[name]
        length = describe_length(len(task.train), training.batch_size, training.epochs, by_default)
        lines.append(f"{describe_task(task)}; {length}")
        lines += [f"task {name}: {note}" for note in (*task.notes, *task.dev_notes)]
    return lines


def describe_task(task: Task) -> str:
    """The task in one line: kind, classes, sizes and main metric."""
    kind = "regression" if task.kind == "regression" else f"classes {', '.join(task.labels)}"
    has_positive = task.main_metric == "f1" and len(task.labels) == 2
    of_class = f" of {task.labels[1]}" if has_positive else ""
    return (
        f"task {task.name} ({task.source}): {kind}; "
        f"{len(task.train)} train, {len(task.dev)} dev; metric {task.main_metric}{of_class}"
    )


def describe_length(n_train: int, batch_size: int, epochs: int, by_default: bool) -> str:
    """The length of a training, with the reason if it is the default.

    >>> describe_length(500, batch_size=32, epochs=19, by_default=True)
    '19 epochs of 16 updates, to make 300'
    """
    updates = math.ceil(n_train / batch_size)
    length = f"{counted(epochs, 'epoch')} of {counted(updates, 'update')}"
    if not by_default or epochs == LEAST_EPOCHS:
        return length
    if epochs * updates < LEAST_UPDATES:
        return f"{length}, the most unless --epochs says more"
    return f"{length}, to make {LEAST_UPDATES}"


def summary(record: Record) -> str:
    """The result of a cell in one line."""
    if not record.is_done:
        assert record.failure is not None
        return f"FAILED: {record.failure.message}"
    assert record.score is not None
    metric = record.task.main_metric
    parts = [_scored(metric, record.score[metric])]
    if record.speed and record.speed.examples_per_s:
        parts.append(f"{record.speed.examples_per_s:.0f} examples/s")
    if record.task.n_truncated:
        cut = counted(record.task.n_truncated, "example")
        parts.append(f"{cut} cut at {record.training['max_length']} tokens")
    parts += record.method.notes
    return f"{', '.join(parts)}, {record.total_s or 0:.1f} s"


def _main_score(cell: Cell, score: dict[str, float]) -> str:
    metric = cell.task.main_metric
    return _scored(metric, score[metric])


def _scored(metric: str, value: float) -> str:
    """The metric and its value: of errors, in the label's unit, three significant digits."""
    return f"{metric} {number(value) if metric in LOWER_IS_BETTER else f'{value:.3f}'}"
