"""Rows over tasks: mean of scaled scores, number of tasks among the best, P(X > Y) of row pairs.

Scaled     0 is the baseline that reads no text, 1 is perfect (table.scale)
Interval   of the mean: tasks are fixed, not sampled; variances of seeds and dev examples add up
           over tasks (crossed.half_width); with fewer than three seeds of the examples alone
P(X > Y)   Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
           precipice", arXiv:2108.13264 (rliable), § 4.3: that a run of X beats a run of Y on the
           same task, a tie counting half, mean over tasks. The interval is theirs too: percentile
           bootstrap over runs, stratified by task. It covers the seeds alone, and is given from ten
           seeds of each row on, to a probability of .9: with three seeds that do not overlap all
           resamples agree, and at probabilities of .76 to .96 the intervals covered 40 to 81 %
           (five seeds: 68 to 95). Ten cover 95 % at .76, 91 at .90 and 67 at .99 (LOG.md)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from peftlab.records.crossed import half_width
from peftlab.records.influence import Array
from peftlab.records.pairs import Verdicts, standing
from peftlab.records.rows import TaskKey, merit
from peftlab.records.table import Runs, RunsByRow, best_row, row_names, runs_of, scale

N_RESAMPLES = 2000  # rliable's default
MIN_SEEDS_TO_RESAMPLE = 10
MOST_TO_RESAMPLE = 0.9


class Overall(BaseModel, extra="forbid", frozen=True):
    """A row over all tasks.

    Attributes:
        mean: of the scaled scores; null if the row lacks a task, or a task has no scale.
        low: lower end of the mean's 95 % interval, to which a task with fewer than three seeds adds
            what its examples add alone; null without predictions.
        high: upper end, likewise.
        n_best: number of tasks on which the row is not shown to be worse than the best row.
        n_tasks: number of tasks on which the row has a score.
    """

    row: str
    mean: float | None
    low: float | None
    high: float | None
    n_best: int
    n_tasks: int


class Improvement(BaseModel, extra="forbid", frozen=True):
    """How likely a run of row `a` beats one of `b`, mean over the `n_tasks` that both have.

    `low` and `high` are null where one of the rows has fewer than ten seeds on some task, and where
    the probability is beyond .1 to .9.
    """

    a: str
    b: str
    probability: float
    low: float | None
    high: float | None
    n_tasks: int


def overall(columns: Mapping[TaskKey, RunsByRow], pairs: Verdicts) -> list[Overall]:
    """Every row over the tasks; empty with fewer than two tasks."""
    if len(columns) < 2:
        return []
    return [_overall(row, columns, _n_best(row, columns, pairs)) for row in row_names(columns)]


def _n_best(row: str, columns: Mapping[TaskKey, RunsByRow], pairs: Verdicts) -> int:
    """The number of tasks on which the row is not worse, and so has a mark in the table."""
    count = 0
    for task, column in columns.items():
        if row in column and column[row].by_seed:
            best = best_row(column)
            assert best is not None  # `row` has a score
            count += standing(row, best, pairs[task]) != "worse"
    return count


def _overall(row: str, columns: Mapping[TaskKey, RunsByRow], n_best: int) -> Overall:
    scored = [runs for runs in runs_of(columns, row) if runs.by_seed]
    scales = [task_scale for runs in scored if (task_scale := scale(runs.task)) is not None]
    mean, half = None, None
    if len(scales) == len(columns):
        mean = float(np.mean(list(map(_scaled_mean, scored, scales))))
        effects = [crossed for runs in scored if (crossed := runs.crossed()) is not None]
        if len(effects) == len(scored):
            half = half_width(effects, [1 / (len(scored) * span) for _, span in scales])
    return Overall(
        row=row,
        mean=mean,
        low=None if mean is None or half is None else mean - half,
        high=None if mean is None or half is None else mean + half,
        n_best=n_best,
        n_tasks=len(scored),
    )


def _scaled_mean(runs: Runs, task_scale: tuple[float, float]) -> float:
    zero, span = task_scale
    return (merit(runs.task.main_metric, runs.mean) - zero) / span


def improvements(columns: Mapping[TaskKey, RunsByRow]) -> list[Improvement]:
    """Every pair of rows over the tasks that both have, where there are at least two."""
    pairs = []
    for a, b in itertools.combinations(row_names(columns), 2):
        tasks = [
            (_merits(column[a]), _merits(column[b]))
            for column in columns.values()
            if a in column and b in column and column[a].by_seed and column[b].by_seed
        ]
        if len(tasks) > 1:
            probability, low, high = improvement(tasks)
            pairs.append(
                Improvement(
                    a=a, b=b, probability=probability, low=low, high=high, n_tasks=len(tasks)
                )
            )
    return pairs


def _merits(runs: Runs) -> Array:
    return np.array([merit(runs.task.main_metric, score) for score in runs.scores])


def improvement(
    tasks: Sequence[tuple[Array, Array]],
) -> tuple[float, float | None, float | None]:
    """P(X > Y), mean over tasks, with its 95 % interval; a task is the scores (x, y) by seed.

    >>> improvement([(np.array([0.9]), np.array([0.5])), (np.array([0.5]), np.array([0.5]))])
    (0.75, None, None)
    """
    from scipy.stats import bootstrap

    samples = [scores for task in tasks for scores in task]
    probability = float(_mean_probability(*samples, axis=-1))
    is_sure = not 1 - MOST_TO_RESAMPLE <= probability <= MOST_TO_RESAMPLE
    if is_sure or any(len(scores) < MIN_SEEDS_TO_RESAMPLE for scores in samples):
        return probability, None, None
    interval = bootstrap(
        samples,
        _mean_probability,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return probability, float(interval.low), float(interval.high)


def _mean_probability(*samples: Array, axis: int) -> Array:
    """The mean over tasks of U / (n m), Mann and Whitney's U; seeds lie along the last axis."""
    assert axis == -1
    probabilities = []
    for x, y in zip(samples[::2], samples[1::2], strict=True):
        difference = x[..., :, None] - y[..., None, :]
        probabilities.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(probabilities, axis=0))
