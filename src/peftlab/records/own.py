"""How sure each row's own score on a task is."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from peftlab.records.rows import TaskKey
from peftlab.records.table import Runs, RunsByRow


class OwnScore(BaseModel, extra="forbid", frozen=True):
    """The mean score of a row on one task, and its 95 % interval.

    Attributes:
        sha256: of the task's examples.
        mean: over seeds, of the main metric.
        low: lower end; over seeds and dev examples, with fewer than three seeds over the examples
            alone.
        high: upper end, likewise.
        n_seeds: number of seeds that the mean is over.
    """

    task: str
    metric: str
    sha256: str
    row: str
    mean: float
    low: float
    high: float
    n_seeds: int


def own_scores(columns: Mapping[TaskKey, RunsByRow]) -> list[OwnScore]:
    """The score of every row on every task where all its scored runs have predictions."""
    return [
        score
        for key, column in columns.items()
        for row, runs in column.items()
        if (score := _own_score(key, row, runs)) is not None
    ]


def _own_score(key: TaskKey, row: str, runs: Runs) -> OwnScore | None:
    crossed = runs.crossed()
    if crossed is None:
        return None
    low, high = crossed.interval()
    task, metric, sha256 = key
    return OwnScore(
        task=task,
        metric=metric,
        sha256=sha256,
        row=row,
        mean=float(crossed.mean),
        low=float(low),
        high=float(high),
        n_seeds=crossed.n_seeds,
    )
