"""Run a grid: every cell that is not done yet, each in a process of its own, into one folder.

An `Observer` shows the progress. Baselines are computed in this process, while the worker starts.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from peftlab.bench.cell import Cell, Order
from peftlab.bench.execute import Worker
from peftlab.bench.grid import Grid
from peftlab.bench.outcome import CellScorer
from peftlab.bench.resume import done_cells, ended_trial, has_ended, judge_anew
from peftlab.bench.retention import Keep, drop_beaten, room_mib
from peftlab.bench.suite import with_paths
from peftlab.errors import expanded
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.store import SCRATCH, Store, with_label
from peftlab.tasks import Task, baselines, is_on_hub

SILENT_S = 2.0  # a wait longer than this is explained


class Observer:
    """Is told of a suite as it runs. This class shows nothing; subclasses do."""

    def suite(self, grid: Grid, n_done: int, out: str) -> None: ...
    def stage(self, what: str, total: int) -> None: ...
    def note(self, line: str) -> None: ...
    def cell(self, cell: Cell) -> None: ...
    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None: ...
    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None: ...
    def end(self, record: Record) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...


class ForwardingObserver(Observer):
    """Passes everything on to another observer, `shown`; subclasses do more."""

    def __init__(self, shown: Observer) -> None:
        self.shown = shown

    def suite(self, grid: Grid, n_done: int, out: str) -> None:
        self.shown.suite(grid, n_done, out)

    def stage(self, what: str, total: int) -> None:
        self.shown.stage(what, total)

    def note(self, line: str) -> None:
        self.shown.note(line)

    def cell(self, cell: Cell) -> None:
        self.shown.cell(cell)

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        self.shown.step(cell, row, total)

    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None:
        self.shown.epoch(cell, epoch, score)

    def end(self, record: Record) -> None:
        self.shown.end(record)

    def __enter__(self) -> Self:
        self.shown.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shown.__exit__(*exception)


def run_grid(
    grid: Grid,
    out: Path,
    progress: Observer,
    rerun: bool = False,
    keep: Keep = "all",
    shown: Path | None = None,
    foresee: Callable[[Sequence[Cell]], str] | None = None,
) -> list[Record]:
    """Run the grid's missing cells into `out`; returns every cell's record in the grid's order.

    `shown` is the folder that the progress names, if not `out`; `foresee` returns a line on the
    cost of the missing cells, or raises.

    Raises:
        RequestError: if `out` can't take them, `foresee` refuses them, or another command writes
            to it.
    """
    store = Store(out)
    done = {} if rerun else done_cells(store, grid.cells, keep != "none")
    missing = [cell for cell in grid.cells if cell.name not in done]
    # the session ends before another command may have the folder
    with contextlib.ExitStack() as lock, Session(store, grid.tasks, progress) as session:
        forecast = None
        with store.prepared(room_mib(missing, keep)):  # checked first, since foresee takes seconds
            if foresee is not None and missing:
                session.warm()
                forecast = foresee(missing)
        lock.enter_context(locked(out))
        records = _run_locked(session, grid, rerun, keep, shown or out, forecast)
    return [with_label(records[cell.name], cell.method.label) for cell in grid.cells]


def _run_locked(
    session: Session, grid: Grid, rerun: bool, keep: Keep, shown: Path, forecast: str | None
) -> dict[str, Record]:
    """Run the missing cells; returns every record of the grid, by its cell's name."""
    store, progress = session.store, session.progress
    store.clean()
    # another command may have added some
    done = {} if rerun else done_cells(store, grid.cells, keep != "none")
    missing = [cell for cell in grid.cells if cell.name not in done]
    write_suite(store, grid)
    judge_anew(store, (cell.task for cell in grid.cells))
    with progress:
        progress.suite(grid, len(done), str(shown))
        if forecast is not None:
            progress.note(forecast)
        set_aside(store, missing, progress)
        for cell in grid.cells:
            # a done cell's checkpoint is left where a kill came before it was deleted
            if rerun or cell.name in done:
                store.forget_checkpoint(cell.name)
        others = store.other_records(cell.name for cell in grid.cells)  # seeds of other commands
        drop_beaten(store, list(done.values()), others, keep)
        if missing:
            # with `rerun` a cell starts from its first step each time
            done |= _run_missing(session, missing, grid, done, others, keep, not rerun)
    return done


def set_aside(store: Store, missing: Iterable[Cell], progress: Observer) -> None:
    """Rename unreadable records of cells that are about to run, so that they are not lost."""
    for cell in missing:
        if store.is_unreadable(cell.name):
            renamed = store.set_aside(cell.name)
            progress.note(f"the record of {cell.name} can't be read; it is kept as {renamed.name}")


def write_suite(store: Store, grid: Grid) -> None:
    """Write suite.json: the request, and the cells that it became, which the report follows."""
    # absolute paths, so that `export` finds the files from any folder
    request = with_paths(grid.suite.model_dump(mode="json", exclude={"tasks"}), _absolute)
    if not grid.context.source.is_named:
        request["model"] = str(grid.context.source.folder)
    cells = [{"cell": cell.name, "label": cell.method.label} for cell in grid.cells]
    store.write_suite(request | {"tasks": list(grid.tasks), "cells": cells})


def _absolute(path: str) -> str:
    return Path(path).as_posix() if is_on_hub(Path(path)) else str(expanded(path).resolve())


def _run_missing(
    session: Session,
    missing: list[Cell],
    grid: Grid,
    done: dict[str, Record],
    others: Sequence[Record],
    keep: Keep,
    goes_on: bool,
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    store = session.store
    session.start()
    for cell in with_baselines(missing, grid.tasks, session.progress):  # while the worker starts
        records[cell.name] = session.run(cell, keep != "none", goes_on)
        # a cell that failed just now may have a record and an adapter from an earlier run
        stored = [store.read(r.cell) or r if r.failure else r for r in records.values()]
        drop_beaten(store, [*done.values(), *stored], others, keep)
    return records


class Session:
    """Runs cells on some tasks, one after the other, and writes the results into a folder.

    Leaving its context ends the worker and the cell in it. The worker starts with the first cell,
    or earlier, at `warm` or `start`, where the caller has work to do meanwhile; if every cell is
    done already, none starts.
    """

    def __init__(self, store: Store, tasks: Mapping[str, Task], progress: Observer) -> None:
        self.store, self.tasks, self.progress = store, tasks, progress
        self.stack, self.files_stack = contextlib.ExitStack(), contextlib.ExitStack()
        self.worker: Worker | None = None
        self.files: dict[str, Path] = {}  # by task, the file that the worker reads it from

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        with self.files_stack:  # the worker ends before its files are deleted
            self.stack.__exit__(*exception)

    def warm(self) -> Worker:
        """The worker, started if it was not yet; the folder is not touched."""
        if self.worker is None:
            self.worker = self.stack.enter_context(Worker())
        return self.worker

    def start(self) -> Worker:
        """The worker, with the tasks in files that it reads; this command must hold the lock."""
        worker = self.warm()
        if not self.files:
            # absolute: the worker may run in another folder. If this command is killed, the next
            # one deletes the files.
            scratch = (self.store.out / SCRATCH).resolve()
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.files_stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            self.files = {name: scratch / f"{i}.json" for i, name in enumerate(self.tasks)}
            for name, task in self.tasks.items():
                task.write(self.files[name])
        return worker

    def run(self, cell: Cell, keep_adapter: bool, goes_on: bool = True) -> Record:
        """Run one cell to its end; returns its record, which may be that of a failure.

        `goes_on`: whether a training that is stopped continues from there the next time.
        """
        worker = self.start()
        self.progress.cell(cell)
        scorer = CellScorer(
            self.tasks[cell.task.name],
            on_step=functools.partial(self.progress.step, cell),
            on_epoch=functools.partial(self.progress.epoch, cell),
            on_note=self.progress.note,
        )
        adapter = self.store.adapter(cell.name).resolve() if keep_adapter else None
        # a user's own method may have state beside its model's tensors, which is not saved
        checkpoint = self.store.checkpoint(cell.name) if goes_on and cell.own is None else None
        order = Order(
            cell=cell,
            task_file=self.files[cell.task.name],
            adapter=adapter,
            checkpoint=None if checkpoint is None else checkpoint.resolve(),
        )
        outcome = scorer.outcome(cell, worker.run(order, scorer))
        record, before = outcome.record, self.store.read(cell.name)
        if record.is_done or before is None or not before.is_done:
            outcome.write(self.store)
        else:
            self.progress.note(f"{cell.title} failed; the result of its earlier run is kept")
        lost_adapter = record.is_done and keep_adapter and self.store.lost_adapter(cell.name)
        if checkpoint is not None and has_ended(record) and not lost_adapter:
            self.store.forget_checkpoint(cell.name)
        self.progress.end(record)
        return record


def run_unless_ended(session: Session, trial: Cell, keep_adapter: bool = False) -> Record:
    """The trial's record: the stored one if that training ended, else the record of a new run."""
    record = ended_trial(session.store, trial, keep_adapter)
    if record is None:
        set_aside(session.store, [trial], session.progress)
        return session.run(trial, keep_adapter)
    session.store.forget_checkpoint(trial.name)
    session.progress.cell(trial)
    session.progress.end(record)
    return record


def with_baselines(
    cells: Sequence[Cell], tasks: Mapping[str, Task], progress: Observer
) -> list[Cell]:
    """The cells with the baselines of their tasks, which are no part of a cell's identity."""
    names = dict.fromkeys(cell.task.name for cell in cells)
    by_task = {name: _baseline_scores(tasks[name], progress) for name in names}
    return [
        cell.model_copy(
            update={"task": cell.task.model_copy(update={"baselines": by_task[cell.task.name]})}
        )
        for cell in cells
    ]


def _baseline_scores(task: Task, progress: Observer) -> dict[str, dict[str, float]]:
    """The scores of each baseline by metric, computed here and reported to `progress`."""
    timer = threading.Timer(SILENT_S, progress.note, [f"task {task.name}: computing its baselines"])
    timer.start()
    try:
        computed = baselines(task)
    finally:
        timer.cancel()
    main = task.main_metric
    scores = [f"{name} {by_metric[main]:.3f}" for name, by_metric in computed.scores.items()]
    progress.note(f"task {task.name}: {main} of baselines: {', '.join(scores)}")
    for note in computed.notes:
        progress.note(f"task {task.name}: {note}")
    return computed.scores
