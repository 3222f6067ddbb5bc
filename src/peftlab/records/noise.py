"""How far the score of a row moves by itself: between seeds, and by choosing an epoch."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from peftlab.records.conditions import Conditions, conditions
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, finite_values, is_collapsed, mean, merit
from peftlab.records.table import Runs, RunsByRow


class Noise(BaseModel, extra="forbid", frozen=True):
    """How far runs of the same row on the same task differ.

    Attributes:
        score: mean absolute difference of the main metric between two seeds, in the metric's unit;
            null with one seed.
        speed: mean absolute difference of examples/s between two seeds (or rounds, where there are
            some) that were measured under like conditions, over their mean; null with one.
        inflation: how much the best epoch, chosen on dev, scores above the last one; mean over
            seeds, never below 0.
        n_runs: number of seeds with a score, collapsed ones included.
        n_collapsed: how many of these are no better than the constant answer.
        n_failed: number of seeds without a score; no statistic includes them.
    """

    task: str
    metric: str
    row: str
    score: float | None
    speed: float | None
    inflation: float | None
    n_runs: int
    n_collapsed: int
    n_failed: int


def noise(columns: Mapping[TaskKey, RunsByRow]) -> list[Noise]:
    """The noise of every row on every task."""
    return [_noise(row, runs) for column in columns.values() for row, runs in column.items()]


def _noise(row: str, runs: Runs) -> Noise:
    metric = runs.task.main_metric
    done = [record for record in runs.records if record.is_done]
    gains = [
        merit(metric, record.best.score[metric]) - merit(metric, record.score[metric])
        for record in done
        if record.best and record.score and {metric} <= record.best.score.keys() & record.score
    ]
    return Noise(
        task=runs.task.name,
        metric=metric,
        row=row,
        score=mean(pairwise_differences(runs.scores)),
        speed=_speed_noise(runs.speed_records),
        inflation=mean(finite_values(gains)),
        n_runs=len(done),
        n_collapsed=sum(map(is_collapsed, done)),
        n_failed=len(runs.records) - len(done),
    )


def pairwise_differences(values: Sequence[float]) -> list[float]:
    """The absolute differences of all pairs.

    >>> pairwise_differences([1.0, 4.0, 2.0])
    [3.0, 1.0, 2.0]
    """
    return [abs(a - b) for a, b in itertools.combinations(values, 2)]


def _speed_noise(records: Sequence[Record]) -> float | None:
    """The mean relative difference of speed between runs of like conditions."""
    by_cell = conditions([records])
    speeds_by_conditions: dict[Conditions, list[float]] = defaultdict(list)
    for record in records:
        speed = record.speed.examples_per_s if record.speed else None
        speeds_by_conditions[by_cell[record.cell]] += finite_values([speed])
    return mean(
        [
            difference / float(np.mean(speeds))
            for speeds in speeds_by_conditions.values()
            for difference in pairwise_differences(speeds)
        ]
    )
