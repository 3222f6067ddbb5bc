"""All that a comparison's runs show of its rows: pairs, tasks together, noise, what to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from peftlab.records.across import Improvement, Overall, improvements, overall
from peftlab.records.noise import Noise, noise
from peftlab.records.pairs import MARGIN, Verdict, verdicts
from peftlab.records.recommend import Prefer, Recommendation, recommend
from peftlab.records.record import Record
from peftlab.records.rows import ERRORS, known, mean
from peftlab.records.table import columns


class Comparison(BaseModel):
    """What a comparison shows. `model_dump()` is what report/verdicts.json holds.

    Attributes:
        pairs: every pair of rows on every task.
        over_tasks: every row over all tasks; empty with fewer than two tasks.
        improvement: how likely a run of one row beats one of another; likewise.
        noise: every row against itself, on every task.
        inflation: what choosing the best epoch adds to a score, mean over rows and tasks whose
            metric is no error; null if there are none.
        n_collapsed: runs no better than a constant answer; they are in every statistic.
        recommendation: the row to take; null if no row has a score on every task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: list[Verdict]
    over_tasks: list[Overall]
    improvement: list[Improvement]
    noise: list[Noise]
    inflation: float | None
    n_collapsed: int
    recommendation: Recommendation | None


def compare_rows(
    records: Sequence[Record],
    folders: Iterable[Path],
    margin: float = MARGIN,
    prefer: Prefer = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
) -> Comparison:
    """The statistics of `records`, whose predictions lie in `folders`.

    Args:
        records: of one or more comparisons.
        folders: searched in order for predictions/CELL.jsonl; without them no verdict is given.
        margin: differences within ± margin count as a tie.
        prefer: what the recommendation goes by; with its limits as in `recommend`.
        memory_mib: see there.
        minutes: see there.

    Raises:
        RequestError: nothing meets the limits.
    """
    found = columns(records, folders)
    pairs = verdicts(found, margin)
    against_itself = noise(found)
    return Comparison(
        pairs=[verdict for of_task in pairs.values() for verdict in of_task],
        over_tasks=overall(found, pairs),
        improvement=improvements(found),
        noise=against_itself,
        inflation=mean(known(one.inflation for one in against_itself if one.metric not in ERRORS)),
        n_collapsed=sum(one.n_collapsed for one in against_itself),
        recommendation=recommend(found, pairs, prefer, memory_mib, minutes),
    )
