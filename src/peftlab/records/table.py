"""The runs of a comparison, laid out by task and row: the input of all statistics."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from peftlab.records.crossed import Crossed
from peftlab.records.record import Record, TaskPart
from peftlab.records.rows import (
    TaskKey,
    constant_of,
    group,
    labels,
    merit,
    rounds_by_row,
    speed_key,
    task_key,
)
from peftlab.records.scored_run import ScoredRun, scored_run
from peftlab.records.store import rounds_of


@dataclasses.dataclass(frozen=True)
class Runs:
    """One row on one task: its records, and by seed its runs that have a score.

    `rounds` are the row's short cells that took turns with those of the other rows
    (`--repeat-speed`): where there are some, speed is read from them.
    """

    task: TaskPart
    records: tuple[Record, ...]
    by_seed: dict[int, ScoredRun]
    rounds: tuple[Record, ...] = ()

    @property
    def speed_records(self) -> tuple[Record, ...]:
        """The done records that speed is read from."""
        return self.rounds or tuple(record for record in self.records if record.is_done)

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.by_seed.values()]

    @property
    def mean(self) -> float:
        """The mean of the scores; a ValueError without any, so check `by_seed` first."""
        return fmean(self.scores)

    @property
    def seeds_with_predictions(self) -> list[int]:
        return [seed for seed, run in self.by_seed.items() if run.influence is not None]

    def with_best_epochs(self) -> Runs:
        """These runs with the scores of their best epochs, where records have them: optimistic.

        The influences stay those of the last epoch: no other epoch has predictions.
        """
        metric = self.task.main_metric
        best = {
            record.seed: record.best.score[metric]
            for record in self.records
            if record.best and metric in record.best.score
        }
        return dataclasses.replace(
            self,
            by_seed={
                seed: dataclasses.replace(run, score=best.get(seed, run.score))
                for seed, run in self.by_seed.items()
            },
        )

    def crossed(self, minus: Runs | None = None) -> Crossed | None:
        """The random effects of the score, or of its difference to the score of the row `minus`.

        They cover the seeds with predictions, of both rows. None without such a seed; for a score
        also where one of its seeds has no predictions, since the interval would be of other seeds
        than the mean.
        """
        seeds = self.seeds_with_predictions
        if minus is not None:
            seeds = [seed for seed in seeds if seed in minus.seeds_with_predictions]
        if not seeds or (minus is None and len(seeds) < len(self.by_seed)):
            return None
        runs = [self.by_seed[seed] for seed in seeds]
        others = [] if minus is None else [minus.by_seed[seed] for seed in seeds]
        if len({_influence(run).size for run in (*runs, *others)}) > 1:
            return None  # some predictions were written before equal texts were marked
        d = np.array([run.score for run in runs])
        u = np.stack([_influence(run) for run in runs])
        if others:
            d = d - np.array([run.score for run in others])
            u = u - np.stack([_influence(run) for run in others])
        return Crossed.of(d, u, max(run.grain for run in (*runs, *others)))


def _influence(run: ScoredRun) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert run.influence is not None
    return run.influence


RunsByRow = dict[str, Runs]  # a column: one task


def columns(records: Sequence[Record], folders: Iterable[Path]) -> dict[TaskKey, RunsByRow]:
    """The runs by task and row, in the order of the records. Rows are named as in the report."""
    folders = list(folders)
    rounds = rounds_by_row(records, itertools.chain.from_iterable(map(rounds_of, folders)))
    rows = group(records)
    names = labels(rows)
    table: dict[TaskKey, RunsByRow] = {task_key(record): {} for record in records}
    for key, members in rows.items():
        by_task: dict[TaskKey, list[Record]] = defaultdict(list)
        for record in members:
            by_task[task_key(record)].append(record)
        for task, of_task in by_task.items():
            row_rounds = rounds.get(speed_key(of_task[0]), [])
            table[task][names[key]] = _runs(of_task, folders, row_rounds)
    return table


def _runs(records: Sequence[Record], folders: list[Path], rounds: Sequence[Record]) -> Runs:
    by_seed = {
        record.seed: run
        for record in sorted(records, key=lambda record: record.seed)
        if record.is_done and (run := scored_run(record, folders)) is not None
    }
    return Runs(records[0].task, tuple(records), by_seed, tuple(rounds))


def row_names(columns: Mapping[TaskKey, RunsByRow]) -> list[str]:
    """The rows of all tasks, each once, in the order in which they first appear."""
    return list(dict.fromkeys(row for column in columns.values() for row in column))


def runs_of(columns: Mapping[TaskKey, RunsByRow], row: str) -> list[Runs]:
    """The runs of a row on every task that it has."""
    return [column[row] for column in columns.values() if row in column]


def best_row(column: RunsByRow) -> str | None:
    """The row of the highest mean (of errors the lowest); None if no row has a score."""
    scored = {row: runs for row, runs in column.items() if runs.by_seed}
    return max(
        scored, key=lambda row: merit(scored[row].task.main_metric, scored[row].mean), default=None
    )


def scale(task: TaskPart) -> tuple[float, float] | None:
    """The merit that counts as 0, the baseline's, and the distance from it to a perfect one.

    The baseline is the best constant answer. Without it a score is its own scale, and an error,
    which has no worst value, has no scale: None.
    """
    metric = task.main_metric
    perfect = merit(metric, 0.0) if merit(metric, 1.0) < 0 else 1.0
    constant = constant_of(task)
    zero = merit(metric, constant[metric]) if metric in constant else None
    if zero is not None and perfect > zero:
        return zero, perfect - zero
    return (0.0, 1.0) if perfect else None
