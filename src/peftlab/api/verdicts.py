"""Which row of a comparison is better, how sure that is, and which one to take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import RequestError, expanded, expect
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
    return compare_rows(records, [*folders, *_as_paths(folder)], question)


def _as_paths(folders: Folder | Sequence[Folder] | None) -> list[Path]:
    if folders is None:
        return []
    several = [folders] if isinstance(folders, (str, os.PathLike)) else folders
    return [expanded(folder) for folder in several]


def _read(
    folder_or_records: Folder | Sequence[Folder] | Sequence[Record],
) -> tuple[list[Record], list[Path]]:
    """The records, and the folders that they lie in; none if they are records already."""
    sources: list[Any]
    if isinstance(folder_or_records, (str, os.PathLike)):
        sources = [folder_or_records]
    else:
        sources = list(folder_or_records)
    if not sources:
        raise RequestError("nothing to compare: got an empty list; give a folder or records")
    records = [source for source in sources if isinstance(source, Record)]
    if len(records) == len(sources):
        return records, []
    for source in sources:
        expect("folder", source, (str, os.PathLike), "a path; give folders or records, not both")
    folders = [expanded(source) for source in sources]
    by_cell = {record.cell: record for folder in folders for record in Store(folder).records()}
    return list(by_cell.values()), folders[::-1]
