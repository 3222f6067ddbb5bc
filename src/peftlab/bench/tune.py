"""Tuning: every row the same number of trials on each task, and then its seeds at what they found.

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
    Space,
    at_border,
    check_optuna,
    chosen,
    rung_sizes,
    rungs_of,
    search,
)
from peftlab.bench.suite import Tune, Variant
from peftlab.errors import RequestError
from peftlab.methods import Method
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.rows import merit
from peftlab.records.store import Store
from peftlab.records.trials import Trial, Values, read_trials, write_trials
from peftlab.tasks import Task, carved

SEED = 0  # of all trials: which seeds a comparison has changes none of them


def tune_grid(grid: Grid, tune: Tune, out: Path, progress: Observer) -> Grid:
    """The grid with each row's cells at what its trials found on the task.

    Raises:
        RequestError: without Optuna, if rates are asked for that trials shall find, if a task is
            too small to keep a part of train apart, or if `out` can't take the trials.
    """
    check_optuna()
    _check_open(grid, tune)
    tunings = _tunings(grid, tune)
    Store(out).prepare()
    store = Store(out).trials
    store.prepare()
    tasks = {one.task.name: one.task for one in tunings}
    on: dict[str, list[Row]] = {name: [] for name in tasks}
    with locked(out), progress, Session(store, tasks, progress) as session:
        store.clean()
        total = sum(one.n_trainings for one in tunings)
        progress.stage(f"{described(tune)}; about {total} trainings, in {store.out}", total)
        for one in tunings:
            on[one.task.name].append(one.run(session))
    return grid.with_rows(on)


def described(tune: Tune) -> str:
    """How settings are looked for, in words."""
    return (
        f"tuning {', '.join(tune.space)}: {tune.trials} trials of every method on each task, "
        f"judged on {tune.validation:.3g} of train, dev unseen"
    )


class Trainings(NamedTuple):
    """So many trainings of so many epochs, on that share of train."""

    n: int
    epochs: int
    share: float


class Remaining(NamedTuple):
    """What of a comparison has not run yet.

    Attributes:
        cells: to be trained; of a row whose trials have not ended, at its defaults.
        trials: by task and row, what its trials take.
    """

    cells: list[Cell]
    trials: dict[tuple[str, str], list[Trainings]]

    def due(self, task: str, label: str) -> int:
        """How many cells of a row have to be trained."""
        return sum(cell.row == (task, label) for cell in self.cells)


def remaining(grid: Grid, out: Path) -> Remaining:
    """What is not in the folder `out`; of a row, its trials are there all or count as none.

    Raises:
        RequestError: without Optuna, or if the folder's trials are damaged, or a task is too small
            for trials.
    """
    tune, store = grid.suite.tune, Store(out)
    trials: dict[tuple[str, str], list[Trainings]] = {}
    if tune is not None:
        check_optuna()
        tried = store.trials
        read_trials(tried.out)  # damaged it is refused now, and not when trials have run
        rows: dict[str, list[Row]] = {name: [] for name in grid.tasks}
        for one in _tunings(grid, tune):
            found = one.found(tried)
            if found is None:
                trials[one.task.name, one.row.part.label] = one.trainings
            rows[one.task.name].append(found or one.row)
        grid = grid.with_rows(rows)
    done = done_cells(store, grid.cells)
    cells = [cell for cell in grid.cells if cell.name not in done or cell.row in trials]
    return Remaining(cells, trials)


def _tunings(grid: Grid, tune: Tune) -> list[RowTuning]:
    tasks = [carved(task, tune.validation) for task in grid.tasks.values()]
    return [RowTuning(grid, row, task, tune) for task in tasks for row in grid.rows]


class RowTuning:
    """The trials of one row on one task, of which a part is validation."""

    def __init__(self, grid: Grid, row: Row, task: Task, tune: Tune) -> None:
        self.context, self.row, self.task, self.tune = grid.context, row, task, tune
        self.data = grid.tasks[task.name].sha256()
        self.training = self.context.cell(row, task, SEED).training
        updates = math.ceil(len(task.train) / self.training.batch_size)
        self.rungs = rungs_of(self.training.epochs, updates)
        self.space = space_of(row, tune)

    @property
    def trainings(self) -> list[Trainings]:
        """What it takes, rung by rung; more where trials are equal."""
        sizes = rung_sizes(self.tune.trials, len(self.rungs)) if self.space else []
        share = 1 - self.tune.validation
        # without a space there is no rung
        return [Trainings(*one, share) for one in zip(sizes, self.rungs, strict=False)]

    @property
    def n_trainings(self) -> int:
        """How many it takes in all, more where trials are equal."""
        return sum(one.n for one in self.trainings)

    def found(self, store: Store) -> Row | None:
        """The row at what its trials in `store` found; None where one of them is still to run.

        They are gone through as `run` does: trials.json says what was tried by another metric, of
        other epochs, or before a record was lost.
        """
        if not self.space:
            return self.row

        def known(values: Values, epochs: int) -> float | None:
            record = ended_trial(store, self.cell(values, epochs))
            if record is None:
                raise LookupError
            return self._merit_of(record)

        try:
            tried = search(self.space, self.first, self.tune.trials, known, self.rungs)
        except LookupError:
            return None
        best = chosen(tried)
        return self._row_at({} if best is None else tried[best].values)

    def run(self, session: Session) -> Row:
        """The row at what its trials found; as it is where nothing of it is open, or all failed."""
        if not self.space:
            return self.row

        trials: list[Trial] = []

        def tried_now(values: Values, epochs: int) -> float | None:
            record = run_unless_ended(session, self.cell(values, epochs))
            trials.append(self._trial(len(trials), record, values, epochs))
            return self._merit_of(record)

        tried = search(self.space, self.first, self.tune.trials, tried_now, self.rungs)
        best = chosen(tried)
        if best is None:
            name = f"{self.row.part.label} on {self.task.name}"
            session.progress.note(f"{name}: every trial failed; it is trained at its defaults")
            return self._row_at({})  # still a tuned row, as on the tasks where one did not fail
        values = tried[best].values
        border = [name for name, value in values.items() if at_border(value, self.space[name])]
        trials[best] = trials[best].model_copy(update={"chosen": True, "at_border": border})
        write_trials(session.store.out, trials)
        return self._row_at(values)

    @property
    def first(self) -> list[Values]:
        """The published rate and the default, all else at its default."""
        rates = {"lr": self.training.lr, "head_lr": self.training.head_lr}
        default = {name: (rates | self.row.method.settings)[name] for name in self.space}
        published = self.row.method.published_lr
        return (
            [default | {"lr": published}, default] if published and "lr" in default else [default]
        )

    def _merit_of(self, record: Record) -> float | None:
        metric = self.task.main_metric
        return None if record.score is None else merit(metric, record.score[metric])

    def cell(self, values: Values, epochs: int) -> Cell:
        """What is trained to try these values."""
        told = ", ".join(f"{name} {value:g}" for name, value in values.items())
        variant = _variant(self.row.variant, values)
        variant = variant.model_copy(update={"label": f"{variant.label} ({told})"})
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
        """The row with what was found, which its record tells from what somebody asked for."""
        found = self.context.row(_variant(self.row.variant, values))
        how = self.tune.model_dump() | {"space": told_space(self.row.method, self.space)}
        changed = {"tuned": how} | ({"rate_from": "tuned"} if "lr" in values else {})
        part = found.part.model_copy(update=changed)
        return found._replace(part=part)


def space_of(row: Row, tune: Tune) -> Space:
    """Where the row's trials look: in those settings of the space that it has and leaves open."""
    declared = type(row.method).search_space()
    return {name: declared[name] for name in tune.space if name in declared.keys() - row.given}


def told_space(method: Method, space: Iterable[str]) -> list[str]:
    """What a record says was found: of a head alone both rates, which are one."""
    found = list(space)
    return [*found, "head_lr"] if method.head_alone and "lr" in found else found


def _variant(variant: Variant, values: Values) -> Variant:
    rates = {name: value for name, value in values.items() if name in RATES}
    settings = {name: value for name, value in values.items() if name not in RATES}
    return variant.model_copy(update={**rates, "settings": variant.settings | settings})


def _check_open(grid: Grid, tune: Tune) -> None:
    alone = any(row.method.head_alone for row in grid.rows)
    for rate in RATES:
        asked = getattr(grid.suite.training, rate)
        found = rate in tune.space or (rate == "head_lr" and alone and "lr" in tune.space)
        if asked is not None and found:
            option = rate.replace("_", "-")
            raise RequestError(
                f"--{option} {asked} is given and --tune shall find it; leave one of them out, or "
                f"look for something else with --tune-space, or set it for one row with "
                f"METHOD[{rate}={asked}]"
            )
