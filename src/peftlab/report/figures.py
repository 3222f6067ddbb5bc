"""All figures of a report: up to ten small ones a task, as far as there is something to show."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from peftlab.records.trials import Trial
from peftlab.report.bars import peak_figure, speed_figure
from peftlab.report.columns import Column
from peftlab.report.curves import Curves, read
from peftlab.report.front import front_figure
from peftlab.report.lines import Line, loss_figure, memory_figure, score_figure
from peftlab.report.panels import MANY, PANEL_POINTS
from peftlab.report.ranks import rank_figure
from peftlab.report.rates import progress_figure, rate_figure, tuning_figure
from peftlab.report.scores import Table, TableCell, TableRow
from peftlab.report.second import second_figure
from peftlab.report.style import Figure, Style
from peftlab.report.text import letter

POINTS_A_LINE = 400
POINTS_A_PAGE = 12_000  # of one kind of line: the page stays under 3 MB


def figures(
    table: Table,
    folder: Path,
    trials: Sequence[Trial] = (),
    read_curves: Callable[[Path], Curves] = read,
) -> list[Figure]:
    """Every figure that the table's done cells, their curves in `folder`, and trials allow."""
    style = Style([row.label for row in table.rows])
    drawn: list[Figure | None] = []
    for index, column in enumerate(table.columns):
        rows = [(row, cell) for row in table.rows if (cell := row.cells[index])]
        # trials have no score of another metric
        of_task = [t for t in trials if (t.task, t.metric, t.data) == column.key]
        drawn += _task_figures(
            column, rows, of_task, table, style, lambda name: read_curves(folder / name)
        )
    return _number_clashes([figure for figure in drawn if figure])


def _task_figures(
    column: Column,
    rows: Sequence[tuple[TableRow, TableCell]],
    trials: Sequence[Trial],
    table: Table,
    style: Style,
    read_curves: Callable[[str], Curves],
) -> list[Figure | None]:
    """The figures of one task, None for each that has nothing to show."""
    cells = {row.label: cell for row, cell in rows if cell.runs}
    lines = [
        Line(label, tuple(read_curves(f"{run.cell}.jsonl") for run in cell.runs))
        for label, cell in cells.items()
    ]
    bars = [
        (label, f"{label} {letter(cost.under, table)}".strip(), cost)
        for label, cell in cells.items()
        for cost in cell.costs
    ]
    in_turns = {cost.in_turns for *_, cost in bars}
    replicate = "run" if len(in_turns) > 1 else "round" if in_turns == {True} else "seed"
    share = POINTS_A_PAGE // max(1, len(lines) * len(table.columns))
    limit = max(40, min(PANEL_POINTS if len(lines) > MANY else POINTS_A_LINE, share))
    draw_scores = partial(score_figure, lines=lines, style=style, limit=limit)
    return [
        draw_scores(column),
        second_figure(column, lines, draw_scores),
        loss_figure(column, lines, style, limit),
        speed_figure(column, bars, style, replicate),
        memory_figure(column, lines, style, limit),
        peak_figure(column, bars, replicate),
        front_figure(column, cells, style, letter(0, table)),
        rank_figure(column, cells, style),
        rate_figure(column, rows, limit),
        tuning_figure(column, trials, style, limit),
        progress_figure(column, trials, style, limit),
    ]


def _number_clashes(figures: list[Figure]) -> list[Figure]:
    """The figures; those that share a file name get a number each."""
    clashes = Counter(figure.name for figure in figures)
    return [
        dataclasses.replace(figure, name=f"{figure.name}-{position}")
        if clashes[figure.name] > 1
        else figure
        for position, figure in enumerate(figures, start=1)
    ]
