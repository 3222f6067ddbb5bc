"""The page and the table of a folder, from what lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.console import RenderableType

from peftlab.errors import system_refusals
from peftlab.records.record import Record
from peftlab.records.store import Store, chosen, rounds
from peftlab.records.verdicts import EVERYDAY, Comparison, Question, compare_rows
from peftlab.report.page import build
from peftlab.report.papers import FORMS
from peftlab.report.scores import table
from peftlab.report.terminal import render_terminal


class Shown(NamedTuple):
    """The page's file, the table as a terminal shows it, and the cells that could not be read."""

    page: Path
    terminal: RenderableType
    unreadable: list[str]


def rebuild(
    folder: Path,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    drawn: Sequence[str] = ("svg",),
    question: Question = EVERYDAY,
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
    terminal = render_terminal(table(records, rounds(folder)), comparison)
    return Shown(page, terminal, store.unreadable())


def printed(
    folder: Path,
    form: str,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
    question: Question = EVERYDAY,
) -> str:
    """The table of a folder as text, for a paper or a spreadsheet; nothing is written.

    `form` is latex, markdown or csv; all else is as for `rebuild`.
    """
    records, comparison = _asked(Store(folder), tasks, methods, last, question)
    return FORMS[form].text(table(records, rounds(folder)), comparison)


def _asked(
    store: Store,
    tasks: list[str] | None,
    methods: list[str] | None,
    last: bool,
    question: Question,
) -> tuple[list[Record], Comparison]:
    records = chosen(store.records(last), tasks, methods)
    return records, compare_rows(records, [store.out], question)
