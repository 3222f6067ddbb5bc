"""A race: rows at several rates train on a part of train, and the bad ones stop early.

Every runner is one row at one rate. All of them train for the epochs of the first rung, and the
best third goes on to the next rung (successive halving, Jamieson and Talwalkar 2016), whichever
rows that leaves. The race may be stopped at any moment: `Race.results` holds the results so far.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, Row, requested_rate
from peftlab.bench.run import ForwardingObserver, Observer, Session, run_unless_ended
from peftlab.bench.search import rung_sizes, rungs_of
from peftlab.bench.suite_tasks import part_of_train
from peftlab.bench.tune import SEED, recorded_space
from peftlab.records.record import Record
from peftlab.records.rows import merit
from peftlab.tasks import Task

RATE_FACTORS = (1.0, 3.0, 1 / 3)  # a row's rates, as multiples of its default
MIN_RUNNERS = 3  # runners of a later rung, so that the last one has something to choose from


class TimeIsUp(Exception):
    """The allotted time is over; results so far are kept."""


class Deadline(ForwardingObserver):
    """An observer that ends the training, and with it the session, at a given moment.

    Args:
        shown: the observer that everything is passed on to.
        end: asked for the moment at every step, on the clock of `time.monotonic`.
    """

    def __init__(self, shown: Observer, end: Callable[[], float]) -> None:
        super().__init__(shown)
        self.end_at = end

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        if time.monotonic() > self.end_at():
            raise TimeIsUp
        super().step(cell, row, total)


class Runner(NamedTuple):
    """A row at one learning rate."""

    row: Row  # labelled as in the comparison
    trial: Row  # the same, labelled with the rate, as in the race's own cells


class RungResult(NamedTuple):
    """The result of a runner on one rung; merit is None where the training failed."""

    runner: Runner
    epochs: int
    record: Record
    merit: float | None


class Race:
    """The runners of a grid on one task, of which a part is validation."""

    def __init__(self, grid: Grid, task: Task, validation: float) -> None:
        self.grid, self.task = grid, part_of_train(task, validation)
        # at_most: a row's cells must not depend on how many rates there was time for
        tuned = {"trials": len(RATE_FACTORS), "at_most": True, "validation": validation}
        by_row = [_runners(grid, row, self.task, tuned) for row in grid.rows]
        # every row runs at its default before any runs at another rate: the time may be short
        turns = itertools.zip_longest(*by_row)
        self.runners = [runner for turn in turns for runner in turn if runner is not None]
        training = grid.context.cell(grid.rows[0], self.task, SEED).training
        updates = math.ceil(len(self.task.train) / training.batch_size)
        self.rungs = rungs_of(training.epochs, updates)
        self.results: list[RungResult] = []

    @property
    def sizes(self) -> list[int]:
        """How many runners each rung has."""
        n = len(self.runners)
        return [min(n, max(MIN_RUNNERS, size)) for size in rung_sizes(n, len(self.rungs))]

    def run(self, session: Session) -> None:
        """Run all rungs; `results` has each that ended, and only the best adapter is kept."""
        runners = self.runners
        for epochs, size in zip(self.rungs, self.sizes, strict=True):
            for runner in runners[:size]:
                self._run(runner, epochs, session)
            runners = [result.runner for result in self.ranking if result.epochs == epochs]

    @property
    def ranking(self) -> list[RungResult]:
        """The results that did not fail: longer trainings first, then better ones.

        Equal results stay in the order they ran in: unlike a search, a race has no time to go on
        with all of them.
        """
        done = [result for result in self.results if result.merit is not None]
        return sorted(done, key=lambda result: (-result.epochs, -(result.merit or 0.0)))

    def best_rows(self, n: int) -> list[Row]:
        """The first `n` different rows of the ranking, each at the best of its rates."""
        by_label: dict[str, Row] = {}
        for result in self.ranking:
            runner = result.runner
            by_label.setdefault(runner.row.part.label, self._row(runner))
        return list(by_label.values())[:n]

    def _row(self, runner: Runner) -> Row:
        """The runner's row; its rate counts as a default where the row ran at no other rate."""
        part = runner.row.part
        others = [result.runner for result in self.results]
        trials = {other.trial.part.label for other in others if other.row.part.label == part.label}
        if not part.tuned or len(trials) > 1:
            return runner.row
        return runner.row._replace(part=part.model_copy(update={"rate_from": "default"}))

    def _run(self, runner: Runner, epochs: int, session: Session) -> None:
        cell = self.grid.context.cell(runner.trial, self.task, SEED, epochs)
        record = run_unless_ended(session, cell, keep_adapter=True)
        metric = self.task.main_metric
        value = None if record.score is None else merit(metric, record.score[metric])
        self.results.append(RungResult(runner, epochs, record, value))
        cells = [result.record.cell for result in self.ranking]
        for beaten in cells[1:]:
            if beaten != cells[0]:
                shutil.rmtree(session.store.adapter(beaten), ignore_errors=True)


def _runners(grid: Grid, row: Row, task: Task, tuned: dict[str, Any]) -> list[Runner]:
    """The row at each of its rates, its default first; at the requested rate alone if there is one.

    `tuned` is what a record says of how the rate was found.
    """
    if requested_rate(grid.suite.training, row.variant, row.method) is not None:
        return [Runner(row, row)]
    default = grid.context.cell(row, task, SEED).training.lr
    limits = type(row.method).search_space()["lr"]
    rates = [min(max(default * factor, limits.low), limits.high) for factor in RATE_FACTORS]
    tuned = tuned | {"space": recorded_space(row.method, ["lr"])}
    distinct = dict.fromkeys(float(f"{rate:.3g}") for rate in rates)
    return [_runner(grid, row, rate, tuned) for rate in distinct]


def _runner(grid: Grid, row: Row, rate: float, tuned: dict[str, Any]) -> Runner:
    variant = row.variant.model_copy(update={"lr": rate})
    row = grid.context.row(variant)
    part = row.part.model_copy(update={"rate_from": "tuned", "tuned": tuned})
    labelled = variant.model_copy(update={"label": f"{variant.label} (lr {rate:g})"})
    return Runner(row._replace(part=part), grid.context.row(labelled))
