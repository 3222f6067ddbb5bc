"""Tuning: every row gets the same number of trials on each task, and trains at their best values.

    --tune 6    6 trials a row and task: on 90 % of train, judged on the other tenth; dev is unseen

The first points are the published rate and the default. A trial is a cell: it is recorded in
OUT/tuning, it is never run twice, and a killed one is run again. Which points are tried depends on
nothing but the scores so far, so that a tuning that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from peftlab.bench.cell import Cell
from peftlab.bench.grid import RATES, Grid, Row
from peftlab.bench.resume import done_cells, ended_trial
from peftlab.bench.run import Observer, Session, run_unless_ended
from peftlab.bench.search import (
    Merit,
    Result,
    Space,
    at_border,
    best_index,
    check_optuna,
    rung_sizes,
    rungs_of,
    search,
)
from peftlab.bench.suite import Tune, Variant
from peftlab.bench.suite_tasks import part_of_train
from peftlab.errors import RequestError
from peftlab.methods import Method
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.rows import merit
from peftlab.records.store import Store
from peftlab.records.trials import Trial, Values, read_trials, write_trials
from peftlab.tasks import Task

SEED = 0  # of all trials, whatever seeds the comparison has


def tune_grid(grid: Grid, tune: Tune, out: Path, progress: Observer) -> Grid:
    """The grid with each row's cells at the best values of its trials on their task.

    Raises:
        RequestError: without Optuna, if the request fixes a rate that trials are to find, if a task
            is too small to keep a part of train apart, or if `out` can't take the trials.
    """
    tunings = _tunings(grid, tune)
    Store(out).prepare()
    store = Store(out).trials
    store.prepare()
    tasks = {tuning.task.name: tuning.task for tuning in tunings}
    rows: dict[str, list[Row]] = {name: [] for name in tasks}
    with locked(out), progress, Session(store, tasks, progress) as session:
        store.clean()
        total = sum(tuning.n_trainings for tuning in tunings)
        progress.stage(f"{describe(tune)}; about {total} trainings, in {store.out}", total)
        for tuning in tunings:
            rows[tuning.task.name].append(tuning.run(session))
    return grid.with_rows(rows)


def describe(tune: Tune) -> str:
    """How settings are looked for, in words."""
    return (
        f"tuning {', '.join(tune.space)}: {tune.trials} trials of every method on each task, "
        f"judged on {tune.validation:.3g} of train, dev unseen"
    )


class Trainings(NamedTuple):
    """`n` trainings of so many epochs on a share of train."""

    n: int
    epochs: int
    share: float


class Remaining(NamedTuple):
    """The part of a comparison that has not run yet.

    Attributes:
        cells: the cells to be trained; those of a row whose trials have not ended are at its
            defaults.
        trials: by task and row, the trainings of its trials.
    """

    cells: list[Cell]
    trials: dict[tuple[str, str], list[Trainings]]

    def due(self, task: str, label: str) -> int:
        """How many cells of a row have to be trained."""
        return sum(cell.row == (task, label) for cell in self.cells)


def remaining(grid: Grid, out: Path) -> Remaining:
    """The part of the grid that is not in the folder `out`; a row with a trial missing lacks all.

    Raises:
        RequestError: without Optuna, if the request fixes a rate that trials are to find, or if the
            folder's trials are damaged, or a task is too small for trials.
    """
    tune, store = grid.suite.tune, Store(out)
    trials: dict[tuple[str, str], list[Trainings]] = {}
    if tune is not None:
        tunings = _tunings(grid, tune)
        trial_store = store.trials
        read_trials(trial_store.out)  # a damaged file is refused now, not when trials have run
        rows: dict[str, list[Row]] = {name: [] for name in grid.tasks}
        for tuning in tunings:
            row = tuning.tuned_row(trial_store)
            if row is None:
                trials[tuning.task.name, tuning.row.part.label] = tuning.trainings
            rows[tuning.task.name].append(row or tuning.row)
        grid = grid.with_rows(rows)
    done = done_cells(store, grid.cells)
    cells = [cell for cell in grid.cells if cell.name not in done or cell.row in trials]
    return Remaining(cells, trials)


def _tunings(grid: Grid, tune: Tune) -> list[RowTuning]:
    check_optuna()
    _check_rates_open(grid, tune)
    tasks = [part_of_train(task, tune.validation) for task in grid.tasks.values()]
    return [RowTuning(grid, row, task, tune) for task in tasks for row in grid.rows]


class _NotRun(Exception):
    """A trial of a search has no record yet."""


class RowTuning:
    """The trials of one row on one task, of which a part is validation."""

    def __init__(self, grid: Grid, row: Row, task: Task, tune: Tune) -> None:
        self.context, self.row, self.task, self.tune = grid.context, row, task, tune
        self.data = self.context.task_part(grid.tasks[task.name]).sha256
        self.training = self.context.cell(row, task, SEED).training
        updates = math.ceil(len(task.train) / self.training.batch_size)
        self.rungs = rungs_of(self.training.epochs, updates)
        self.space = space_of(row, tune)

    @property
    def trainings(self) -> list[Trainings]:
        """The trainings of each rung; there are more where trials are equal."""
        sizes = rung_sizes(self.tune.trials, len(self.rungs)) if self.space else []
        share = 1 - self.tune.validation
        # without a space `sizes` is empty
        return [Trainings(n, epochs, share) for n, epochs in zip(sizes, self.rungs, strict=False)]

    @property
    def n_trainings(self) -> int:
        """The number of trainings on all rungs; there are more where trials are equal."""
        return sum(trainings.n for trainings in self.trainings)

    def tuned_row(self, store: Store) -> Row | None:
        """The row at the best values of its trials in `store`; None if one of them is yet to run.

        The search is repeated on their records. trials.json does not do: it also has trials by
        another metric, of other epochs, or whose records have been lost.
        """
        if not self.space:
            return self.row

        def stored_merit(values: Values, epochs: int) -> float | None:
            record = ended_trial(store, self.cell(values, epochs))
            if record is None:
                raise _NotRun
            return self._merit_of(record)

        try:
            results = self._search(stored_merit)
        except _NotRun:
            return None
        best = best_index(results)
        return self._row_at({} if best is None else results[best].values)

    def run(self, session: Session) -> Row:
        """Run the trials; returns the row at their best values, or at its defaults if all failed.

        A row that leaves nothing open has no trials, and is returned as it is.
        """
        if not self.space:
            return self.row

        trials: list[Trial] = []

        def run_trial(values: Values, epochs: int) -> float | None:
            record = run_unless_ended(session, self.cell(values, epochs))
            trials.append(self._trial(len(trials), record, values, epochs))
            return self._merit_of(record)

        results = self._search(run_trial)
        best = best_index(results)
        if best is None:
            name = f"{self.row.part.label} on {self.task.name}"
            session.progress.note(f"{name}: every trial failed; it is trained at its defaults")
            return self._row_at({})  # still a tuned row, as on the tasks where one did not fail
        values = results[best].values
        border = [name for name, value in values.items() if at_border(value, self.space[name])]
        trials[best] = trials[best].model_copy(update={"chosen": True, "at_border": border})
        write_trials(session.store.out, trials)
        return self._row_at(values)

    def _search(self, merit: Merit) -> list[Result]:
        return search(self.space, self._first_points, self.tune.trials, merit, self.rungs)

    @property
    def _first_points(self) -> list[Values]:
        """The published rate, if there is one, and the default; all else at its default."""
        rates = {"lr": self.training.lr, "head_lr": self.training.head_lr}
        default = {name: (rates | self.row.method.settings)[name] for name in self.space}
        published = self.row.method.published_lr
        if published and "lr" in default:
            return [default | {"lr": published}, default]
        return [default]

    def _merit_of(self, record: Record) -> float | None:
        metric = self.task.main_metric
        return None if record.score is None else merit(metric, record.score[metric])

    def cell(self, values: Values, epochs: int) -> Cell:
        """The cell that tries these values."""
        words = ", ".join(f"{name} {value:g}" for name, value in values.items())
        variant = _with_values(self.row.variant, values)
        variant = variant.model_copy(update={"label": f"{variant.label} ({words})"})
        return self.context.cell(self.context.row(variant), self.task, SEED, epochs)

    def _trial(self, number: int, record: Record, values: Values, epochs: int) -> Trial:
        metric = self.task.main_metric
        return Trial(
            task=self.task.name,
            data=self.data,
            model=self.context.source.name,
            label=self.row.part.label,
            number=number,
            epochs=epochs,
            values=values,
            metric=metric,
            score=None if record.score is None else record.score[metric],
            cell=record.cell,
        )

    def _row_at(self, values: Values) -> Row:
        """The row at these values; its record says that trials found them, and how."""
        row = self.context.row(_with_values(self.row.variant, values))
        tuned = self.tune.model_dump() | {"space": recorded_space(self.row.method, self.space)}
        changes = {"tuned": tuned} | ({"rate_from": "tuned"} if "lr" in values else {})
        return row._replace(part=row.part.model_copy(update=changes))


def space_of(row: Row, tune: Tune) -> Space:
    """The space of the row's trials: settings to tune that its method has and it leaves open."""
    declared = type(row.method).search_space()
    return {name: declared[name] for name in tune.space if name in declared.keys() - row.fixed}


def recorded_space(method: Method, space: Iterable[str]) -> list[str]:
    """The settings that a record lists as tuned; where the head alone is trained, both rates."""
    names = list(space)
    return [*names, "head_lr"] if method.head_alone and "lr" in names else names


def _with_values(variant: Variant, values: Values) -> Variant:
    rates = {name: value for name, value in values.items() if name in RATES}
    settings = {name: value for name, value in values.items() if name not in RATES}
    return variant.model_copy(update={**rates, "settings": variant.settings | settings})


def _check_rates_open(grid: Grid, tune: Tune) -> None:
    """Raise `RequestError` if the request fixes a rate of all rows that trials are to find."""
    has_head_alone = any(row.method.head_alone for row in grid.rows)
    for name in RATES:
        rate = getattr(grid.suite.training, name)
        # where the head alone is trained, "lr" stands for both rates
        is_tuned = name in tune.space or (has_head_alone and "lr" in tune.space)
        if rate is not None and is_tuned:
            option = name.replace("_", "-")
            raise RequestError(
                f"--{option} {rate} is given and --tune shall find it; leave one of them out, or "
                f"look for something else with --tune-space, or set it for one row with "
                f"METHOD[{name}={rate}]"
            )
