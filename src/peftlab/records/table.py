"""The runs of a comparison, laid out as tasks and rows: what statistics are taken of."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
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
    measured_alike,
    merit,
    task_key,
)
from peftlab.records.scored_run import ScoredRun, scored_run
from peftlab.records.store import rounds_of


@dataclasses.dataclass(frozen=True)
class Runs:
    """One row on one task: its records, and by seed those that have a score.

    `rounds` are the short cells of the row that took turns with those of the others
    (`--repeat-speed`): where there are some, the speed is theirs.
    """

    task: TaskPart
    records: tuple[Record, ...]
    by_seed: dict[int, ScoredRun]
    rounds: tuple[Record, ...] = ()

    @property
    def measured(self) -> tuple[Record, ...]:
        """The done records that speed is read from."""
        return self.rounds or tuple(one for one in self.records if one.is_done)

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.by_seed.values()]

    @property
    def mean(self) -> float:
        """Of the scores; of none a ValueError, so ask for `by_seed` first."""
        return fmean(self.scores)

    @property
    def predicted(self) -> list[int]:
        """The seeds whose predictions are there."""
        return [seed for seed, run in self.by_seed.items() if run.influence is not None]

    def at_best(self) -> Runs:
        """The same with the scores of the best epochs, where records have them: optimistic.

        The influences stay those of the last epoch: of no other are there predictions.
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
        """Of the score, or its difference to another row's, over seeds with predictions of both.

        None without such a seed; of the score also where one of its seeds has no predictions, since
        the interval would be of other seeds than the mean.
        """
        seeds = [s for s in self.predicted if minus is None or s in minus.predicted]
        if not seeds or (minus is None and len(seeds) < len(self.by_seed)):
            return None
        others = [] if minus is None else [minus.by_seed[s] for s in seeds]
        compared = [*(self.by_seed[s] for s in seeds), *others]
        n_texts = {_influence(run).size for run in compared}
        if len(n_texts) > 1:  # predictions of before equal texts were known as such
            return None
        d = np.array([self.by_seed[s].score for s in seeds])
        u = np.stack([_influence(self.by_seed[s]) for s in seeds])
        if others:
            d = d - np.array([run.score for run in others])
            u = u - np.stack([_influence(run) for run in others])
        return Crossed.of(d, u, max(run.grain for run in compared))


def _influence(run: ScoredRun) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    assert run.influence is not None
    return run.influence


Column = dict[str, Runs]  # by row


def columns(records: Sequence[Record], folders: Iterable[Path]) -> dict[TaskKey, Column]:
    """The runs by task and row, in the order of the records. Rows are named as the table does."""
    folders = list(folders)
    in_turns: dict[str, list[Record]] = defaultdict(list)
    for folder in folders:
        for one in rounds_of(folder):
            if one.is_done:
                in_turns[measured_alike(one)].append(one)
    rows = group(records)
    names = labels(rows)
    found: dict[TaskKey, Column] = {task_key(record): {} for record in records}
    for key, members in rows.items():
        for task in dict.fromkeys(task_key(record) for record in members):
            own = tuple(record for record in members if task_key(record) == task)
            short = tuple(in_turns.get(measured_alike(own[0]), ()))
            found[task][names[key]] = _runs(own, folders, short)
    return found


def _runs(records: tuple[Record, ...], folders: list[Path], short: tuple[Record, ...]) -> Runs:
    runs = {
        record.seed: run
        for record in sorted(records, key=lambda record: record.seed)
        if record.is_done and (run := scored_run(record, folders)) is not None
    }
    return Runs(records[0].task, records, runs, short)


def best_row(column: Column) -> str | None:
    """The row of the highest mean (of errors the lowest); None if no row has a score."""
    scored = {row: runs for row, runs in column.items() if runs.by_seed}
    return max(
        scored, key=lambda row: merit(scored[row].task.main_metric, scored[row].mean), default=None
    )


def scale(task: TaskPart) -> tuple[float, float] | None:
    """The merit that counts as 0 and how much more counts as 1: baseline and perfect.

    The baseline is the best constant answer. Without it a score is its own scale, and an error,
    which has no worst value, has none: None.
    """
    metric = task.main_metric
    perfect = merit(metric, 0.0) if merit(metric, 1.0) < 0 else 1.0
    constant = constant_of(task)
    zero = merit(metric, constant[metric]) if metric in constant else None
    if zero is not None and perfect > zero:
        return zero, perfect - zero
    return (0.0, 1.0) if perfect else None
