"""The table for a paper or a spreadsheet: LaTeX (booktabs), Markdown, CSV.

Scores are mean ± sample sd over seeds, of the last epoch, and have as many digits as their sd lets
stand. The best mean is bold, what ties with it is underlined (in Markdown: marked =), what is not
shown to be worse has a ?. CSV has a line for each row on each task, at full precision.
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
from peftlab.report.costs import usual
from peftlab.report.scores import Cell, Row, Table
from peftlab.report.standing import BEST, TIE, UNCLEAR, WORSE
from peftlab.report.text import (
    MISSING,
    PARTLY,
    collapses,
    default_rates,
    metric,
    minutes,
    notes,
    number,
    partial,
    partly,
    printable,
    span,
    told_f1,
    told_rounds,
    told_spread,
    tuned,
)

COST = ("trained", "ex/s", "peak MiB")
CSV_HEAD = (
    *("method", "task", "metric", "n_seeds", "n_failed", "mean", "sd", "best_epoch_mean"),
    *("standing", "adapter", "head", "examples_per_s", "peak_mib", "cell_minutes"),
)
STANDING = {BEST: "best", TIE: "tie", UNCLEAR: "unclear", WORSE: "worse"}
LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--", "−": "$-$"},
    **{"↓": r"$\downarrow$", "|": r"\textbar{}"},
}


class Score(NamedTuple):
    """A score as a paper prints it: mean, sd (empty for one seed), where it stands, what it hides.

    `hides`: other seeds than most have, failed and collapsed runs.
    """

    mean: str
    sd: str
    mark: str
    hides: str


def latex(table: Table, comparison: Comparison) -> str:
    """A tabular environment, for the package booktabs; what it holds stands above, as comments."""
    head = ["method", *(column.label for column in table.columns), *COST]
    below = ["", *(metric(column) for column in table.columns), *[""] * len(COST)]
    lines = [f"% {line}" for line in _told(table, "bold", "underlined")]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [_latex_line(map(_escaped, head)), _latex_line(map(_escaped, below)), r"\midrule"]
    for row, scores in _rows(table, comparison):
        cells = [_escaped(row.label), *map(_latex_score, scores), *map(_escaped, _cost(row, table))]
        lines.append(_latex_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def markdown(table: Table, comparison: Comparison) -> str:
    """A table, and below it what it holds."""
    head = [_cell_text(f"{column.label}, {metric(column)}") for column in table.columns]
    lines = [
        _markdown_line(["method", *head, *COST]),
        "|---|" + "---:|" * (len(head) + len(COST)),
    ]
    for row, scores in _rows(table, comparison):
        cells = [_cell_text(row.label), *map(_markdown_score, scores), *_cost(row, table)]
        lines.append(_markdown_line(cells))
    below = [_cell_text(line) for line in _told(table, "bold", "=")]
    return "\n".join([*lines, "", " ".join(below)]) + "\n"


def comma_separated(table: Table, comparison: Comparison) -> str:
    """One line a row and task, numbers as they were computed; empty where not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    marks = standing.marks(table, comparison)
    for row in table.rows:
        for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            if cell is not None:
                mark = marks.get((row.label, index))
                writer.writerow(_csv_values(row, column, cell, mark))
    return text.getvalue()


class Form(NamedTuple):
    """A way to write the table: what it is called, the suffix of its files, and how."""

    title: str
    suffix: str
    text: Callable[[Table, Comparison], str]


FORMS: Mapping[str, Form] = {
    "latex": Form("LaTeX", "tex", latex),
    "markdown": Form("Markdown", "md", markdown),
    "csv": Form("CSV", "csv", comma_separated),
}


def rounded(mean: float, sd: float | None, coarse: float) -> tuple[str, str]:
    """Mean and sd with the decimals that the sd lets stand, by the Particle Data Group's rule.

    Two digits of the sd if they are below 36, else one. Without an sd `coarse`, the least that the
    mean can move by, stands for it.

    >>> rounded(0.86123, 0.0123, 0.001), rounded(0.86123, 0.0412, 0.001)
    (('0.861', '0.012'), ('0.86', '0.04'))
    >>> rounded(12.345, 0.98, 0.1), rounded(0.86123, None, 1 / 408)
    (('12.3', '1.0'), ('0.861', ''))
    """
    scale = sd if sd else coarse
    exponent = math.floor(math.log10(scale)) if scale > 0 else -3
    two = scale / 10.0**exponent < 3.55
    if scale / 10.0**exponent >= 9.5:  # rounds up to the next power of ten, and has two digits
        two, exponent = True, exponent + 1
    decimals = max(0, (1 if two and sd else 0) - exponent)
    return f"{mean:.{decimals}f}", "" if sd is None else f"{sd:.{decimals}f}"


def _rows(table: Table, comparison: Comparison) -> list[tuple[Row, list[Score | None]]]:
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


def _score(cell: Cell | None, column: Column, mark: str, n_seeds: int | None) -> Score | None:
    if cell is None or not (cell.runs or cell.n_failed):
        return None
    if cell.last.mean is None:
        return Score(MISSING, "", "", f" ({', '.join(notes(cell, n_seeds))})")
    coarse = 10.0 ** (math.floor(math.log10(abs(cell.last.mean) or 1)) - 2)
    if not column.lower_is_better:
        coarse = 0.001
    hides = notes(cell, n_seeds) + collapses(cell)
    told = f" ({', '.join(hides)})" if hides else ""
    return Score(*rounded(cell.last.mean, cell.last.sd, coarse), mark, told)


def _latex_score(score: Score | None) -> str:
    if score is None:
        return "--"
    if score.mean == MISSING:
        return f"--{_escaped(score.hides)}"
    mean = {BEST: rf"\mathbf{{{score.mean}}}", TIE: rf"\underline{{{score.mean}}}"}
    sd = rf" \pm {score.sd}" if score.sd else ""
    unclear = f"^{{{UNCLEAR}}}" if score.mark == UNCLEAR else ""
    return f"${mean.get(score.mark, score.mean)}{unclear}{sd}${_escaped(score.hides)}"


def _markdown_score(score: Score | None) -> str:
    if score is None:
        return MISSING
    sd = f" ± {score.sd}" if score.sd else ""
    mean = f"**{score.mean}**" if score.mark == BEST else score.mean
    mark = f" {score.mark}" if score.mark in (TIE, UNCLEAR) else ""
    return f"{mean}{sd}{mark}{score.hides}"


def _cost(row: Row, table: Table) -> list[str]:
    cost = usual(row.costs)
    if cost is None:
        return [span(row.adapter), MISSING, MISSING]
    mark = partial(cost, table.n_tasks)
    measured = (cost.examples_per_s, cost.peak_mib)
    return [span(row.adapter), *(MISSING if x is None else number(x) + mark for x in measured)]


def _told(table: Table, best: str, tie: str) -> list[str]:
    """What the numbers are, a line each."""
    told = [
        f"Dev, last epoch, {told_spread(table)}.",
        f"The best mean is {best}, a tie with it {tie}; ?: not shown to be worse.",
        "Trained: parameters of the adapter, without the head.",
    ]
    if table.conditions:
        on = table.conditions[0]
        machine = on.gpu or f"{on.processor}, {counted(on.threads, 'thread')}"
        over = ", speed a mean over tasks, memory the highest" if table.n_tasks > 1 else ""
        told.append(f"Speed and memory: {machine}{over}.")
    if partly(table):
        told.append(PARTLY)
    found = (told_f1(table), default_rates(table), *tuned(table), told_rounds(table))
    told += [line for line in found if line]
    return [printable(line).replace("\n", " ") for line in told]


def _csv_values(row: Row, column: Column, cell: Cell, mark: str | None) -> Sequence[object]:
    cost = usual(cell.costs)
    trained = [count.low if count.low == count.high else None for count in (row.adapter, row.head)]
    measured = [cost.examples_per_s.mean, cost.peak_mib.mean] if cost else [None, None]
    time = minutes(cost.total_s.mean) if cost else None
    stands = "" if mark is None else STANDING[mark]
    scores = [cell.last.n, cell.n_failed, cell.last.mean, cell.last.sd, cell.best.mean]
    names = [_plain(row.label), _plain(column.label), column.metric]
    return [*names, *scores, stands, *trained, *measured, time]


def _escaped(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in printable(text).replace("\n", " "))


def _cell_text(text: str) -> str:
    """Text in a Markdown table: nothing in it is markup."""
    flat = printable(text).replace("\n", " ")
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|~" else char for char in flat)


def _plain(text: str) -> str:
    """Text that a spreadsheet takes for no formula."""
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
