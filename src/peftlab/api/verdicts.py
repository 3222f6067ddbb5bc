"""Which row of a comparison is better, how sure that is, and which one to take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import RequestError, expanded, expect
from peftlab.records.question import Prefer, Question
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN
from peftlab.records.store import Store
from peftlab.records.verdicts import Comparison, compare_rows

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
        margin: differences within ± margin count as a tie; for an error, within that share of the
            baseline's.
        folder: one or more folders with the predictions of `folder_or_records`, if those are
            records: they hold none, and without predictions there are no verdicts.
        prefer: the criterion, score, memory, speed or size, that decides between rows none of which
            is shown to be worse than the best.
        memory_mib: limit of the peak memory of the recommended row; None for no limit.
        minutes: limit of the mean duration of its cells, likewise.

    Raises:
        RequestError: if a folder has no records, or `folder` no predictions, if the margin is no
            finite number of at least 0, if the preference is unknown, or if no row meets the
            limits.
    """
    question = Question(margin, prefer, memory_mib, minutes)
    records, folders = _read_records(folder_or_records)
    if folder is not None:
        if folders:
            raise RequestError("folder= is for records, and folders were given; leave it out")
        folders = _with_predictions(folder)
    return compare_rows(records, folders, question)


def _with_predictions(folder: Folder | Sequence[Folder]) -> list[Path]:
    """The folders; raises `RequestError` for one that is no comparison's."""
    given = [folder] if isinstance(folder, (str, os.PathLike)) else folder
    folders = [expanded(one) for one in given]
    for one in folders:
        if not (one / "predictions").is_dir():
            raise RequestError(
                f"{one} has no predictions; give the output folder that the records come from"
            )
    return folders


def _read_records(
    folder_or_records: Folder | Sequence[Folder] | Sequence[Record],
) -> tuple[list[Record], list[Path]]:
    """The records and their folders, the last one first; no folders if records were given."""
    sources: list[Any]
    if isinstance(folder_or_records, (str, os.PathLike)):
        sources = [folder_or_records]
    else:
        if not isinstance(folder_or_records, Iterable):
            raise RequestError(f"give a folder, folders or records, got {folder_or_records!r}")
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
