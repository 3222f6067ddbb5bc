"""Rows over tasks: the mean of scaled scores, how often among the best, who improves on whom.

Scaled     0 is the baseline that reads no text, 1 is perfect (table.scale)
Interval   of the mean: tasks are taken as they are, not drawn; variances of seeds and dev
           examples add up over tasks (crossed.half_width); under three seeds the examples' alone
P(X > Y)   Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
           precipice", arXiv:2108.13264 (rliable), § 4.3: of a run of X and one of Y on the same
           task, ties half, mean over tasks; the interval by bootstrap over runs, stratified by
           task, percentile, as there. It covers the seeds alone, and is given from ten of each row
           on: of three that do not overlap every resample says the same, and of probabilities of
           .76 to .96 the intervals covered 40 to 81 % (five: 68 to 95; LOG.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from peftlab.records.crossed import half_width
from peftlab.records.influence import Array
from peftlab.records.pairs import Verdicts, against, better_than
from peftlab.records.rows import TaskKey, merit
from peftlab.records.table import Column, Runs, best_row, scale

RESAMPLES = 2000  # rliable's default
RESAMPLED = 10  # seeds at least


class Overall(BaseModel, extra="forbid", frozen=True):
    """A row over all tasks.

    Attributes:
        mean: of the scaled scores; null if the row lacks a task, or a task has no scale.
        low: lower end of its 95 % interval; null without predictions.
        high: its upper end.
        n_best: on how many tasks it is not shown worse than the best row.
        n_tasks: on how many it has a score.
    """

    row: str
    mean: float | None
    low: float | None
    high: float | None
    n_best: int
    n_tasks: int


class Improvement(BaseModel, extra="forbid", frozen=True):
    """How likely a run of row `a` beats one of `b`, mean over the `n_tasks` that both have.

    `low` and `high` are null where some row has fewer than ten seeds on some task.
    """

    a: str
    b: str
    probability: float
    low: float | None
    high: float | None
    n_tasks: int


def overall(columns: Mapping[TaskKey, Column], pairs: Verdicts) -> list[Overall]:
    """Every row over the tasks; none where there are fewer than two."""
    if len(columns) < 2:
        return []
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return [_overall(row, columns, _n_best(row, columns, pairs)) for row in rows]


def _n_best(row: str, columns: Mapping[TaskKey, Column], pairs: Verdicts) -> int:
    """On how many tasks the table marks the row: best, tied with the best, or worse than none."""
    count = 0
    for task, column in columns.items():
        if row in column and column[row].by_seed:
            best = best_row(column)
            assert best is not None  # `row` has a score
            beside = against(pairs[task], row, best)  # None of the best itself
            ties = beside is None or beside.verdict == "tie"
            count += ties or not better_than(row, pairs[task])
    return count


def _overall(row: str, columns: Mapping[TaskKey, Column], n_best: int) -> Overall:
    own = [column[row] for column in columns.values() if row in column and column[row].by_seed]
    spans = [span for runs in own if (span := scale(runs.task)) is not None]
    mean, half = None, None
    if len(spans) == len(columns):
        mean = float(np.mean([_scaled(runs, span) for runs, span in zip(own, spans, strict=True)]))
        parts = [part for runs in own if (part := runs.crossed()) is not None]
        if len(parts) == len(own):
            half = half_width(parts, [1 / (len(own) * span) for _, span in spans])
    return Overall(
        row=row,
        mean=mean,
        low=None if mean is None or half is None else mean - half,
        high=None if mean is None or half is None else mean + half,
        n_best=n_best,
        n_tasks=len(own),
    )


def _scaled(runs: Runs, span: tuple[float, float]) -> float:
    return (merit(runs.task.main_metric, runs.mean) - span[0]) / span[1]


def improvements(columns: Mapping[TaskKey, Column]) -> list[Improvement]:
    """Of every pair of rows over the tasks that both have; none where there are fewer than two."""
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    found = []
    for a, b in itertools.combinations(rows, 2):
        both = [
            (_merits(column[a]), _merits(column[b]))
            for column in columns.values()
            if a in column and b in column and column[a].by_seed and column[b].by_seed
        ]
        if len(both) > 1:
            probability, low, high = improvement(both)
            found.append(
                Improvement(
                    a=a, b=b, probability=probability, low=low, high=high, n_tasks=len(both)
                )
            )
    return found


def _merits(runs: Runs) -> Array:
    return np.array([merit(runs.task.main_metric, score) for score in runs.scores])


def improvement(
    tasks: Sequence[tuple[Array, Array]],
) -> tuple[float, float | None, float | None]:
    """P(X > Y), mean over tasks, with its 95 % interval; (x, y) are a task's scores by seed.

    >>> improvement([(np.array([0.9]), np.array([0.5])), (np.array([0.5]), np.array([0.5]))])
    (0.75, None, None)
    """
    from scipy.stats import bootstrap

    samples = [scores for task in tasks for scores in task]
    probability = float(_improvement(*samples, axis=-1))
    if any(len(scores) < RESAMPLED for scores in samples):
        return probability, None, None
    interval = bootstrap(
        samples,
        _improvement,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return probability, float(interval.low), float(interval.high)


def _improvement(*samples: Array, axis: int) -> Array:
    """The mean over tasks of U / (n m), Mann and Whitney's U; seeds lie along the last axis."""
    assert axis == -1
    shares = []
    for x, y in zip(samples[::2], samples[1::2], strict=True):
        above = x[..., :, None] - y[..., None, :]
        shares.append(((above > 0) + 0.5 * (above == 0)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(shares, axis=0))
