"""A race: rows at several rates on a part of train, where the bad ones stop early.

Every runner is one row at one rate. All of them train for the epochs of the first rung; the best
third goes on to the next one (successive halving, Jamieson and Talwalkar 2016), whichever rows that
leaves. What is done when the time is over is what there is: `Race.ran` holds it at every moment.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from typing import Any, NamedTuple

from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, Row, asked_rate
from peftlab.bench.run import Observer, PassedOn, Session, run_unless_ended
from peftlab.bench.search import REDUCTION, rungs_of
from peftlab.bench.tune import SEED, told_space
from peftlab.records.record import Record
from peftlab.records.rows import merit
from peftlab.tasks import Task, carved

RATE_FACTORS = (1.0, 3.0, 1 / 3)  # a row's rates, as multiples of its default
MIN_RUNNERS = 3  # runners of a later rung, so that the last one has something to choose from


class TimeIsUp(Exception):
    """The time that was given is over; what is done is kept."""


class Until(PassedOn):
    """An observer that ends a training, and with it the session, when a moment has come.

    Args:
        shown: what is told of it otherwise.
        end: the moment, of `time.monotonic`.
    """

    def __init__(self, shown: Observer, end: float) -> None:
        super().__init__(shown)
        self.end_at = end

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        if time.monotonic() > self.end_at:
            raise TimeIsUp
        super().step(cell, row, total)


class Runner(NamedTuple):
    """A row at a rate."""

    row: Row  # as the comparison names it
    trial: Row  # as its cells on the part of train are named


class RungResult(NamedTuple):
    """What a runner came to on one rung; merit None where it failed."""

    runner: Runner
    epochs: int
    record: Record
    merit: float | None


class Race:
    """The runners of a grid on one task, of which a part is validation."""

    def __init__(self, grid: Grid, task: Task, validation: float) -> None:
        self.grid, self.task = grid, carved(task, validation)
        # at most: what a row's cells are must not depend on how far the time goes
        how = {"trials": len(RATE_FACTORS), "at_most": True, "validation": validation}
        by_row = [_runners(grid, row, self.task, how) for row in grid.rows]
        # every row at its default before any at another rate, for the time may be short
        turns = itertools.zip_longest(*by_row)
        self.runners = [runner for turn in turns for runner in turn if runner is not None]
        training = grid.context.cell(grid.rows[0], self.task, SEED).training
        updates = math.ceil(len(self.task.train) / training.batch_size)
        self.rungs = rungs_of(training.epochs, updates)
        self.ran: list[RungResult] = []

    @property
    def sizes(self) -> list[int]:
        """How many run on each rung."""
        n = len(self.runners)
        return [
            min(n, max(MIN_RUNNERS, math.ceil(n / REDUCTION**rung)))
            for rung in range(len(self.rungs))
        ]

    def run(self, session: Session) -> None:
        """Run all rungs; each training that ends is in `ran`, and only the best adapter is kept."""
        left = self.runners
        for epochs, size in zip(self.rungs, self.sizes, strict=True):
            for runner in left[:size]:
                self._run(runner, epochs, session)
            left = [one.runner for one in self.ranking if one.epochs == epochs]

    @property
    def ranking(self) -> list[RungResult]:
        """What did not fail, the longest training first, and of one length the best first.

        Of equals that which raced first: unlike a search, a race has no time for all of them.
        """
        done = [one for one in self.ran if one.merit is not None]
        return sorted(done, key=lambda one: (-one.epochs, -(one.merit or 0.0)))

    def best_rows(self, n: int) -> list[Row]:
        """The first `n` different rows of the ranking, each at the best of its rates."""
        by_label: dict[str, Row] = {}
        for one in self.ranking:
            by_label.setdefault(one.runner.row.part.label, self._row(one.runner))
        return list(by_label.values())[:n]

    def _row(self, runner: Runner) -> Row:
        """The runner's row; where no other rate of it ran, its rate is a default still."""
        part = runner.row.part
        own = [one.runner for one in self.ran if one.runner.row.part.label == part.label]
        if not part.tuned or len({one.trial.part.label for one in own}) > 1:
            return runner.row
        return runner.row._replace(part=part.model_copy(update={"rate_from": "default"}))

    def _run(self, runner: Runner, epochs: int, session: Session) -> None:
        cell = self.grid.context.cell(runner.trial, self.task, SEED, epochs)
        record = run_unless_ended(session, cell, keep_adapter=True)
        metric = self.task.main_metric
        found = None if record.score is None else merit(metric, record.score[metric])
        self.ran.append(RungResult(runner, epochs, record, found))
        best = self.ranking[0].record.cell if self.ranking else ""
        for beaten in self.ranking[1:]:
            if beaten.record.cell == best:
                continue
            shutil.rmtree(session.store.adapter(beaten.record.cell), ignore_errors=True)


def _runners(grid: Grid, row: Row, task: Task, how: dict[str, Any]) -> list[Runner]:
    if asked_rate(grid.suite.training, row.variant, row.method) is not None:
        return [Runner(row, row)]
    default = grid.context.cell(row, task, SEED).training.lr
    where = type(row.method).search_space()["lr"]
    rates = [min(max(default * factor, where.low), where.high) for factor in RATE_FACTORS]
    how = how | {"space": told_space(row.method, ["lr"])}
    each = dict.fromkeys(float(f"{rate:.3g}") for rate in rates)
    return [_runner(grid, row, rate, how) for rate in each]


def _runner(grid: Grid, row: Row, rate: float, how: dict[str, Any]) -> Runner:
    at = row.variant.model_copy(update={"lr": rate})
    found = grid.context.row(at)
    part = found.part.model_copy(update={"rate_from": "tuned", "tuned": how})
    named = at.model_copy(update={"label": f"{at.label} (lr {rate:g})"})
    return Runner(found._replace(part=part), grid.context.row(named))
