"""Figures of score over learning rate: of rows, and of the trials where rates were tuned.

Rows that differ in the rate alone, as `--lr 1e-4,4e-4,1e-3` makes them, are one curve.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.records.rows import merit
from peftlab.records.trials import Trial, settings_at_border
from peftlab.report.columns import Column
from peftlab.report.panels import Plot
from peftlab.report.scores import Table, TableCell, TableRow
from peftlab.report.style import Figure, Style, focus_opacity, make_figure, score_format
from peftlab.report.text import metric, score

if TYPE_CHECKING:
    import altair as alt

MIN_RATES = 3  # that make a curve
END = "the highest or the lowest that was tried"


def rate_figure(
    column: Column, rows: Sequence[tuple[TableRow, TableCell]], limit: int
) -> Figure | None:
    """Dev score over learning rate, a line for each method that has rows at several rates."""
    import altair as alt

    points = _over_rates(rows)
    if not points:
        return None
    labels = list(dict.fromkeys(curve for curve, *_ in points))
    # a line has points of several rows of the table, any of which may be picked
    curve = alt.Chart().transform_calculate(is_picked="picked === datum.method ? 1 : 0")
    curve = curve.transform_joinaggregate(has_picked="max(is_picked)", groupby=["curve"])
    spans = alt.Chart().mark_rule(aria=False)
    plot = Plot(
        columns=("curve", "method", "x", "y", "low", "high"),
        rows=points,
        labels=labels,
        marks=[
            spans.encode(y="low:Q", y2="high:Q", opacity=focus_opacity(0.5)),
            curve.mark_line(aria=False, strokeWidth=2.2).encode(
                y="y:Q", opacity=focus_opacity(test="picked === '' || datum.has_picked")
            ),
            _dots(36).encode(tooltip=_tooltip(column)),
        ],
        x=_rate_axis(sorted({rate for _, _, rate, *_ in points})),
        y_title=f"{metric(column)} on dev",
        by="curve",
    )
    best = _best(column, [(curve, rate, mean) for curve, _, rate, mean, *_ in points])
    description = f"Best {column.metric} on dev: {best}."
    return make_figure(
        "rate",
        column,
        f"{column.metric} over learning rate",
        description,
        caption="Mean over seeds; thin line: ± one sd. Whoever takes a rate by it has chosen on "
        f"dev.{plot.caption}",
        draw=lambda title: plot.spec(Style(labels), title, description, limit),
    )


Point = tuple[str, str, float, float, float, float]  # curve, row, rate; mean and ± one sd


def _over_rates(rows: Sequence[tuple[TableRow, TableCell]]) -> list[Point]:
    """The scores of untuned rows, curve by curve, for curves that have enough rates."""
    names = _name_curves([row for row, _ in rows])
    points = [
        (names[row.curve], row.label, row.training["lr"], cell.last.mean, cell.last.sd or 0)
        for row, cell in rows
        if cell.last.mean is not None and not row.tuned
    ]
    rates = defaultdict(set)
    for curve, _, rate, *_ in points:
        rates[curve].add(rate)
    order = list(rates)
    points.sort(key=lambda point: (order.index(point[0]), point[2]))
    return [
        (curve, label, rate, mean, mean - sd, mean + sd)
        for curve, label, rate, mean, sd in points
        if len(rates[curve]) >= MIN_RATES
    ]


def _name_curves(rows: Sequence[TableRow]) -> dict[str, str]:
    """A name for every curve: its first row's label less the rate, numbered if it is in use."""
    names: dict[str, str] = {}
    for row in rows:
        short = _without_rate(row.label)
        unique = f"{short} #{len(names) + 1}" if short in names.values() else short
        names.setdefault(row.curve, unique)
    return names


def _without_rate(label: str) -> str:
    """A label less its learning rate, where it has one that can be recognised.

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
    """Every trial's score over its learning rate; a ring for the one that was chosen."""
    import altair as alt

    rows = [
        (t.label, t.values["lr"], t.score, t.epochs, _mark(t, trials))
        for t in sorted(trials, key=lambda t: (t.label, t.epochs, t.values.get("lr", 0.0)))
        if t.score is not None and "lr" in t.values and t.label in style.colour
    ]
    if not rows:
        return None
    rings = alt.Chart().transform_filter("datum.mark != ''").mark_point(aria=False, size=160)
    ends = alt.Chart().transform_filter(f"datum.mark == '{END}'")
    plot = Plot(
        columns=("method", "x", "y", "epochs", "mark"),
        rows=rows,
        labels=[label for label in style.colour if label in {row[0] for row in rows}],
        marks=[
            _line(1.2).encode(detail="epochs:N"),
            _dots(30).encode(tooltip=[*_tooltip(column), alt.Tooltip("epochs:Q")]),
            rings.encode(y="y:Q", opacity=focus_opacity()),
            ends.mark_text(aria=False, dy=-16, text="◂ none beyond ▸").encode(
                y="y:Q", opacity=focus_opacity()
            ),
        ],
        x=_rate_axis(),
        y_title=f"{metric(column)} on validation",
        detail="epochs",
    )
    at_end = [label for label, *_, mark in rows if mark == END]
    warning = f" Nothing was tried beyond the rate taken of {listed(at_end)}." if at_end else ""
    best = _best(column, [(label, rate, y) for label, rate, y, _, mark in rows if mark])
    description = f"Taken, with their {column.metric} on validation: {best}.{warning}"
    return make_figure(
        "tuning",
        column,
        f"{column.metric} of trials over learning rate",
        description,
        caption=f"A line for each length of training; ring: what was taken.{plot.caption}{warning}",
        draw=lambda title: plot.spec(style, title, description, limit),
    )


def of_rows(trials: Iterable[Trial], table: Table) -> list[Trial]:
    """The trials of the table's rows, each with its row's label as its own."""
    untuned_first = sorted(table.rows, key=lambda row: bool(row.tuned))
    names = {(row.model, row.plain): row.label for row in untuned_first}
    return [
        trial.model_copy(update={"label": names[trial.model, trial.label]})
        for trial in trials
        if (trial.model, trial.label) in names
    ]


def describe_trials(trials: Sequence[Trial], table: Table) -> str:
    """How many trials the rows had on each task, counting those of the shortest training."""
    counts: dict[str, set[int]] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            key = (column.task, column.sha256, row.label)
            epochs = [t.epochs for t in trials if (t.task, t.data, t.label) == key]
            if cell is not None:
                counts.setdefault(row.label, set()).add(epochs.count(min(epochs, default=0)))
    if len(set.union(set(), *counts.values())) == 1:
        return "Every row had as many trials as every other."
    rows = (f"{row} {' or '.join(map(str, sorted(ns)))}" for row, ns in counts.items())
    return f"Trials of a row on a task: {', '.join(rows)}."


def progress_figure(
    column: Column, trials: Sequence[Trial], style: Style, limit: int
) -> Figure | None:
    """The best score so far over the number of trials of the first rung."""
    import altair as alt

    rows: list[tuple[str, int, float]] = []
    for label in style.colour:
        of_row = [trial for trial in trials if trial.label == label]
        first = min((trial.epochs for trial in of_row), default=0)
        best: float | None = None
        for number, trial in enumerate((t for t in of_row if t.epochs == first), start=1):
            scores = [score for score in (best, trial.score) if score is not None]
            best = max(scores, key=lambda score: merit(column.metric, score), default=None)
            if best is not None:  # a failed trial counts as one, too
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
        marks=[steps.encode(y="y:Q", opacity=focus_opacity()), _dots(24).encode(tooltip=tooltip)],
        x=alt.X("x:Q", title="trials", axis=alt.Axis(values=ticks, format="d")),
        y_title=f"{metric(column)} on validation",
    )
    lasts = {label: f"{label} {score(best, column)} of {n}" for label, n, best in rows}
    description = (
        f"Best {column.metric} on validation, of how many trials: {listed(lasts.values())}."
    )
    return make_figure(
        "trials",
        column,
        "best of the trials so far",
        description,
        caption=f"Trials of the shortest training alone.{plot.caption}",
        draw=lambda title: plot.spec(style, title, description, limit),
    )


def _mark(trial: Trial, trials: Sequence[Trial]) -> str:
    if not trial.chosen:
        return ""
    return END if "lr" in settings_at_border(trial, trials) else "taken"


def _best(column: Column, points: Iterable[tuple[str, float, float]]) -> str:
    """The best score of each label and its rate, as a text."""
    best: dict[str, tuple[float, float]] = {}
    for label, rate, y in points:
        if label not in best or merit(column.metric, y) > merit(column.metric, best[label][1]):
            best[label] = (rate, y)
    described = (f"{label} {score(y, column)} at {rate:.3g}" for label, (rate, y) in best.items())
    return listed(described) if best else "none"


def _line(width: float) -> alt.Chart:
    import altair as alt

    line: alt.Chart = alt.Chart().mark_line(aria=False, strokeWidth=width)
    return line.encode(y="y:Q", opacity=focus_opacity())


def _dots(size: int) -> alt.Chart:
    import altair as alt

    dots: alt.Chart = alt.Chart().mark_point(aria=False, filled=True, size=size)
    return dots.encode(y="y:Q", opacity=focus_opacity())


def _rate_axis(ticks: Sequence[float] = ()) -> alt.X:
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
        alt.Tooltip("y:Q", title=column.metric, format=score_format(column)),
    ]
