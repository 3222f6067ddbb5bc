"""What a comparison has left in its folder, for a script or a notebook."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peftlab.errors import expanded, expect, expect_path
from peftlab.records.recommend import Prefer
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN
from peftlab.records.store import Store, lost
from peftlab.records.verdicts import Question
from peftlab.report import Shown, rebuild


def show(
    folder: str | Path,
    *,
    tasks: str | list[str] | None = None,
    methods: str | list[str] | None = None,
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
    expect("last", last, bool, "True or False")
    expect("margin", margin, (int, float), "a number")
    for name, limit in (("memory_mib", memory_mib), ("minutes", minutes)):
        if limit is not None:
            expect(name, limit, (int, float), "a number")
    question = Question(margin, prefer, memory_mib, minutes)
    wanted = _names("tasks", tasks), _names("methods", methods)
    return rebuild(expanded(folder), wanted[0], wanted[1], last, question=question)


def _names(what: str, given: Any) -> list[str] | None:
    if given is None:
        return None
    if isinstance(given, str):
        return [given]
    expect(what, given, (list, tuple), "a name, or a list of names")
    return list(given)


def load_records(folder: str | Path) -> list[Record]:
    """The record of every cell in the output folder of a comparison.

    One that can't be read is left out, with a warning. A cell's curve is FOLDER/curves/CELL.jsonl,
    one step or epoch a line; its predictions for dev are FOLDER/predictions/CELL.jsonl.

    Raises:
        RequestError: if there are none.
    """
    expect_path("folder", folder)
    store = Store(expanded(folder))
    for cell in store.unreadable():
        warnings.warn(lost(cell), stacklevel=2)
    return store.records()
