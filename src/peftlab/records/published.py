"""Our runs beside the scores that somebody published: difference, interval, and what it says.

difference    mean over our seeds - the published score, which is taken as exact: its own noise is
              known of few papers, and that its dev examples are ours makes the interval too wide
              rather than too short
interval      95 %, of seeds and dev examples (crossed.py), of this pair alone, not corrected for
              the number of scores; the influence of an example is that on the last epoch
says          above, below or equal (the interval lies within ± margin), else unclear
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS, within
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN, sample_sd
from peftlab.records.table import Runs, columns


class Published(BaseModel, extra="forbid", frozen=True, strict=True):
    """Scores of a paper or a report, as fractions.

    Attributes:
        scores: by row and task.
        epoch: the one that they are of, where the source says so. The best one was chosen on the
            examples that it is reported on, and ours is chosen so beside it.
    """

    scores: dict[str, dict[str, float]]
    epoch: Literal["last", "best", "not said"] = "not said"


class Beside(BaseModel, extra="forbid", frozen=True):
    """One published score and ours; all in the metric's unit.

    Attributes:
        seeds: those of ours that are done.
        mean: over them, of the epoch that the published score is of; null without a seed.
        last: of the last epoch.
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


def beside(
    published: Published,
    records: Sequence[Record],
    folders: Iterable[Path],
    margin: float = MARGIN,
) -> list[Beside]:
    """Every published score of a row and task that `records` have, in the source's order.

    Args:
        published: whose rows are called as ours are.
        records: ours; predictions/CELL.jsonl of each lies in one of `folders`.
        folders: searched in order.
        margin: differences within ± margin count as equal.
    """
    found = {key[0]: column for key, column in columns(records, folders).items()}
    return [
        _beside(published, row, column[row], of_row[task], margin)
        for task, column in found.items()
        for row, of_row in published.scores.items()
        if row in column and task in of_row
    ]


def _beside(published: Published, row: str, runs: Runs, score: float, margin: float) -> Beside:
    ours = runs.at_best() if published.epoch == "best" else runs
    task, metric = runs.task.name, runs.task.main_metric
    known: dict[str, Any] = {"task": task, "metric": metric, "row": row, "published": score}
    if not ours.by_seed:
        return Beside(**known, seeds=[], says="failed")
    crossed = ours.crossed()
    low, high = (float(end) - score for end in crossed.interval()) if crossed else (None, None)
    return Beside(
        **known,
        seeds=list(ours.by_seed),
        mean=ours.mean,
        last=runs.mean,
        sd=sample_sd(ours.scores),
        difference=ours.mean - score,
        low=low,
        high=high,
        says=_says(len(ours.predicted), low, high, margin),
    )


def _says(n_seeds: int, low: float | None, high: float | None, margin: float) -> str:
    if low is None or high is None:
        return "unclear: no predictions"
    if n_seeds < MIN_SEEDS:
        return f"unclear: {counted(n_seeds, 'seed')}"
    if within(low, high, margin):
        return "equal"
    if low <= 0 <= high:
        return "unclear"
    return "above" if low > 0 else "below"
