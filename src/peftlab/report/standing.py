"""Where each row stands against the best one of a task, in marks and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.pairs import Verdict, against, better_than
from peftlab.records.rows import LOWER_IS_BETTER, merit
from peftlab.records.verdicts import Comparison
from peftlab.report.columns import Column
from peftlab.report.scores import Table
from peftlab.report.spread import Spread
from peftlab.report.text import fraction, score

BEST, TIE, UNCLEAR, WORSE = "*", "=", "?", ""


def pairs_of(comparison: Comparison, column: Column) -> list[Verdict]:
    """The verdicts of one task."""
    return [
        one
        for one in comparison.pairs
        if (one.task, one.metric, one.sha256) == (column.task, column.metric, column.sha256)
    ]


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
    """By row and number of the column: best, a tie with it, not shown to be worse, or worse."""
    found: dict[tuple[str, int], str] = {}
    for index, column in enumerate(table.columns):
        first = best(table, index)
        pairs = pairs_of(comparison, column)
        if first is None or not pairs:  # a row alone is neither best nor worse
            continue
        for row in table.rows:
            if (cell := row.cells[index]) and cell.last.mean is not None:
                found[row.label, index] = mark(pairs, row.label, first)
    return found


def mark(pairs: Sequence[Verdict], row: str, first: str) -> str:
    """Of `row`, where `first` has the best mean: worse is what is worse than any row."""
    verdict = against(pairs, row, first)
    if verdict is None:
        return BEST
    if verdict.verdict == "tie":
        return TIE
    return WORSE if better_than(row, pairs) else UNCLEAR


def intervals(table: Table, comparison: Comparison) -> dict[tuple[str, int], Spread]:
    """By row and number of the column: the mean ± half of its 95 % interval, where that is known.

    It is where the predictions of every run that the mean is of are there.
    """
    places = {(one.task, one.metric, one.sha256): i for i, one in enumerate(table.columns)}
    return {
        (one.row, places[key]): Spread(one.mean, one.high - one.mean, one.n_seeds)
        for one in comparison.own
        if (key := (one.task, one.metric, one.sha256)) in places
    }


def told_interval(table: Table, known: Mapping[tuple[str, int], Spread]) -> str:
    """What the ± of the scores is, in words; empty where it is the sd over seeds everywhere."""
    if not known:
        return ""
    seeds = {one.n >= MIN_SEEDS for one in known.values()}
    over = "dev examples and seeds" if seeds == {True} else "dev examples alone"
    if len(seeds) > 1:
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
    """A pair as a matrix shows it: the row minus the column."""

    text: str
    words: str  # on hover: interval, p, verdict
    kind: str  # better, worse, tie or unclear


class Matrix(NamedTuple):
    """All pairs of a task: rows down and across, and squares by both names."""

    column: Column
    rows: list[str]
    squares: dict[tuple[str, str], Square]


def matrices(table: Table, comparison: Comparison) -> list[Matrix]:
    """One a task that has a pair."""
    found = []
    for column in table.columns:
        pairs = pairs_of(comparison, column)
        names = {name for one in pairs for name in (one.a, one.b)}
        rows = [row.label for row in table.rows if row.label in names]
        squares = {
            (row, other): _square(verdict, column)
            for row in rows
            for other in rows
            if (verdict := against(pairs, row, other)) is not None
        }
        if squares:
            found.append(Matrix(column, rows, squares))
    return found


def _square(verdict: Verdict, column: Column) -> Square:
    interval = "no interval"
    if verdict.low is not None and verdict.high is not None:
        interval = f"95 % {score(verdict.low, column)} to {score(verdict.high, column)}"
    p = "" if verdict.p is None else f", p {fraction(verdict.p)}"
    more = ""
    if verdict.more_seeds and verdict.p is None:  # too few for a verdict, and to foretell one
        more = f", a verdict takes {verdict.more_seeds} more"
    elif verdict.more_seeds:
        more = f", {verdict.more_seeds} more like these would settle it"
    seeds = counted(len(verdict.seeds), "seed")
    return Square(
        text=score(verdict.difference, column),
        words=f"{verdict.a} − {verdict.b}: {interval}{p}, {seeds}: {verdict.verdict}{more}",
        kind=verdict.verdict.partition(":")[0],
    )


def told_marks(comparison: Comparison) -> str:
    """What the marks mean; empty where there is nothing to compare."""
    if not comparison.pairs:
        return ""
    scores = [one.margin for one in comparison.pairs if one.metric not in LOWER_IS_BETTER]
    within = [f"± {fraction(scores[0])}"] if scores else []
    if len(scores) < len(comparison.pairs):
        within.append(f"{comparison.margin:.3g} of the baseline's error")
    how = "95 %, over seeds and dev examples, corrected for the number of pairs"
    if not any(one.p is not None for one in comparison.pairs):
        how = f"that takes {MIN_SEEDS} seeds with their predictions"
    return (
        f"{BEST} best mean, {TIE} a tie with it (within {' or '.join(within)}), "
        f"{UNCLEAR} not shown to be worse, no mark: worse ({how})."
    )


def told_noise(comparison: Comparison) -> str:
    """The noise floor, the optimism of the best epoch, and that collapsed runs are counted."""
    own = [one for one in comparison.noise if one.metric not in LOWER_IS_BETTER]
    scores = [one.score for one in own if one.score is not None]
    speeds = [one.speed for one in comparison.noise if one.speed is not None]
    most = [f"{fraction(max(scores))} in score"] if scores else []
    most += [f"{max(speeds):.0%} in speed"] if speeds else []
    line = f"Two runs of one row differ by up to {' and '.join(most)} (mean over pairs)."
    line *= bool(most)
    if comparison.inflation:
        line += f" Choosing the best epoch on dev would add {fraction(comparison.inflation)}."
    if comparison.n_collapsed:
        line += " Runs that collapsed are in every number."
    return line.strip()
