"""The page and the table of a folder, from what lies in it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console, RenderableType

from peftlab.errors import system_refusals
from peftlab.naming import counted, listed
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, group, task_key
from peftlab.records.store import Store, chosen, lost, rounds_of
from peftlab.records.verdicts import DEFAULT_QUESTION, Comparison, Question, compare_rows
from peftlab.report.page import build
from peftlab.report.papers import FORMS
from peftlab.report.scores import table
from peftlab.report.terminal import render_terminal

WIDTH = 100  # characters of the table where no terminal says how many it has


class Shown(NamedTuple):
    """What became of a folder. As text it is the table and the way to the page.

    Attributes:
        page: its file.
        terminal: the table as a terminal shows it.
        unreadable: the cells that could not be read.
        beside: what the page shows and the table does not, in a line; or nothing.
    """

    page: Path
    terminal: RenderableType
    unreadable: list[str]
    beside: str = ""

    def __repr__(self) -> str:
        plain: dict[str, Any] = {"force_terminal": False, "color_system": None}  # FORCE_COLOR too
        console = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False, **plain)
        with console.capture() as captured:
            console.print(self.terminal)
        lines = [captured.get().rstrip(), *map(lost, self.unreadable), self.beside]
        lines = [line for line in lines if line]
        return "\n".join([*lines, f"page: {self.page.resolve()}"])


def rebuild(
    folder: Path,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    drawn: Sequence[str] = ("svg",),
    question: Question = DEFAULT_QUESTION,
    sentences: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Shown:
    """Write the page of a folder anew from its records: all of them, unless less is asked for.

    Args:
        folder: of `peftlab compare`.
        tasks: these alone.
        methods: these rows alone, by label, or by name for all of a method.
        last: only what the latest comparison asked for.
        drawn: as what files to draw every figure too: svg, pdf.
        question: how near is a tie, and what to recommend within which limits.
        sentences: dev texts that the page may show, by the sha256 of their task's data.

    Raises:
        RequestError: if the folder has no such records, or can't be written, or nothing meets the
            limits.
    """
    store = Store(folder)
    records, comparison = _asked(store, tasks, methods, last, question)
    with system_refusals(f"{folder} can't be written"):
        page = build(folder, store.title(records), records, comparison, drawn, sentences)
    terminal = render_terminal(table(records, rounds_of(folder)), comparison)
    return Shown(page, terminal, store.unreadable())


def conclude(folder: Path, asked: Sequence[Record]) -> Shown:
    """The page of all of a folder, and the table of the tasks that were just compared there.

    Rows of earlier comparisons on the very same examples are in both. Other tasks are not in the
    table, as the advice below it would be over them too.

    Args:
        folder: of `peftlab compare`.
        asked: the records of what it was asked for now.

    Raises:
        RequestError: if the folder can't be read or written.
    """
    shown = rebuild(folder)
    tasks = {task_key(record) for record in asked}
    records = Store(folder).records()
    of_these = [record for record in records if task_key(record) in tasks]
    if len(of_these) == len(records):
        return shown
    terminal = render_terminal(table(of_these, rounds_of(folder)), compare_rows(of_these, [folder]))
    others = Counter(task_key(record) for record in records if task_key(record) not in tasks)
    return shown._replace(terminal=terminal, beside=_beside(folder, tasks, others))


def _beside(folder: Path, tasks: Set[TaskKey], others: Counter[TaskKey]) -> str:
    examples = {(name, sha256) for name, _, sha256 in tasks}
    names = {name for name, _ in examples}
    told = []
    for (name, metric, sha256), n in others.items():
        apart = f" by {metric}" if (name, sha256) in examples else " with other examples"
        cells = f"{counted(n, 'cell')} of an earlier comparison"
        told.append(f"{name}{apart * (name in names)} ({cells})")
    return (
        f"{folder} also holds {listed(told)}, which the page shows too; "
        f"peftlab report {folder} --last shows this one alone"
    )


def printed(
    folder: Path,
    form: str,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    question: Question = DEFAULT_QUESTION,
) -> str:
    """The table of a folder as text, for a paper or a spreadsheet; nothing is written.

    `form` is latex, markdown or csv; all else is as for `rebuild`.
    """
    records, comparison = _asked(Store(folder), tasks, methods, last, question)
    return FORMS[form].text(table(records, rounds_of(folder)), comparison)


def _asked(
    store: Store,
    tasks: list[str] | None,
    methods: list[str] | None,
    last: bool,
    question: Question,
) -> tuple[list[Record], Comparison]:
    every = store.records()
    records = chosen(store.records(last) if last else every, tasks, methods)
    beside = _beside_rows(every, records)
    return records, compare_rows(records, [store.out], question, beside)


def _beside_rows(every: Sequence[Record], asked: Sequence[Record]) -> list[Record]:
    """Of all records those of other rows on the tasks asked for."""
    tasks, cells = {task_key(one) for one in asked}, {one.cell for one in asked}
    rows = (row for row in group(every).values() if cells.isdisjoint(one.cell for one in row))
    return [one for row in rows for one in row if task_key(one) in tasks]
