"""The score table on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from peftlab.records.verdicts import Comparison
from peftlab.report import standing, text
from peftlab.report.advice import advice, unreached
from peftlab.report.costs import RowCost
from peftlab.report.scores import Table, TableRow
from peftlab.report.text import MISSING, minutes, notes, number, printable, span, spread

Marks = Mapping[tuple[str, int], str]
COST = ("adapter\nparam.", "head\nparam.", "ex/s", "peak\nMiB", "min/\ncell")


def render_terminal(table: Table, comparison: Comparison | None = None) -> RenderableType:
    """The table for rich: scores, trained parameters, speed, memory, time; then failures.

    With a comparison the best scores and their ties are marked, and the row to take is named.
    """
    return _View(table, comparison)


@dataclasses.dataclass(frozen=True)
class _View:
    table: Table
    comparison: Comparison | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = standing.marks(self.table, self.comparison) if self.comparison else {}
        whole = _draw(self.table, marks, range(len(self.table.columns)), cost=True)
        if _fits(whole, console, options):
            yield whole
        else:
            # tables that can be read, rather than one with words cut to pieces
            yield from self._scores(marks, console, options)
            yield _draw(self.table, marks, range(0), cost=True)
        for line in [*_notes(self.table), *_verdicts(self.table, self.comparison)]:
            yield Text(line)

    def _scores(
        self, marks: Marks, console: Console, options: ConsoleOptions
    ) -> Iterator[RichTable]:
        """The scores alone, in as many tables one below the other as the width asks for."""
        start, n_columns = 0, len(self.table.columns)
        drawn = _draw(self.table, marks, range(0, 1))
        for end in range(2, n_columns + 1):
            wider = _draw(self.table, marks, range(start, end))
            if not _fits(wider, console, options):
                yield drawn
                start, wider = end - 1, _draw(self.table, marks, range(end - 1, end))
            drawn = wider
        yield drawn


def _fits(drawn: RichTable, console: Console, options: ConsoleOptions) -> bool:
    widest = Measurement.get(console, options.update(width=10_000), drawn).maximum
    return widest <= options.max_width


def _verdicts(table: Table, comparison: Comparison | None) -> list[str]:
    """The meaning of the marks, the noise, and last the baselines not reached and the advice."""
    if comparison is None:
        return []
    notes = [standing.describe_marks(comparison), standing.describe_noise(comparison)]
    notes = [line for line in notes if line]
    last = [line for line in (unreached(table, comparison), advice(comparison)) if line]
    return [printable(line) for line in (*notes, *([""] if last else []), *last)]


def _draw(table: Table, marks: Marks, columns: range, cost: bool = False) -> RichTable:
    """The scores on the tasks at `columns`, and the costs if asked for."""
    view = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    view.add_column("method", overflow="fold")
    synthetic = any(column.synthetic for column in table.columns)
    for column in (table.columns[index] for index in columns):
        lines = [printable(column.label), text.metric(column), f"dev {column.n_dev:,}"]
        lines += ["synthetic" if column.synthetic else ""] if synthetic else []
        view.add_column(Text("\n".join(lines)), justify="right", overflow="fold")
    for header in COST if cost else ():
        view.add_column(header, justify="right")
    for row in table.rows:
        texts = [printable(row.label)]
        texts += [_score(row, index, table, marks) for index in columns]
        texts += _cost(row, table) if cost else []
        view.add_row(*map(Text, texts))
    baselines = text.baselines(table) if columns else {}
    if baselines:
        view.add_row()
        view.add_row(Text("baselines", style="italic"))
    for name, values in baselines.items():
        view.add_row(*map(Text, [f"  {printable(name)}", *(values[index] for index in columns)]))
    return view


def _cost(row: TableRow, table: Table) -> list[str]:
    """A line for each set of conditions: values measured under unlike ones are not averaged."""
    lines = [
        [
            number(value) + (_cost_marks(cost, table) if value is not None else "")
            for value in (cost.examples_per_s, cost.peak_mib, minutes(cost.cell_s))
        ]
        for cost in row.costs
    ]
    columns = zip(*lines, strict=True) if lines else [[MISSING]] * 3
    return [span(row.adapter), span(row.head), *("\n".join(column) for column in columns)]


def _cost_marks(cost: RowCost, table: Table) -> str:
    letter = text.letter(cost.under, table)
    return text.partial_mark(cost, table.n_tasks) + (f" {letter}" if letter else "")


def _score(row: TableRow, index: int, table: Table, marks: Marks) -> str:
    cell, column, mark = row.cells[index], table.columns[index], marks.get((row.label, index))
    if cell is None:
        return MISSING
    warning = f"{text.WARNING} " if cell.warnings else ""
    suffix = "" if mark is None else f" {mark or ' '}"  # an empty mark keeps numbers aligned
    return "\n".join([warning + spread(cell.last, column) + suffix, *notes(cell, table.n_seeds)])


def _notes(table: Table) -> list[str]:
    """The lines below the table."""
    return [*_caption(table), *_warnings(table), *_ranks(table), *_failures(table)]


def _caption(table: Table) -> list[str]:
    lines = []
    if table.n_seeds:
        errors = all(column.lower_is_better for column in table.columns)
        unit = "" if errors else ", as fractions"
        lines.append(
            f"Scores: dev, last epoch{unit}; {text.describe_spread(table)}. {MISSING} not measured."
        )
    if any(column.lower_is_better for column in table.columns):
        lines.append("↓ an error in the label's own unit: lower is better.")
    lines += [text.describe_baselines(table), text.describe_default_rates(table)]
    lines += [text.describe_f1(table), *text.describe_tuning(table), text.describe_rounds(table)]
    if len(table.columns) > 1:
        lines.append("ex/s and minutes: mean over tasks; peak MiB: the highest of them.")
    if text.has_partial_means(table):
        lines.append(text.PARTIAL_NOTE)
    if conditions := text.describe_conditions(table):
        lines.append("ex/s, MiB and minutes are of unlike conditions; those of one letter compare:")
        lines += [f"  {line}" for line in conditions]
    return [printable(line) for line in lines if line]


def _warnings(table: Table) -> list[str]:
    """The warnings of scores, a line each."""
    lines = [
        printable(f"  {row.label}, {column.label}: {warning}")
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        for warning in (text.warnings(cell) if cell else [])
    ]
    return [f"{text.WARNING} {text.describe_warnings(table)}:", *lines] if lines else []


def _ranks(table: Table) -> list[str]:
    """Scores by rank, a line a cell."""
    lines = [
        printable(f"  {row.label}, {column.label}: ")
        + ", ".join(
            f"{rank}: {text.score(spread.mean, column)}" for rank, spread in cell.by_rank.items()
        )
        for row, column, cell in text.by_rank(table)
    ]
    head = "Score by rank, with only the first ranks of one training in use:"
    return [head, *lines] if lines else []


def _failures(table: Table) -> list[str]:
    """Every failed cell with its reason."""
    if not table.failures:
        return []
    return [
        f"{len(table.failures)} of {table.n_cells} cells failed:",
        *(
            printable(f"  {cell.row}, {cell.task}, seed {cell.seed}: {cell.kind}: {cell.message}")
            for cell in table.failures
        ),
    ]
