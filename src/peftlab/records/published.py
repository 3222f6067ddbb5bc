"""Our runs beside published scores: the difference, its interval, and a verdict.

difference    mean over our seeds - the published score
interval      95 %, over seeds and dev examples (crossed.py), of this pair alone, not corrected for
              the number of scores; the S' published seeds are taken to vary as our S, and with
              A = s²(d) (1 / S + 1 / S') it would be shorter if it knew that both scores are of the
              same dev examples. The influence of an example is that after the last epoch
says          above, below or equal (the interval lies within ± margin), else unclear
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS, within
from peftlab.records.pairs import NO_PREDICTIONS, unclear
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN, sample_sd
from peftlab.records.table import Runs, columns


class Published(BaseModel, extra="forbid", frozen=True, strict=True):
    """Scores of a paper or a report, as fractions.

    Attributes:
        scores: by row and task.
        seeds: how many the scores are a mean or a median of; 1 where the source does not say.
        epoch: which epoch was scored, where the source says so. A best epoch was chosen on the
            examples that its score is of, so ours is chosen in the same way.
    """

    scores: dict[str, dict[str, float]]
    seeds: int = Field(default=1, ge=1)
    epoch: Literal["last", "best", "not said"] = "not said"


class PublishedComparison(BaseModel, extra="forbid", frozen=True):
    """One published score and ours; all in the metric's unit.

    Attributes:
        seeds: our seeds that are done.
        mean: over these, after the same epoch as the published score; null without a seed.
        last: over these, after the last epoch.
        sd: of our scores over these; null with fewer than two.
        low: lower end of the 95 % interval of the difference; null without predictions. With fewer
            than three seeds it covers the examples alone.
        high: its upper end.
        says: above, below, equal, unclear, unclear with what is missing, or failed.
    """

    task: str
    metric: str
    row: str
    published: float
    seeds: list[int]
    mean: float | None = None
    last: float | None = None
    sd: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    says: str


def compare_with_published(
    published: Published,
    records: Sequence[Record],
    folders: Iterable[Path],
    margin: float = MARGIN,
) -> list[PublishedComparison]:
    """Every published score of a row and task that `records` have.

    In the order of our tasks, those of a task in the order of the source's rows.

    Args:
        published: its rows have the same names as ours.
        records: ours; predictions/CELL.jsonl of each lies in one of `folders`.
        folders: searched in order.
        margin: differences within ± margin count as equal.
    """
    by_task = {task: column for (task, _, _), column in columns(records, folders).items()}
    return [
        _compare(published, row, column[row], scores[task], margin)
        for task, column in by_task.items()
        for row, scores in published.scores.items()
        if row in column and task in scores
    ]


def _compare(
    published: Published, row: str, runs: Runs, score: float, margin: float
) -> PublishedComparison:
    ours = runs.with_best_epochs() if published.epoch == "best" else runs
    task, metric = runs.task.name, runs.task.main_metric
    if not ours.by_seed:
        return PublishedComparison(
            task=task, metric=metric, row=row, published=score, seeds=[], says="failed"
        )
    low, high = None, None
    if (crossed := ours.crossed()) is not None:
        both = crossed.seed * (1 + crossed.n_seeds / published.seeds)
        interval = dataclasses.replace(crossed, seed=both).interval()
        low, high = (float(end) - score for end in interval)
    return PublishedComparison(
        task=task,
        metric=metric,
        row=row,
        published=score,
        seeds=list(ours.by_seed),
        mean=ours.mean,
        last=runs.mean,
        sd=sample_sd(ours.scores),
        difference=ours.mean - score,
        low=low,
        high=high,
        says=_verdict(len(ours.by_seed), low, high, margin),
    )


def _verdict(n_seeds: int, low: float | None, high: float | None, margin: float) -> str:
    if low is None or high is None:
        return unclear(NO_PREDICTIONS)
    if n_seeds < MIN_SEEDS:
        return unclear(counted(n_seeds, "seed"))
    if within(low, high, margin):
        return "equal"
    if low <= 0 <= high:
        return unclear()
    return "above" if low > 0 else "below"
