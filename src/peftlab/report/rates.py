"""Figures of score over learning rate: of trials, where they were tuned, and of rows.

Rows that differ in the rate alone, as `--lr 1e-4,4e-4,1e-3` makes them, are one curve.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.records.rows import merit
from peftlab.records.trials import Trial, at_end
from peftlab.report.columns import Column
from peftlab.report.panels import Plot
from peftlab.report.scores import Cell, Row, Table
from peftlab.report.style import Figure, Style, faded, figure_of
from peftlab.report.text import metric, score

if TYPE_CHECKING:
    import altair as alt

MIN_RATES = 3  # that make a curve
END = "the highest or the lowest that was tried"


def rate_figure(column: Column, rows: Sequence[tuple[Row, Cell]], limit: int) -> Figure | None:
    """Dev score over learning rate, a line a method, where one has rows at several rates."""
    import altair as alt

    shown = _over_rates(rows)
    if not shown:
        return None
    labels = list(dict.fromkeys(curve for curve, *_ in shown))
    # a line has rows of several methods, as the table tells them apart
    whole = alt.Chart().transform_calculate(mine="picked === datum.method ? 1 : 0")
    whole = whole.transform_joinaggregate(held="max(mine)", groupby=["curve"])
    spans = alt.Chart().mark_rule(aria=False)
    plot = Plot(
        columns=("curve", "method", "x", "y", "low", "high"),
        rows=shown,
        labels=labels,
        marks=[
            spans.encode(y="low:Q", y2="high:Q", opacity=faded(0.5)),
            whole.mark_line(aria=False, strokeWidth=2.2).encode(
                y="y:Q", opacity=faded(test="picked === '' || datum.held")
            ),
            _dots(36).encode(tooltip=_tooltip(column)),
        ],
        x=_rates(sorted({rate for _, _, rate, *_ in shown})),
        y_title=f"{metric(column)} on dev",
        by="curve",
    )
    best = _best(column, [(curve, rate, mean) for curve, _, rate, mean, *_ in shown])
    words = f"Best {column.metric} on dev: {best}."
    return figure_of(
        "rate",
        column,
        f"{column.metric} over learning rate",
        words,
        caption="Mean over seeds; thin line: ± one sd. Whoever takes a rate by it has chosen on "
        f"dev.{plot.told}",
        draw=lambda title: plot.spec(Style(labels), title, words, limit),
    )


Point = tuple[str, str, float, float, float, float]  # curve, row, rate; mean and ± one sd


def _over_rates(rows: Sequence[tuple[Row, Cell]]) -> list[Point]:
    """What untuned rows have scored, curve by curve, of those that have enough rates."""
    named = _curves([row for row, _ in rows])
    points = [
        (named[row.curve], row.label, row.training["lr"], cell.last.mean, cell.last.sd or 0)
        for row, cell in rows
        if cell.last.mean is not None and not row.tuned
    ]
    rates = defaultdict(set)
    for curve, _, rate, *_ in points:
        rates[curve].add(rate)
    order = list(rates)
    points.sort(key=lambda one: (order.index(one[0]), one[2]))
    return [
        (curve, label, rate, mean, mean - sd, mean + sd)
        for curve, label, rate, mean, sd in points
        if len(rates[curve]) >= MIN_RATES
    ]


def _curves(rows: Sequence[Row]) -> dict[str, str]:
    """A name for every curve: its first row's label less the rate, numbered where it is taken."""
    names: dict[str, str] = {}
    for row in rows:
        short = _without_rate(row.label)
        taken = f"{short} #{len(names) + 1}" if short in names.values() else short
        names.setdefault(row.curve, taken)
    return names


def _without_rate(label: str) -> str:
    """A label less its learning rate, where it has one that can be told.

    >>> [_without_rate(f"lora{rest}") for rest in ("[lr=4e-05]", "[rank=4,lr=0.001]", " (lr 0.1)")]
    ['lora', 'lora[rank=4]', 'lora']
    >>> _without_rate("lora[lr=1e-4,rank=4]"), _without_rate("lora (epochs 3, lr 0.1)")
    ('lora[rank=4]', 'lora (epochs 3)')
    """
    short = re.sub(r"(?<=[\[,])lr=[^,\]]*,?|(?<=[(, ])lr [^,)]*(, )?", "", label)
    return re.sub(r",(?=\])|, (?=\))| \(\)|\[\]", "", short)


def tuning_figure(
    column: Column, trials: Sequence[Trial], style: Style, limit: int
) -> Figure | None:
    """Every trial's score over its learning rate; a ring for what was taken."""
    import altair as alt

    shown = [
        (t.label, t.values["lr"], t.score, t.epochs, _mark(t, trials))
        for t in sorted(trials, key=lambda t: (t.label, t.epochs, t.values.get("lr", 0.0)))
        if t.score is not None and "lr" in t.values and t.label in style.colour
    ]
    if not shown:
        return None
    rings = alt.Chart().transform_filter("datum.mark != ''").mark_point(aria=False, size=160)
    borders = alt.Chart().transform_filter(f"datum.mark == '{END}'")
    plot = Plot(
        columns=("method", "x", "y", "epochs", "mark"),
        rows=shown,
        labels=[label for label in style.colour if label in {row[0] for row in shown}],
        marks=[
            _line(1.2).encode(detail="epochs:N"),
            _dots(30).encode(tooltip=[*_tooltip(column), alt.Tooltip("epochs:Q")]),
            rings.encode(y="y:Q", opacity=faded()),
            borders.mark_text(aria=False, dy=-16, text="◂ none beyond ▸").encode(
                y="y:Q", opacity=faded()
            ),
        ],
        x=_rates(),
        y_title=f"{metric(column)} on validation",
        detail="epochs",
    )
    narrow = [label for label, *_, mark in shown if mark == END]
    ends = f" Nothing was tried beyond the rate taken of {listed(narrow)}." if narrow else ""
    taken = [(label, rate, found) for label, rate, found, _, mark in shown if mark]
    words = f"Taken, with their {column.metric} on validation: {_best(column, taken)}.{ends}"
    return figure_of(
        "tuning",
        column,
        f"{column.metric} of trials over learning rate",
        words,
        caption=f"A line for each length of training; ring: what was taken.{plot.told}{ends}",
        draw=lambda title: plot.spec(style, title, words, limit),
    )


def of_rows(trials: Iterable[Trial], table: Table) -> list[Trial]:
    """The trials of the table's rows, under the names that these have there."""
    untuned_first = sorted(table.rows, key=lambda row: bool(row.tuned))
    names = {(row.model, row.plain): row.label for row in untuned_first}
    return [
        trial.model_copy(update={"label": names[trial.model, trial.label]})
        for trial in trials
        if (trial.model, trial.label) in names
    ]


def told_trials(trials: Sequence[Trial], table: Table) -> str:
    """How many trials the rows had on each task: of the shortest training, which all begin with."""
    counts: dict[str, set[int]] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            of = (column.task, column.sha256, row.label)
            own = [t.epochs for t in trials if (t.task, t.data, t.label) == of]
            if cell is not None:
                counts.setdefault(row.label, set()).add(own.count(min(own, default=0)))
    if len(set.union(set(), *counts.values())) == 1:
        return "Every row had as many trials as every other."
    each = (f"{row} {' or '.join(map(str, sorted(of)))}" for row, of in counts.items())
    return f"Trials of a row on a task: {', '.join(each)}."


def progress_figure(
    column: Column, trials: Sequence[Trial], style: Style, limit: int
) -> Figure | None:
    """The best score so far over the number of trials, among those of the first rung."""
    import altair as alt

    rows: list[tuple[str, int, float]] = []
    for label in style.colour:
        own = [trial for trial in trials if trial.label == label]
        first = min((trial.epochs for trial in own), default=0)
        scores = [trial.score for trial in own if trial.epochs == first and trial.score is not None]
        for number in range(1, len(scores) + 1):
            best = max(scores[:number], key=lambda found: merit(column.metric, found))
            rows.append((label, number, best))
    if not rows:
        return None
    ticks = sorted({number for _, number, _ in rows})
    tooltip = [alt.Tooltip("method:N"), alt.Tooltip("x:Q", title="trials"), alt.Tooltip("y:Q")]
    steps = alt.Chart().mark_line(aria=False, strokeWidth=2.2, interpolate="step-after")
    plot = Plot(
        columns=("method", "x", "y"),
        rows=rows,
        labels=list(dict.fromkeys(label for label, *_ in rows)),
        marks=[steps.encode(y="y:Q", opacity=faded()), _dots(24).encode(tooltip=tooltip)],
        x=alt.X("x:Q", title="trials", axis=alt.Axis(values=ticks, format="d")),
        y_title=f"{metric(column)} on validation",
    )
    lasts = {label: f"{label} {score(best, column)} of {n}" for label, n, best in rows}
    words = f"Best {column.metric} on validation, of how many trials: {listed(lasts.values())}."
    return figure_of(
        "trials",
        column,
        "best of the trials so far",
        words,
        caption=f"Trials of the shortest training alone.{plot.told}",
        draw=lambda title: plot.spec(style, title, words, limit),
    )


def _mark(trial: Trial, trials: Sequence[Trial]) -> str:
    if not trial.chosen:
        return ""
    return END if "lr" in at_end(trial, trials) else "taken"


def _best(column: Column, points: Iterable[tuple[str, float, float]]) -> str:
    """The best score of each label and its rate, in words."""
    best: dict[str, tuple[float, float]] = {}
    for label, rate, found in points:
        if label not in best or merit(column.metric, found) > merit(column.metric, best[label][1]):
            best[label] = (rate, found)
    told = (f"{label} {score(y, column)} at {rate:.3g}" for label, (rate, y) in best.items())
    return listed(told) if best else "none"


def _line(width: float) -> alt.Chart:
    import altair as alt

    line: alt.Chart = alt.Chart().mark_line(aria=False, strokeWidth=width)
    return line.encode(y="y:Q", opacity=faded())


def _dots(size: int) -> alt.Chart:
    import altair as alt

    dots: alt.Chart = alt.Chart().mark_point(aria=False, filled=True, size=size)
    return dots.encode(y="y:Q", opacity=faded())


def _rates(ticks: Sequence[float] = ()) -> alt.X:
    import altair as alt

    return alt.X(
        "x:Q",
        title="learning rate",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format=".0e", values=ticks or alt.Undefined),
    )


def _tooltip(column: Column) -> list[alt.Tooltip]:
    import altair as alt

    return [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("y:Q", title=column.metric, format=".3f"),
    ]
