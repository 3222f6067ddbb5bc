"""The table for a paper or a spreadsheet: LaTeX (booktabs), Markdown, CSV.

Scores are mean ± sample sd over seeds, of the last epoch, with as many digits as their sd allows.
The best mean is bold, a tie with it is underlined (in Markdown: marked =), a row not shown to be
worse has a ?. CSV has a line for each row on each task, at full precision.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from peftlab.naming import counted
from peftlab.records.verdicts import Comparison
from peftlab.report import standing
from peftlab.report.columns import Column
from peftlab.report.costs import main_cost
from peftlab.report.scores import Table, TableCell, TableRow
from peftlab.report.standing import BEST, MARKS, TIE, UNCLEAR
from peftlab.report.text import (
    MISSING,
    PARTIAL_NOTE,
    collapses,
    describe_default_rates,
    describe_f1,
    describe_rounds,
    describe_spread,
    describe_tuning,
    has_partial_means,
    letter,
    metric,
    minutes,
    notes,
    number,
    partial_mark,
    printable,
    span,
)

COST = ("trained", "ex/s", "peak MiB")
CSV_HEAD = (
    *("method", "task", "metric", "n_seeds", "n_failed", "mean", "sd", "best_epoch_mean"),
    *("standing", "adapter", "head", "examples_per_s", "peak_mib", "cell_minutes", "conditions"),
)
STANDINGS = {mark: word for word, mark in MARKS.items()}
LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--", "−": "$-$"},
    **{"↓": r"$\downarrow$", "|": r"\textbar{}"},
    **{"[": "{[}", "*": "{*}"},  # at the start of a line they would be arguments of the one before
}


class Score(NamedTuple):
    """A score as a paper prints it: mean, sd (empty for one seed), mark, and notes.

    `hides` notes a number of seeds that most scores don't have, and failed and collapsed runs.
    """

    mean: str
    sd: str
    mark: str
    hides: str


def latex(table: Table, comparison: Comparison) -> str:
    """A tabular environment, for the package booktabs, below comments that explain its numbers."""
    head = ["method", *(column.label for column in table.columns), *COST]
    below = ["", *(metric(column) for column in table.columns), *[""] * len(COST)]
    lines = [f"% {line}" for line in _caption(table, "bold", "underlined")]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [_latex_line(map(_in_latex, head)), _latex_line(map(_in_latex, below)), r"\midrule"]
    for row, scores in _rows(table, comparison):
        costs = map(_in_latex, _cost(row, table))
        cells = [_in_latex(row.label), *map(_latex_score, scores), *costs]
        lines.append(_latex_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def markdown(table: Table, comparison: Comparison) -> str:
    """A table, above a paragraph that explains its numbers."""
    head = [_in_markdown(f"{column.label}, {metric(column)}") for column in table.columns]
    lines = [
        _markdown_line(["method", *head, *COST]),
        "|---|" + "---:|" * (len(head) + len(COST)),
    ]
    for row, scores in _rows(table, comparison):
        cells = [_in_markdown(row.label), *map(_markdown_score, scores), *_cost(row, table)]
        lines.append(_markdown_line(cells))
    below = [_in_markdown(line) for line in _caption(table, "bold", "=")]
    return "\n".join([*lines, "", " ".join(below)]) + "\n"


def comma_separated(table: Table, comparison: Comparison) -> str:
    """A line for each row and task, numbers at full precision; empty where not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    marks = standing.marks(table, comparison)
    for row in table.rows:
        for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            if cell is not None:
                mark = marks.get((row.label, index))
                writer.writerow(_csv_values(table, row, column, cell, mark))
    return text.getvalue()


class Form(NamedTuple):
    """A format of the table: its title, the suffix of its files, and the function behind it."""

    title: str
    suffix: str
    text: Callable[[Table, Comparison], str]


FORMS: Mapping[str, Form] = {
    "latex": Form("LaTeX", "tex", latex),
    "markdown": Form("Markdown", "md", markdown),
    "csv": Form("CSV", "csv", comma_separated),
}


def rounded(mean: float, sd: float | None, resolution: float) -> tuple[str, str]:
    """Mean and sd with the decimals that the sd allows, by the Particle Data Group's rule.

    Two digits of the sd if they are below 36, else one. Without an sd `resolution`, the least that
    the mean can move by, takes its place.

    >>> rounded(0.86123, 0.0123, 0.001), rounded(0.86123, 0.0412, 0.001)
    (('0.861', '0.012'), ('0.86', '0.04'))
    >>> rounded(12.345, 0.98, 0.1), rounded(0.86123, None, 1 / 408)
    (('12.3', '1.0'), ('0.861', ''))
    """
    scale = sd if sd else resolution
    exponent = math.floor(math.log10(scale)) if scale > 0 else -3
    has_two_digits = scale / 10.0**exponent < 3.55
    if scale / 10.0**exponent >= 9.5:  # rounds up to the next power of ten, and has two digits
        has_two_digits, exponent = True, exponent + 1
    decimals = max(0, (1 if has_two_digits and sd else 0) - exponent)
    return f"{mean:z.{decimals}f}", "" if sd is None else f"{sd:.{decimals}f}"  # z: no -0.000


def _rows(table: Table, comparison: Comparison) -> list[tuple[TableRow, list[Score | None]]]:
    marks = standing.marks(table, comparison)
    return [
        (
            row,
            [
                _score(cell, column, marks.get((row.label, index), ""), table.n_seeds)
                for index, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True))
            ],
        )
        for row in table.rows
    ]


def _score(cell: TableCell | None, column: Column, mark: str, n_seeds: int | None) -> Score | None:
    if cell is None or not (cell.runs or cell.n_failed):
        return None
    if cell.last.mean is None:
        return Score(MISSING, "", "", f" ({', '.join(notes(cell, n_seeds))})")
    resolution = 0.001
    if column.lower_is_better:  # three digits of the mean
        resolution = 10.0 ** (math.floor(math.log10(abs(cell.last.mean) or 1)) - 2)
    hidden = notes(cell, n_seeds) + collapses(cell)
    hides = f" ({', '.join(hidden)})" if hidden else ""
    return Score(*rounded(cell.last.mean, cell.last.sd, resolution), mark, hides)


def _latex_score(score: Score | None) -> str:
    if score is None:
        return "--"
    if score.mean == MISSING:
        return f"--{_in_latex(score.hides)}"
    mean = {BEST: rf"\mathbf{{{score.mean}}}", TIE: rf"\underline{{{score.mean}}}"}
    sd = rf" \pm {score.sd}" if score.sd else ""
    unclear = f"^{{{UNCLEAR}}}" if score.mark == UNCLEAR else ""
    return f"${mean.get(score.mark, score.mean)}{unclear}{sd}${_in_latex(score.hides)}"


def _markdown_score(score: Score | None) -> str:
    if score is None:
        return MISSING
    sd = f" ± {score.sd}" if score.sd else ""
    mean = f"**{score.mean}**" if score.mark == BEST else score.mean
    mark = f" {score.mark}" if score.mark in (TIE, UNCLEAR) else ""
    return f"{mean}{sd}{mark}{score.hides}"


def _cost(row: TableRow, table: Table) -> list[str]:
    cost = main_cost(row.costs)
    if cost is None:
        return [span(row.adapter), MISSING, MISSING]
    mark = partial_mark(cost, table.n_tasks)
    values = (cost.examples_per_s, cost.peak_mib)
    return [span(row.adapter), *(MISSING if x is None else number(x) + mark for x in values)]


def _caption(table: Table, best: str, tie: str) -> list[str]:
    """Lines that explain the table's numbers and marks."""
    lines = [
        f"Dev, last epoch, {describe_spread(table)}.",
        f"The best mean is {best}, a tie with it {tie}; ?: not shown to be worse.",
        "Trained: parameters of the adapter, without the head.",
    ]
    if table.conditions:
        main = table.conditions[0]
        machine = main.gpu or f"{main.processor}, {counted(main.threads, 'thread')}"
        over = ", speed a mean over tasks, memory the highest" if table.n_tasks > 1 else ""
        lines.append(f"Speed and memory: {machine}{over}.")
    if len(table.conditions) > 1:
        lines.append("Rows without them were measured under other conditions.")
    if has_partial_means(table):
        lines.append(PARTIAL_NOTE)
    lines += [describe_f1(table), describe_default_rates(table)]
    lines += [*describe_tuning(table), describe_rounds(table)]
    return [printable(line).replace("\n", " ") for line in lines if line]


def _csv_values(
    table: Table, row: TableRow, column: Column, cell: TableCell, mark: str | None
) -> Sequence[object]:
    cost = cell.costs[0] if cell.costs else None
    measured = [cost.examples_per_s.mean, cost.peak_mib.mean] if cost else [None, None]
    time = minutes(cost.total_s.mean) if cost else None
    conditions = letter(cost.under, table) if cost else ""
    stands = "" if mark is None else STANDINGS[mark]
    scores = [cell.last.n, cell.n_failed, cell.last.mean, cell.last.sd, cell.best.mean]
    names = [_not_formula(row.label), _not_formula(column.label), column.metric]
    trained = [cell.adapter, cell.head]
    return [*names, *scores, stands, *trained, *measured, time, conditions]


def _in_latex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in printable(text).replace("\n", " "))


def _in_markdown(text: str) -> str:
    """Text in a Markdown table: nothing in it is markup."""
    flat = printable(text).replace("\n", " ")
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|~" else char for char in flat)


def _not_formula(text: str) -> str:
    """The text, quoted where a spreadsheet would take it for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
