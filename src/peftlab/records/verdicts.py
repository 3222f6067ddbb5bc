"""All statistics of a comparison: row pairs, rows over tasks, noise, and the row to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ByteSize, TypeAdapter

from peftlab.errors import RequestError
from peftlab.records.across import Improvement, Overall, improvements, overall
from peftlab.records.noise import Noise, noise
from peftlab.records.own import OwnScore, own_scores
from peftlab.records.pairs import Verdict, verdicts
from peftlab.records.recommend import Recommendation, recommend
from peftlab.records.record import Record
from peftlab.records.rows import LOWER_IS_BETTER, MARGIN, finite_values, mean
from peftlab.records.table import columns


class Question(NamedTuple):
    """The settings of a comparison's verdicts and of its recommendation.

    Attributes:
        margin: differences within ± margin count as a tie.
        prefer: the criterion that decides between rows none of which is shown to be worse than the
            best.
        memory_mib: limit of the peak memory of the recommended row; None for no limit.
        minutes: limit of the mean duration of its cells, likewise.
    """

    margin: float = MARGIN
    prefer: str = "size"
    memory_mib: float | None = None
    minutes: float | None = None


DEFAULT_QUESTION = Question()


def mebibytes(text: str | None) -> float | None:
    """An amount of memory such as 2GiB or 512MB in MiB; None for None.

    Raises:
        RequestError: if the text is no amount of memory.

    >>> mebibytes("2GiB"), mebibytes("512 MiB")
    (2048.0, 512.0)
    """
    if text is None:
        return None
    try:
        if not any(map(str.isalpha, text)):  # pydantic takes it for bytes, which nobody means
            raise ValueError
        return TypeAdapter(ByteSize).validate_python(text) / 2**20
    except ValueError:  # pydantic's ValidationError is one
        raise RequestError(
            f"memory must be a number with a unit, such as 2GiB or 800MiB, got {text!r}"
        ) from None


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
        RequestError: no row meets the limits, or the question makes no sense.
    """
    folders = list(folders)
    table = columns(records, folders)
    _check(question)
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
        recommendation=recommend(
            table, pairs, question.prefer, question.memory_mib, question.minutes, unrequested
        ),
        margin=question.margin,
    )


def _check(question: Question) -> None:
    if not 0 <= question.margin < float("inf"):
        raise RequestError(
            f"margin must be at least 0 and finite, got {question.margin}; 0.01 is one point"
        )
