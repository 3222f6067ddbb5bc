"""How far scores move though nothing is better: between seeds, and by choosing an epoch."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from peftlab.records.conditions import Conditions, conditions
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, collapsed, known, mean, merit
from peftlab.records.table import Column, Runs


class Noise(BaseModel, extra="forbid", frozen=True):
    """A row on one task against itself.

    Attributes:
        score: mean absolute difference of the main metric between two of its seeds, in the
            metric's unit; null with one.
        speed: mean absolute difference of examples/s between two of its seeds (or of its rounds,
            where there are some) that were measured alike, over their mean; null with one.
        inflation: mean over seeds of what choosing the best epoch on dev adds to the last one's
            score; never below 0.
        n_runs: seeds with a score, collapsed ones among them.
        n_collapsed: of these, no better than the constant answer.
        n_failed: seeds without a score; no statistic knows of them.
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


def noise(columns: Mapping[TaskKey, Column]) -> list[Noise]:
    """Of every row on every task."""
    return [_noise(row, runs) for column in columns.values() for row, runs in column.items()]


def _noise(row: str, runs: Runs) -> Noise:
    metric = runs.task.main_metric
    done = [record for record in runs.records if record.is_done]
    added = [
        merit(metric, record.best.score[metric]) - merit(metric, record.score[metric])
        for record in done
        if record.best and record.score and {metric} <= record.best.score.keys() & record.score
    ]
    return Noise(
        task=runs.task.name,
        metric=metric,
        row=row,
        score=mean(between(runs.scores)),
        speed=_speed(runs.measured),
        inflation=mean(known(added)),
        n_runs=len(done),
        n_collapsed=sum(map(collapsed, done)),
        n_failed=len(runs.records) - len(done),
    )


def between(values: Sequence[float]) -> list[float]:
    """The absolute differences of all pairs.

    >>> between([1.0, 4.0, 2.0])
    [3.0, 1.0, 2.0]
    """
    return [abs(one - other) for one, other in itertools.combinations(values, 2)]


def _speed(measured: Sequence[Record]) -> float | None:
    """Relative differences between runs of like conditions."""
    under = conditions([measured])
    alike: dict[Conditions | None, list[float]] = defaultdict(list)
    for record in measured:
        speed = record.speed.examples_per_s if record.speed else None
        alike[under.get(record.cell)] += known([speed])
    return mean(
        [
            difference / float(np.mean(speeds))
            for speeds in alike.values()
            for difference in between(speeds)
        ]
    )
