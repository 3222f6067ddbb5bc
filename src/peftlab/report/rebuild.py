"""The page and the table of a folder, from the records in it."""

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
from peftlab.records.question import DEFAULT_QUESTION, Question
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, group, task_key
from peftlab.records.store import Store, rounds_of, select, unreadable_note
from peftlab.records.verdicts import Comparison, compare_rows
from peftlab.report.page import build
from peftlab.report.papers import FORMS
from peftlab.report.scores import table
from peftlab.report.terminal import render_terminal

WIDTH = 100  # characters of the table where no terminal has a width


class Shown(NamedTuple):
    """The page and the table of a folder. As text it is the table and the path of the page.

    Attributes:
        page: the path of its file.
        terminal: the table as a terminal shows it.
        unreadable: the cells that could not be read.
        beside: a line on the tasks that the page shows and the table does not; or empty.
        notes: of several folders side by side: what may be compared.
    """

    page: Path
    terminal: RenderableType
    unreadable: list[str]
    beside: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        plain: dict[str, Any] = {"force_terminal": False, "color_system": None}  # FORCE_COLOR too
        console = Console(file=io.StringIO(), width=WIDTH, force_jupyter=False, **plain)
        with console.capture() as captured:
            console.print(self.terminal)
        notes = [*map(unreadable_note, self.unreadable), self.beside, *self.notes]
        lines = [line for line in (captured.get().rstrip(), *notes) if line]
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
        methods: these rows alone, by label, or all rows of a method, by its name.
        last: only the cells that the latest comparison requested.
        drawn: the formats of the files that every figure is drawn to as well: svg, pdf.
        question: the margin of a tie, the preference, and the limits of a recommendation.
        sentences: dev texts that the page may show, by the sha256 of their task's data.

    Raises:
        RequestError: if the folder has no such records, or can't be written, or nothing meets the
            limits.
    """
    store = Store(folder)
    records, comparison = _select(store, tasks, methods, last, question)
    with system_refusals(f"{folder} can't be written"):
        page = build(folder, store.title(records), records, comparison, drawn, sentences)
    terminal = render_terminal(table(records, rounds_of(folder)), comparison)
    return Shown(page, terminal, store.unreadable())


def conclude(folder: Path, compared: Sequence[Record]) -> Shown:
    """The page of the whole folder, and the table of the tasks that were just compared there.

    Rows of earlier comparisons on the very same examples are in both. Other tasks are not in the
    table, as the advice below it would then be on them too.

    Args:
        folder: of `peftlab compare`.
        compared: the records of the comparison that has just ended.

    Raises:
        RequestError: if the folder can't be read or written.
    """
    shown = rebuild(folder)
    tasks = {task_key(record) for record in compared}
    all_records = Store(folder).records()
    records = [record for record in all_records if task_key(record) in tasks]
    if len(records) == len(all_records):
        return shown
    terminal = render_terminal(table(records, rounds_of(folder)), compare_rows(records, [folder]))
    others = Counter(task_key(record) for record in all_records if task_key(record) not in tasks)
    return shown._replace(terminal=terminal, beside=_describe_others(folder, tasks, others))


def _describe_others(folder: Path, tasks: Set[TaskKey], others: Counter[TaskKey]) -> str:
    examples = {(name, sha256) for name, _, sha256 in tasks}
    names = {name for name, _ in examples}
    described = []
    for (name, metric, sha256), n in others.items():
        difference = f" by {metric}" if (name, sha256) in examples else " with other examples"
        cells = f"{counted(n, 'cell')} of an earlier comparison"
        described.append(f"{name}{difference if name in names else ''} ({cells})")
    return (
        f"{folder} also holds {listed(described)}, which the page shows too; "
        f"peftlab report {folder} --last shows this one alone"
    )


def format_table(
    folder: Path,
    form: str,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    question: Question = DEFAULT_QUESTION,
) -> str:
    """The table of a folder as text, for a paper or a spreadsheet; nothing is written.

    `form` is latex, markdown or csv; the other parameters are those of `rebuild`.
    """
    records, comparison = _select(Store(folder), tasks, methods, last, question)
    return FORMS[form].text(table(records, rounds_of(folder)), comparison)


def _select(
    store: Store,
    tasks: list[str] | None,
    methods: list[str] | None,
    last: bool,
    question: Question,
) -> tuple[list[Record], Comparison]:
    """The records asked for, and their comparison."""
    all_records = store.records()
    records = select(store.records(last) if last else all_records, tasks, methods)
    others = _other_rows(all_records, records)
    return records, compare_rows(records, [store.out], question, others)


def _other_rows(all_records: Sequence[Record], selected: Sequence[Record]) -> list[Record]:
    """The records of rows that were not selected, on the tasks of those that were."""
    tasks, cells = {task_key(record) for record in selected}, {record.cell for record in selected}
    rows = [row for row in group(all_records).values() if cells.isdisjoint(r.cell for r in row)]
    return [record for row in rows for record in row if task_key(record) in tasks]
