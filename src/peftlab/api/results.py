"""What a comparison has left in its folder, for a script or a notebook."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import expect_path
from peftlab.records.recommend import Prefer
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN
from peftlab.records.store import Store
from peftlab.records.verdicts import Question
from peftlab.report import Shown, rebuild


def show(
    folder: str | Path,
    *,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    margin: float = MARGIN,
    prefer: Prefer = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
) -> Shown:
    """The table with the row to take, as `peftlab report` prints it; its page is written anew.

    What comes back shows itself in a notebook and by `print`.

    Args:
        folder: the output folder of a comparison.
        tasks: these alone; all if not given.
        methods: these rows alone; a method's name stands for all its variants.
        last: only what the latest comparison asked for.
        margin: differences within ± margin count as a tie.
        prefer: score, memory, speed or size: what decides between rows none of which is worse.
        memory_mib: recommend only what keeps to this peak of a run.
        minutes: recommend only what keeps to this time of a cell.

    Raises:
        RequestError: if the folder has no such records or can't be written, or nothing meets the
            limits.
    """
    expect_path("folder", folder)
    question = Question(margin, prefer, memory_mib, minutes)
    return rebuild(Path(folder), tasks, methods, last, question=question)


def load_records(folder: str | Path) -> list[Record]:
    """The record of every cell in the output folder of a comparison.

    A cell's curve is FOLDER/curves/CELL.jsonl, one step or epoch a line; its predictions for dev
    are FOLDER/predictions/CELL.jsonl.

    Raises:
        RequestError: if there are none.
    """
    expect_path("folder", folder)
    return Store(Path(folder)).records()
