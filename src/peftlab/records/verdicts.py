"""All that a comparison's runs show of its rows: pairs, tasks together, noise, what to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ByteSize, TypeAdapter

from peftlab.errors import RequestError
from peftlab.records.across import Improvement, Overall, improvements, overall
from peftlab.records.noise import Noise, noise
from peftlab.records.own import Own, own
from peftlab.records.pairs import Verdict, verdicts
from peftlab.records.recommend import Recommendation, recommend
from peftlab.records.record import Record
from peftlab.records.rows import LOWER_IS_BETTER, MARGIN, known, mean
from peftlab.records.table import columns


class Question(NamedTuple):
    """What is asked of a comparison.

    Attributes:
        margin: differences within ± margin count as a tie.
        prefer: what decides between rows none of which is shown to be worse than the best.
        memory_mib: highest peak of a run that is recommended; None for no limit.
        minutes: longest mean of a cell, likewise.
    """

    margin: float = MARGIN
    prefer: str = "size"
    memory_mib: float | None = None
    minutes: float | None = None


DEFAULT_QUESTION = Question()


def mebibytes(text: str | None) -> float | None:
    """An amount of memory such as 2GiB or 512MB in MiB; None of None.

    Raises:
        RequestError: if it is none.

    >>> mebibytes("2GiB"), mebibytes("512 MiB")
    (2048.0, 512.0)
    """
    if text is None:
        return None
    try:
        if not any(map(str.isalpha, text)):  # else bytes, which nobody means
            raise ValueError
        return TypeAdapter(ByteSize).validate_python(text) / 2**20
    except ValueError:  # pydantic's is one
        raise RequestError(
            f"memory must be a number with a unit, such as 2GiB or 800MiB, got {text!r}"
        ) from None


class Comparison(BaseModel, extra="forbid", frozen=True):
    """What a comparison shows. `model_dump()` is what report/verdicts.json holds.

    Attributes:
        pairs: every pair of rows on every task.
        own: how sure every row's own score on every task is.
        over_tasks: every row over all tasks; empty with fewer than two tasks.
        improvement: how likely a run of one row beats one of another; likewise.
        noise: every row against itself, on every task.
        inflation: what choosing the best epoch adds to a score, mean over rows and tasks whose
            metric is no error; null if there are none.
        n_collapsed: runs no better than a constant answer; they are in every statistic.
        recommendation: the row to take; null if no row has a score on every task.
        margin: differences within ± margin are a tie, of an error that share of the baseline's.
    """

    pairs: list[Verdict]
    own: list[Own]
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
    beside: Sequence[Record] = (),
) -> Comparison:
    """The statistics of `records`, whose predictions lie in `folders`.

    Args:
        records: of one or more comparisons.
        folders: searched in order for predictions/CELL.jsonl; without them no verdict is given.
        question: how near is a tie, and what to recommend.
        beside: of rows that were compared on the same tasks and are not asked for: verdicts are
            corrected for their pairs too.

    Raises:
        RequestError: nothing meets the limits, or the question makes no sense.
    """
    folders = list(folders)
    found = columns(records, folders)
    _check(question)
    pairs = verdicts(found, question.margin, columns(beside, folders) if beside else {})
    against_itself = noise(found)
    return Comparison(
        pairs=[verdict for of_task in pairs.values() for verdict in of_task],
        own=own(found),
        over_tasks=overall(found, pairs),
        improvement=improvements(found),
        noise=against_itself,
        inflation=mean(
            known(one.inflation for one in against_itself if one.metric not in LOWER_IS_BETTER)
        ),
        n_collapsed=sum(one.n_collapsed for one in against_itself),
        recommendation=recommend(
            found, pairs, question.prefer, question.memory_mib, question.minutes
        ),
        margin=question.margin,
    )


def _check(question: Question) -> None:
    if not 0 <= question.margin < float("inf"):
        raise RequestError(
            f"margin must be at least 0 and finite, got {question.margin}; 0.01 is one point"
        )
