"""The standing of each row against the best one of a task, in marks and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.pairs import Standing, Verdict, split_verdict, standing, verdict_between
from peftlab.records.rows import LOWER_IS_BETTER, merit
from peftlab.records.verdicts import Comparison
from peftlab.report.columns import Column
from peftlab.report.scores import Table
from peftlab.report.spread import Spread
from peftlab.report.text import deviation, fraction, score

BEST, TIE, UNCLEAR, WORSE = "*", "=", "?", ""
MARKS: Mapping[Standing, str] = {"best": BEST, "tie": TIE, "unclear": UNCLEAR, "worse": WORSE}


def pairs_of(comparison: Comparison, column: Column) -> list[Verdict]:
    """The verdicts of one task."""
    pairs = comparison.pairs
    return [pair for pair in pairs if (pair.task, pair.metric, pair.sha256) == column.key]


def best(table: Table, index: int) -> str | None:
    """The row of the best mean in a column; None where no cell of it is done."""
    metric = table.columns[index].metric
    means = {
        row.label: merit(metric, cell.last.mean)
        for row in table.rows
        if (cell := row.cells[index]) and cell.last.mean is not None
    }
    return max(means, key=lambda row: means[row], default=None)


def marks(table: Table, comparison: Comparison) -> dict[tuple[str, int], str]:
    """By row and index of the column: best, a tie with it, not shown to be worse, or worse."""
    marks: dict[tuple[str, int], str] = {}
    for index, column in enumerate(table.columns):
        first = best(table, index)
        pairs = pairs_of(comparison, column)
        if first is None or not pairs:  # a row alone is neither best nor worse
            continue
        for row in table.rows:
            if (cell := row.cells[index]) and cell.last.mean is not None:
                marks[row.label, index] = mark(pairs, row.label, first)
    return marks


def mark(pairs: Sequence[Verdict], row: str, first: str) -> str:
    """The mark of `row`, where `first` has the best mean."""
    return MARKS[standing(row, first, pairs)]


def intervals(table: Table, comparison: Comparison) -> dict[tuple[str, int], Spread]:
    """By row and index of the column: the mean ± half of its 95 % interval, where that is known.

    It is known where the predictions of every run in the mean are.
    """
    indices = {column.key: index for index, column in enumerate(table.columns)}
    return {
        (mean.row, indices[task]): Spread(mean.mean, mean.high - mean.mean, mean.n_seeds)
        for mean in comparison.own
        if (task := (mean.task, mean.metric, mean.sha256)) in indices
    }


def describe_interval(table: Table, known: Mapping[tuple[str, int], Spread]) -> str:
    """The meaning of the ± of scores; empty where it is the sd over seeds everywhere."""
    if not known:
        return ""
    enough_seeds = {interval.n >= MIN_SEEDS for interval in known.values()}
    over = "dev examples and seeds" if enough_seeds == {True} else "dev examples alone"
    if len(enough_seeds) > 1:
        over = f"dev examples and, from {MIN_SEEDS} seeds on, seeds"
    scored = {
        (row.label, i)
        for row in table.rows
        for i, cell in enumerate(row.cells)
        if cell and cell.last.n
    }
    rest = "" if scored <= known.keys() else "; ± … sd, where predictions lack, the sd over seeds"
    return f"mean ± half of its 95 % interval, over {over}{rest}"


class Square(NamedTuple):
    """A pair in a matrix: the row minus the column."""

    text: str
    words: str  # on hover: interval, p, verdict
    kind: str  # better, worse, tie or unclear


class Matrix(NamedTuple):
    """All pairs of a task: rows down and across, and squares by both labels."""

    column: Column
    rows: list[str]
    squares: dict[tuple[str, str], Square]


def matrices(table: Table, comparison: Comparison) -> list[Matrix]:
    """The matrix of every task that has a pair."""
    matrices = []
    for column in table.columns:
        pairs = pairs_of(comparison, column)
        names = {name for pair in pairs for name in (pair.a, pair.b)}
        rows = [row.label for row in table.rows if row.label in names]
        squares = {
            (row, other): _square(verdict, column)
            for row in rows
            for other in rows
            if (verdict := verdict_between(pairs, row, other)) is not None
        }
        if squares:
            matrices.append(Matrix(column, rows, squares))
    return matrices


def _square(verdict: Verdict, column: Column) -> Square:
    interval = "no interval"
    if verdict.low is not None and verdict.high is not None:
        interval = f"95 % {score(verdict.low, column)} to {score(verdict.high, column)}"
    p = "" if verdict.p is None else f", p {deviation(verdict.p)}"
    more = ""
    if verdict.more_seeds and verdict.p is None:  # too few for a verdict or a forecast of one
        more = f", a verdict takes {verdict.more_seeds} more"
    elif verdict.more_seeds:
        more = f", {verdict.more_seeds} more like these would settle it"
    seeds = counted(len(verdict.seeds), "seed")
    if verdict.covers_seeds is False:
        seeds += ", not counting others"
    return Square(
        text=score(verdict.difference, column),
        words=f"{verdict.a} − {verdict.b}: {interval}{p}, {seeds}: {verdict.verdict}{more}",
        kind=split_verdict(verdict.verdict)[0],
    )


def describe_marks(comparison: Comparison) -> str:
    """The meaning of the marks; empty where there is nothing to compare."""
    if not comparison.pairs:
        return ""
    margins = [pair.margin for pair in comparison.pairs if pair.metric not in LOWER_IS_BETTER]
    within = [f"± {fraction(margins[0])}"] if margins else []
    if len(margins) < len(comparison.pairs):
        within.append(f"{comparison.margin:.3g} of the baseline's error")
    how = "95 %, over seeds and dev examples, corrected for the number of pairs; a tie is not"
    if all(pair.p is None for pair in comparison.pairs):
        how = f"that takes {MIN_SEEDS} seeds with their predictions"
    return (
        f"{BEST} best mean, {TIE} a tie with it (within {' or '.join(within)}), "
        f"{UNCLEAR} not shown to be worse, no mark: worse ({how})."
    )


def describe_noise(comparison: Comparison) -> str:
    """The noise floor, the optimism of the best epoch, and that collapsed runs are counted."""
    on_fractions = [noise for noise in comparison.noise if noise.metric not in LOWER_IS_BETTER]
    scores = [noise.score for noise in on_fractions if noise.score is not None]
    speeds = [noise.speed for noise in comparison.noise if noise.speed is not None]
    most = [f"{fraction(max(scores))} in score"] if scores else []
    most += [f"{max(speeds):.0%} in speed"] if speeds else []
    sentences = []
    if most:
        differences = " and ".join(most)
        sentences.append(f"Two runs of one row differ by up to {differences} (mean over pairs).")
    if comparison.inflation:
        inflation = deviation(comparison.inflation)
        sentences.append(f"Choosing the best epoch on dev would add {inflation}.")
    if comparison.n_collapsed:
        sentences.append("Runs that collapsed are in every number.")
    return " ".join(sentences)
