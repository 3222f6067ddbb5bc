"""The score table on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from peftlab.records.verdicts import Comparison
from peftlab.report import standing, text
from peftlab.report.advice import advice, unreached
from peftlab.report.columns import Column
from peftlab.report.costs import RowCost
from peftlab.report.scores import Cell, Row, Table
from peftlab.report.text import MISSING, minutes, notes, number, printable, span, spread

Marks = Mapping[tuple[str, int], str]
COST = ("adapter\nparam.", "head\nparam.", "ex/s", "peak\nMiB", "min/\ncell")


def render_terminal(table: Table, comparison: Comparison | None = None) -> RenderableType:
    """The table as rich draws it: scores, what is trained, speed, memory, time; then failures.

    With a comparison the best scores and their ties are marked, and the row to take is named.
    """
    return _View(table, comparison)


@dataclasses.dataclass(frozen=True)
class _View:
    table: Table
    comparison: Comparison | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = standing.marks(self.table, self.comparison) if self.comparison else {}
        whole = _draw(self.table, marks, scores=True, cost=True)
        if (
            Measurement.get(console, options.update(width=10_000), whole).maximum
            <= options.max_width
        ):
            yield whole
        else:
            # two tables that can be read, rather than one with words cut to pieces
            yield _draw(self.table, marks, scores=True, cost=False)
            yield _draw(self.table, marks, scores=False, cost=True)
        for line in [*_below(self.table), *_compared(self.table, self.comparison)]:
            yield Text(line)


def _compared(table: Table, comparison: Comparison | None) -> list[str]:
    """What the marks mean, the noise, and last of all what no row reaches and which row to take."""
    if comparison is None:
        return []
    told = filter(None, (standing.told_marks(comparison), standing.told_noise(comparison)))
    last = [line for line in (unreached(table, comparison), advice(comparison)) if line]
    return [printable(line) for line in (*told, *([""] if last else []), *last)]


def _draw(table: Table, marks: Marks, *, scores: bool, cost: bool) -> RichTable:
    view = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    view.add_column("method", overflow="fold")
    synthetic = any(column.synthetic for column in table.columns)
    for column in table.columns if scores else ():
        lines = [printable(column.label), text.metric(column), f"dev {column.n_dev:,}"]
        lines += ["synthetic" if column.synthetic else ""] if synthetic else []
        view.add_column(Text("\n".join(lines)), justify="right", overflow="fold")
    for header in COST if cost else ():
        view.add_column(header, justify="right")
    for row in table.rows:
        texts = [printable(row.label)]
        texts += _scores(row, table, marks) if scores else []
        texts += _cost(row, table) if cost else []
        view.add_row(*map(Text, texts))
    baselines = text.baselines(table) if scores else {}
    if baselines:
        view.add_row()
        view.add_row(Text("baselines", style="italic"))
    for name, values in baselines.items():
        view.add_row(*map(Text, [f"  {printable(name)}", *values]))
    return view


def _cost(row: Row, table: Table) -> list[str]:
    """A line for each set of conditions: what was measured under unlike ones is not averaged."""
    lines = [
        [
            number(value) + (_marks(cost, table) if value is not None else "")
            for value in (cost.examples_per_s, cost.peak_mib, minutes(cost.cell_s))
        ]
        for cost in row.costs
    ]
    columns = zip(*lines, strict=True) if lines else [[MISSING]] * 3
    return [span(row.adapter), span(row.head), *("\n".join(column) for column in columns)]


def _marks(cost: RowCost, table: Table) -> str:
    letter = text.letter(cost.under, table)
    return text.partial(cost, table.n_tasks) + (f" {letter}" if letter else "")


def _scores(row: Row, table: Table, marks: Marks) -> list[str]:
    return [
        _score(cell, column, table, marks.get((row.label, index)))
        for index, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True))
    ]


def _score(cell: Cell | None, column: Column, table: Table, standing: str | None) -> str:
    if cell is None:
        return MISSING
    mark = f"{text.WARNING} " if cell.warnings else ""
    stands = "" if standing is None else f" {standing or ' '}"  # so that numbers stay in line
    return "\n".join([mark + spread(cell.last, column) + stands, *notes(cell, table.n_seeds)])


def _below(table: Table) -> list[str]:
    """The caption's lines, what scores hide, and every failed cell with its reason."""
    return [
        *_caption(table),
        *_hidden(table),
        *_ranks(table),
        *_failed(table),
    ]


def _caption(table: Table) -> list[str]:
    lines = []
    if table.n_seeds:
        errors = all(column.lower_is_better for column in table.columns)
        unit = "" if errors else ", as fractions"
        lines.append(
            f"Scores: dev, last epoch{unit}; {text.told_spread(table)}. {MISSING} not measured."
        )
    if any(column.lower_is_better for column in table.columns):
        lines.append("↓ an error in the label's own unit: lower is better.")
    lines += [line for line in (text.told_baselines(table), text.default_rates(table)) if line]
    told = (text.told_f1(table), *text.tuned(table), text.told_rounds(table))
    lines += [printable(line) for line in told if line]
    if len(table.columns) > 1:
        lines.append("ex/s and minutes: mean over tasks; peak MiB: the highest of them.")
    if text.partly(table):
        lines.append(text.PARTLY)
    if conditions := text.told_conditions(table):
        lines.append("ex/s, MiB and minutes are of unlike conditions; those of one letter compare:")
        lines += [f"  {printable(one)}" for one in conditions]
    return lines


def _hidden(table: Table) -> list[str]:
    """What the marked scores hide, cell by cell."""
    lines = [
        printable(f"  {row.label}, {column.label}: {warning}")
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        for warning in (text.warnings(cell) if cell else [])
    ]
    return [f"{text.WARNING} {text.hidden(table)}:", *lines] if lines else []


def _ranks(table: Table) -> list[str]:
    """Scores by rank, a line a cell."""
    lines = [
        printable(f"  {row.label}, {column.label}: ")
        + ", ".join(
            f"{rank}: {text.score(spread.mean, column)}" for rank, spread in cell.by_rank.items()
        )
        for row, column, cell in text.by_rank(table)
    ]
    return (
        ["Score by rank, with only the first ranks of one training in use:", *lines]
        if lines
        else []
    )


def _failed(table: Table) -> list[str]:
    if not table.failures:
        return []
    return [
        f"{len(table.failures)} of {table.n_cells} cells failed:",
        *(
            printable(f"  {bad.row}, {bad.task}, seed {bad.seed}: {bad.kind}: {bad.message}")
            for bad in table.failures
        ),
    ]
