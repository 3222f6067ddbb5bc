"""The results of a comparison, read from its folder for a script or a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import RequestError, expanded, expect, expect_path
from peftlab.records.question import Prefer, Question
from peftlab.records.record import Record
from peftlab.records.rows import MARGIN
from peftlab.records.sides import join
from peftlab.records.store import Store, unreadable_note
from peftlab.report import Shown, rebuild

SIDE_BY_SIDE = Path("runs/side-by-side")


def show(
    folder: str | Path | Sequence[str | Path],
    *,
    tasks: str | list[str] | None = None,
    methods: str | list[str] | None = None,
    last: bool = False,
    margin: float = MARGIN,
    prefer: Prefer = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
    out: str | Path | None = None,
) -> Shown:
    """The table with the row to take, as `peftlab report` prints it; its page is written anew.

    The returned object shows the table in a notebook and by `print`.

    Args:
        folder: the output folder of a comparison; several are laid side by side, with notes on
            which of their numbers may be compared.
        tasks: the tasks to show; all if not given.
        methods: the rows to show; a method's name stands for all its variants.
        last: only what the latest comparison asked for.
        margin: differences within ± margin count as a tie.
        prefer: score, memory, speed or size: decides between rows none of which is worse.
        memory_mib: recommend only rows whose peak memory is at most this.
        minutes: recommend only rows whose cells take at most this time.
        out: for several folders: a new one for their page; runs/side-by-side if not given.

    Raises:
        RequestError: if the folder has no such records or can't be written, or nothing meets the
            limits.
    """
    folders: list[Any] = list(folder) if isinstance(folder, (list, tuple)) else [folder]
    for each in folders:
        expect_path("folder", each)
    if out is not None:
        expect_path("out", out)
    expect("last", last, bool, "True or False")
    question = Question(margin, prefer, memory_mib, minutes)
    selection = _names("tasks", tasks), _names("methods", methods)
    paths = [expanded(each) for each in folders]
    laid, notes = side_by_side(paths, None if out is None else expanded(out))
    return rebuild(laid, *selection, last, question=question)._replace(notes=tuple(notes))


def side_by_side(folders: Sequence[Path], out: Path | None) -> tuple[Path, list[str]]:
    """The folder to show, and notes on what may be compared: several folders become one, `out`.

    Raises:
        RequestError: if there is no folder, `out` is given for a single one, or several can't be
            laid side by side there.
    """
    if not folders:
        raise RequestError("folder must be a folder, or a list of folders, got none")
    if len(folders) == 1:
        if out is not None:
            raise RequestError(
                "--out (in Python: out=) is for several folders; the page of one goes to it, "
                f"{folders[0]}"
            )
        return folders[0], []
    laid = out or SIDE_BY_SIDE
    return laid, join(folders, laid)


def _names(argument: str, names: Any) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str):
        return [names]
    words = "a name, or a list of names"
    expect(argument, names, (list, tuple), words)
    if not names:
        raise RequestError(f"{argument} must be {words}, got {names!r}")
    for name in names:
        expect(argument, name, str, words)
    return list(names)


def load_records(folder: str | Path) -> list[Record]:
    """The record of every cell in the output folder of a comparison.

    An unreadable record is left out, with a warning. A cell's curve is FOLDER/curves/CELL.jsonl,
    one step or epoch a line; its predictions for dev are FOLDER/predictions/CELL.jsonl.

    Raises:
        RequestError: if the folder has no records.
    """
    expect_path("folder", folder)
    store = Store(expanded(folder))
    for cell in store.unreadable():
        warnings.warn(unreadable_note(cell), stacklevel=2)
    return store.records()
