"""The score table on a terminal."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from peftlab.report.scores import Cell, Row, Table
from peftlab.report.text import MISSING, minutes, notes, number, partial, printable, span, spread

COST = ("adapter\nparam.", "head\nparam.", "ex/s", "peak\nMiB", "min/\ncell")


def render_terminal(table: Table) -> RenderableType:
    """The table as rich draws it: scores, what is trained, speed, memory, time; then failures."""
    return _View(table)


@dataclasses.dataclass(frozen=True)
class _View:
    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _draw(self.table, scores=True, cost=True)
        if (
            Measurement.get(console, options.update(width=10_000), whole).maximum
            <= options.max_width
        ):
            yield whole
        else:
            # two tables that can be read, rather than one with words cut to pieces
            yield _draw(self.table, scores=True, cost=False)
            yield _draw(self.table, scores=False, cost=True)
        for line in _below(self.table):
            yield Text(line)


def _draw(table: Table, *, scores: bool, cost: bool) -> RichTable:
    view = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    view.add_column("method", overflow="fold")
    synthetic = any(column.synthetic for column in table.columns)
    for column in table.columns if scores else ():
        lines = [printable(column.label), column.metric, f"dev {column.n_dev:,}"]
        lines += ["synthetic" if column.synthetic else ""] if synthetic else []
        view.add_column(Text("\n".join(lines)), justify="right", overflow="fold")
    for header in COST if cost else ():
        view.add_column(header, justify="right")
    for row in table.rows:
        texts = [printable(row.label)]
        texts += [_score(cell, table) for cell in row.cells] if scores else []
        texts += _cost(row, len(table.columns)) if cost else []
        view.add_row(*map(Text, texts))
    return view


def _cost(row: Row, n_columns: int) -> list[str]:
    mark = partial(row, n_columns)
    values = (row.examples_per_s, row.peak_mib, minutes(row.cell_s))
    return [
        span(row.adapter),
        span(row.head),
        *(number(value) + (mark if value is not None else "") for value in values),
    ]


def _score(cell: Cell | None, table: Table) -> str:
    if cell is None:
        return MISSING
    return "\n".join([spread(cell.last), *notes(cell, table.n_seeds)])


def _below(table: Table) -> list[str]:
    """The caption's lines and every failed cell with its reason."""
    n = table.n_seeds
    if n == 1:
        what = "one seed, so no spread can be given"
    else:
        what = f"mean ± sample sd over {n} seeds, where no other n is given"
    lines = []
    if n:
        lines.append(f"Scores: dev, last epoch, as fractions; {what}. {MISSING} not measured.")
    if len(table.columns) > 1:
        lines.append("ex/s and minutes: mean over tasks; peak MiB: the highest of them.")
    if any(partial(row, len(table.columns)) for row in table.rows):
        lines.append("† over fewer tasks than other rows have: compares with none of them.")
    if table.failures:
        lines.append(f"{len(table.failures)} of {table.n_cells} cells failed:")
        lines += [
            printable(f"  {bad.row}, {bad.task}, seed {bad.seed}: {bad.kind}: {bad.message}")
            for bad in table.failures
        ]
    return lines
