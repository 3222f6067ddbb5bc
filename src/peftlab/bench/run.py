"""Run a grid: every cell that is not done yet, each in a process of its own, into one folder.

Whoever shows it is an `Observer`. Baselines are computed here, while the worker starts.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from peftlab.bench.cell import Cell
from peftlab.bench.execute import Order, Worker
from peftlab.bench.grid import Grid
from peftlab.bench.outcome import CellScorer
from peftlab.bench.resume import done_cells, ended_trial, has_ended, judge_anew
from peftlab.bench.retention import Keep, check_keep, drop_beaten, room_mib
from peftlab.bench.suite import with_paths
from peftlab.errors import expanded
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.store import SCRATCH, Store, relabelled
from peftlab.tasks import Task, baselines, is_on_hub

SILENT_S = 2.0  # a wait longer than this is explained


class Observer:
    """What a suite tells while it runs. This one shows nothing; subclasses show."""

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


class PassedOn(Observer):
    """Passes everything on to another observer; a subclass adds to that."""

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

    `shown` is the folder that the progress names, if not `out`; `foresee` says in a line what the
    missing cells will cost, or raises.

    Raises:
        RequestError: if `out` can't take them, `foresee` refuses them, another command writes to
            it, or `keep` is unknown.
    """
    check_keep(keep)
    store = Store(out)
    known = {} if rerun else done_cells(store, grid.cells)
    due = [cell for cell in grid.cells if cell.name not in known]
    with Session(store, grid.tasks, progress) as session:
        line = None
        with store.prepared(room_mib(due, keep)):  # asked first: to foresee takes seconds
            if foresee is not None and due:
                session.warm()
                line = foresee(due)
        with locked(out), session:  # ends it before another command may have the folder
            done = _run_due(session, grid, rerun, keep, shown or out, line)
    return [relabelled(done[cell.name], cell.method.label) for cell in grid.cells]


def _run_due(
    session: Session, grid: Grid, rerun: bool, keep: Keep, shown: Path, line: str | None
) -> dict[str, Record]:
    """Every record of the grid, by cell; the missing cells are run first."""
    store, progress = session.store, session.progress
    store.clean()
    done = {} if rerun else done_cells(store, grid.cells)  # another command may have added some
    missing = [cell for cell in grid.cells if cell.name not in done]
    write_suite(store, grid)
    judge_anew(store, (cell.task for cell in grid.cells))
    with progress:
        progress.suite(grid, len(done), str(shown))
        if line is not None:
            progress.note(line)
        set_aside(store, missing, progress)
        for cell in grid.cells:
            if rerun or cell.name in done:  # a kill may have come before it was deleted
                store.forget_checkpoint(cell.name)
        beside = store.others(cell.name for cell in grid.cells)  # other commands' seeds
        drop_beaten(store, list(done.values()), beside, keep)
        if missing:
            # one that is asked for again begins anew each time
            done |= _run_missing(session, missing, grid, done, beside, keep, not rerun)
    return done


def set_aside(store: Store, missing: Iterable[Cell], progress: Observer) -> None:
    """Keep what lies in the place of a record and is none; its cell is about to run again."""
    for cell in missing:
        if store.is_unreadable(cell.name):
            aside = store.set_aside(cell.name)
            progress.note(f"the record of {cell.name} can't be read; it is kept as {aside.name}")


def write_suite(store: Store, grid: Grid) -> None:
    """suite.json: what was asked, and the cells it became, which the report follows."""
    # absolute, so that `export` finds them from anywhere
    asked = with_paths(grid.suite.model_dump(mode="json", exclude={"tasks"}), _absolute)
    cells = [{"cell": cell.name, "label": cell.method.label} for cell in grid.cells]
    store.write_suite(asked | {"tasks": list(grid.tasks), "cells": cells})


def _absolute(path: str) -> str:
    return Path(path).as_posix() if is_on_hub(Path(path)) else str(expanded(path).resolve())


def _run_missing(
    session: Session,
    missing: list[Cell],
    grid: Grid,
    done: dict[str, Record],
    beside: Sequence[Record],
    keep: Keep,
    goes_on: bool,
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    store = session.store
    session.start()
    for cell in with_baselines(missing, grid.tasks, session.progress):  # while the worker starts
        records[cell.name] = session.run(cell, keep != "none", goes_on)
        # of one that failed just now the adapter may be there from a run that did not
        ran = [store.read(one.cell) or one if one.failure else one for one in records.values()]
        drop_beaten(store, [*done.values(), *ran], beside, keep)
    return records


class Session:
    """Runs cells on some tasks, one after the other, and writes what comes out into a folder.

    A context, which leaving ends the worker and the cell in it. The worker starts with the first
    cell, or at `warm` or `start`, where there is something to do meanwhile: for what was done when
    a command began none starts.
    """

    def __init__(self, store: Store, tasks: Mapping[str, Task], progress: Observer) -> None:
        self.store, self.tasks, self.progress = store, tasks, progress
        self.stack, self.files_stack = contextlib.ExitStack(), contextlib.ExitStack()
        self.worker: Worker | None = None
        self.files: dict[str, Path] = {}  # of each task, where the worker reads it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        with self.files_stack:  # the worker ends before its files go
            self.stack.__exit__(*exception)

    def warm(self) -> Worker:
        """The worker, which starts if it has not yet; the folder is not touched."""
        if self.worker is None:
            self.worker = self.stack.enter_context(Worker())
        return self.worker

    def start(self) -> Worker:
        """The worker, with the tasks in files that it reads; the folder must be this command's."""
        worker = self.warm()
        if not self.files:
            # the worker is elsewhere; of a command that is killed, the next one deletes it
            scratch = (self.store.out / SCRATCH).resolve()
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.files_stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            self.files = {name: scratch / f"{i}.json" for i, name in enumerate(self.tasks)}
            for name, task in self.tasks.items():
                task.write(self.files[name])
        return worker

    def run(self, cell: Cell, keep_adapter: bool, goes_on: bool = True) -> Record:
        """Run one cell to its end; its record, which may be that of a failure.

        `goes_on`: whether a training that is stopped is to go on from there the next time.
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
        # what a method of one's own may hold beside its model's tensors is not known
        checkpoint = self.store.checkpoint(cell.name) if goes_on and cell.own is None else None
        order = Order(
            cell=cell,
            task_file=self.files[cell.task.name],
            adapter=adapter,
            checkpoint=None if checkpoint is None else checkpoint.resolve(),
        )
        outcome = scorer.outcome(cell, worker.run(order, scorer))
        before = self.store.read(cell.name)
        if outcome.record.is_done or before is None or not before.is_done:
            outcome.write(self.store)
        else:
            self.progress.note(f"what {cell.title} gave when it ran before stays")
        done = outcome.record.is_done
        lacks_adapter = done and adapter is not None and not adapter.is_dir()
        # from what it was kept at last, an adapter that is lacking is made again in a minute
        if checkpoint is not None and has_ended(outcome.record) and not lacks_adapter:
            self.store.forget_checkpoint(cell.name)
        self.progress.end(outcome.record)
        return outcome.record


def run_unless_ended(session: Session, trial: Cell, keep_adapter: bool = False) -> Record:
    """The trial's record: the stored one if that training ended, else the record of a new run."""
    known = ended_trial(session.store, trial)
    if known is None:
        set_aside(session.store, [trial], session.progress)
        return session.run(trial, keep_adapter)
    session.store.forget_checkpoint(trial.name)
    session.progress.cell(trial)
    session.progress.end(known)
    return known


def with_baselines(
    cells: Sequence[Cell], tasks: Mapping[str, Task], progress: Observer
) -> list[Cell]:
    """The cells with their task's baselines, which are no part of what a cell is."""
    names = dict.fromkeys(cell.task.name for cell in cells)
    found = {name: _computed(tasks[name], progress) for name in names}
    return [
        cell.model_copy(
            update={"task": cell.task.model_copy(update={"baselines": found[cell.task.name]})}
        )
        for cell in cells
    ]


def _computed(task: Task, progress: Observer) -> dict[str, dict[str, float]]:
    waiting = threading.Timer(
        SILENT_S, progress.note, [f"task {task.name}: computing its baselines"]
    )
    waiting.start()
    try:
        found = baselines(task)
    finally:
        waiting.cancel()
    main = task.main_metric
    scores = [f"{name} {by_metric[main]:.3f}" for name, by_metric in found.scores.items()]
    progress.note(f"task {task.name}: {main} of baselines: {', '.join(scores)}")
    for note in found.notes:
        progress.note(f"task {task.name}: {note}")
    return found.scores
