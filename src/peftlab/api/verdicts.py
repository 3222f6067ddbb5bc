"""Which row of a comparison is better, how sure that is, and which one to take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import RequestError, expect
from peftlab.records.recommend import Prefer
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN
from peftlab.records.store import Store
from peftlab.records.verdicts import Comparison, Question, compare_rows

Folder = str | os.PathLike[str]


def verdicts(
    folder_or_records: Folder | Sequence[Folder] | Sequence[Record],
    margin: float = MARGIN,
    *,
    folder: Folder | Sequence[Folder] | None = None,
    prefer: Prefer = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
) -> Comparison:
    """Every pair of rows as better, worse, tie or unclear, rows over tasks, and a recommendation.

    Args:
        folder_or_records: the output folder of a comparison, several of them, or records. Of
            several folders, the last one's record of a cell counts.
        margin: differences within ± margin count as a tie; of an error, this share of the
            baseline's.
        folder: where the predictions of given records lie. Without it no verdict is given: records
            hold no predictions.
        prefer: score, memory, speed or size: what decides between rows none of which is shown to
            be worse than the best.
        memory_mib: recommend only what keeps to this peak of a run.
        minutes: recommend only what keeps to this time of a cell.

    Raises:
        RequestError: a folder without records, a margin that is no number of at least 0, an
            unknown preference, or limits that nothing meets.
    """
    expect("margin", margin, (int, float), "a number")
    records, folders = _read(folder_or_records)
    question = Question(margin, prefer, memory_mib, minutes)
    return compare_rows(records, [*folders, *_folders(folder)], question)


def _folders(given: Folder | Sequence[Folder] | None) -> list[Path]:
    if given is None:
        return []
    return [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(one) for one in given]


def _read(
    given: Folder | Sequence[Folder] | Sequence[Record],
) -> tuple[list[Record], list[Path]]:
    """The records, and the folders that they lie in; of given records none."""
    several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    if not several:
        raise RequestError("nothing to compare: got an empty list; give a folder or records")
    records = [one for one in several if isinstance(one, Record)]
    if len(records) == len(several):
        return records, []
    folders = []
    for one in several:
        expect("folder", one, (str, os.PathLike), "a path; give folders or records, not both")
        folders.append(Path(str(one)))
    by_cell = {record.cell: record for folder in folders for record in Store(folder).records()}
    return list(by_cell.values()), folders[::-1]
