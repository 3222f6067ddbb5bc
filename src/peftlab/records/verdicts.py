"""All statistics of a comparison: row pairs, rows over tasks, noise, and the row to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from peftlab.records.across import Improvement, Overall, improvements, overall
from peftlab.records.noise import Noise, noise
from peftlab.records.own import OwnScore, own_scores
from peftlab.records.pairs import Verdict, verdicts
from peftlab.records.question import DEFAULT_QUESTION, Question
from peftlab.records.recommend import Recommendation, recommend
from peftlab.records.record import Record
from peftlab.records.rows import LOWER_IS_BETTER, MARGIN, finite_values, mean
from peftlab.records.table import columns


class Comparison(BaseModel, extra="forbid", frozen=True):
    """The statistics of a comparison; report/verdicts.json holds their `model_dump()`.

    Attributes:
        pairs: every pair of rows on every task.
        own: every row's own score on every task, with its interval.
        over_tasks: every row over all tasks; empty with fewer than two tasks.
        improvement: how likely a run of one row beats one of another; likewise.
        noise: how far runs of the same row differ, for every row on every task.
        inflation: how much choosing the best epoch adds to a score, mean over rows and tasks whose
            metric is no error; null if there are none.
        n_collapsed: number of runs no better than a constant answer; every statistic includes them.
        recommendation: the row to take; null if no row has a score on every task.
        margin: differences within ± margin are a tie; for an error, within that share of the
            baseline's.
    """

    pairs: list[Verdict]
    own: list[OwnScore]
    over_tasks: list[Overall]
    improvement: list[Improvement]
    noise: list[Noise]
    inflation: float | None
    n_collapsed: int
    recommendation: Recommendation | None
    margin: float = MARGIN  # earlier files do not say


def compare_rows(
    records: Sequence[Record],
    folders: Iterable[Path],
    question: Question = DEFAULT_QUESTION,
    unrequested: Sequence[Record] = (),
) -> Comparison:
    """The statistics of `records`, whose predictions lie in `folders`.

    Args:
        records: of one or more comparisons.
        folders: searched in order for predictions/CELL.jsonl; without them no verdict is given.
        question: the margin of a tie, and what to recommend.
        unrequested: of rows that were compared on the same tasks and are not to be shown: verdicts
            are corrected for their pairs too.

    Raises:
        RequestError: no row meets the limits.
    """
    folders = list(folders)
    table = columns(records, folders)
    pairs = verdicts(table, question.margin, columns(unrequested, folders) if unrequested else {})
    noises = noise(table)
    return Comparison(
        pairs=[verdict for of_task in pairs.values() for verdict in of_task],
        own=own_scores(table),
        over_tasks=overall(table, pairs),
        improvement=improvements(table),
        noise=noises,
        inflation=mean(
            finite_values(one.inflation for one in noises if one.metric not in LOWER_IS_BETTER)
        ),
        n_collapsed=sum(one.n_collapsed for one in noises),
        recommendation=recommend(table, pairs, question, unrequested),
        margin=question.margin,
    )
