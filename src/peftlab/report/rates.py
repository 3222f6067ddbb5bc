"""Figures of score over learning rate: of trials, where they were tuned, and of rows.

Rows that differ in the rate alone, as `--lr 1e-4,4e-4,1e-3` makes them, are one curve.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.naming import slug
from peftlab.records.rows import merit
from peftlab.records.trials import Trial
from peftlab.report.columns import Column
from peftlab.report.scores import Cell, Row
from peftlab.report.style import Figure, Style, charted, faded, legend, listed, score_scale, spec
from peftlab.report.text import metric

if TYPE_CHECKING:
    import altair as alt

HEIGHT = 250  # pixels
FEWEST = 3  # rates that make a curve
BORDER = "where its range ends, which may be too narrow"


def rate_figure(column: Column, rows: Sequence[tuple[Row, Cell]]) -> Figure | None:
    """Dev score over learning rate, a line a method, where one has rows at several rates."""
    import altair as alt

    points = [
        (_without_rate(row.label), row.label, row.training["lr"], cell.last.mean, cell.last.sd or 0)
        for row, cell in rows
        if cell.last.mean is not None and not row.tuned
    ]
    rates = defaultdict(set)
    for curve, _, rate, *_ in points:
        rates[curve].add(rate)
    labels = [curve for curve, found in rates.items() if len(found) >= FEWEST]
    shown = [
        (curve, label, rate, mean, mean - sd, mean + sd)
        for curve, label, rate, mean, sd in sorted(points)
        if curve in labels
    ]
    if not shown:
        return None
    columns = ("curve", "method", "x", "y", "low", "high")
    base = _base(shown, columns, Style(labels), labels)
    y = alt.Y("y:Q", title=f"{metric(column)} on dev", scale=_scale(shown, (4, 5)))
    whole = base.transform_calculate(mine="picked === datum.method ? 1 : 0")
    whole = whole.transform_joinaggregate(held="max(mine)", groupby=["curve"])
    chart = alt.layer(
        base.mark_rule(aria=False).encode(y="low:Q", y2="high:Q", opacity=faded(0.5)),
        whole.mark_line(aria=False, strokeWidth=2.2).encode(
            y=y, opacity=faded(test="picked === '' || datum.held")
        ),
        base.mark_point(aria=False, filled=True, size=36).encode(y=y, tooltip=_tooltip(column)),
    )
    title = f"{column.label}: {column.metric} over learning rate"
    return Figure(
        kind="rate",
        name=f"rate-{slug(column.label)[:60]}",
        title=title,
        caption="Mean over seeds; thin line: ± one sd. No rate was chosen by this figure.",
        alt=f"{column.metric} on dev over learning rate for {listed(labels)}.",
        spec=spec(chart, title, title, HEIGHT),
    )


def _without_rate(label: str) -> str:
    """A row's label less its learning rate: what rows of one curve have in common.

    >>> [_without_rate(f"lora{rest}") for rest in ("[lr=4e-05]", "[rank=4,lr=0.001]", " (lr 0.1)")]
    ['lora', 'lora[rank=4]', 'lora']
    """
    return re.sub(r"\[lr=[^,\]]*\]|,lr=[^,\]]*| \(lr [^)]*\)", "", label)


def tuning_figure(column: Column, trials: Sequence[Trial], style: Style) -> Figure | None:
    """Every trial's score over its learning rate; a ring for what was taken."""
    import altair as alt

    shown = [
        (t.label, t.values["lr"], t.score, t.epochs, _mark(t))
        for t in sorted(trials, key=lambda t: (t.label, t.epochs, t.values.get("lr", 0.0)))
        if t.score is not None and "lr" in t.values and t.label in style.colour
    ]
    if not shown:
        return None
    labels = [label for label in style.colour if label in {row[0] for row in shown}]
    base = _base(shown, ("method", "x", "y", "epochs", "mark"), style, labels)
    y = alt.Y("y:Q", title=f"{metric(column)} on validation", scale=_scale(shown, (2,)))
    tooltip = [*_tooltip(column), alt.Tooltip("epochs:Q")]
    rings = base.transform_filter("datum.mark != ''").mark_point(aria=False, size=160)
    borders = base.transform_filter(f"datum.mark == '{BORDER}'")
    chart = alt.layer(
        base.mark_line(aria=False, strokeWidth=1.2).encode(y=y, detail="epochs:N"),
        base.mark_point(aria=False, filled=True, size=30).encode(y=y, tooltip=tooltip),
        rings.encode(y=y),
        borders.mark_text(aria=False, dy=-16, text="◂ range ends ▸").encode(y=y),
    )
    title = f"{column.label}: {column.metric} of trials over learning rate"
    narrow = [label for label, *_, mark in shown if mark == BORDER]
    ends = f" At the end of its range, which may be too narrow: {listed(narrow)}." if narrow else ""
    return Figure(
        kind="tuning",
        name=f"tuning-{slug(column.label)[:60]}",
        title=title,
        caption=f"A line for each length of training; ring: what was taken.{ends}",
        alt=f"{column.metric} on validation over learning rate for {listed(labels)}.{ends}",
        spec=spec(chart, title, title, HEIGHT),
    )


def progress_figure(column: Column, trials: Sequence[Trial], style: Style) -> Figure | None:
    """The best score so far over the number of trials, among those of the first rung."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    for label in style.colour:
        own = [trial for trial in trials if trial.label == label]
        first = min((trial.epochs for trial in own), default=0)
        scores = [trial.score for trial in own if trial.epochs == first and trial.score is not None]
        for number in range(1, len(scores) + 1):
            best = max(scores[:number], key=lambda score: merit(column.metric, score))
            rows.append((label, number, best))
    labels = list(dict.fromkeys(str(row[0]) for row in rows))
    if not rows:
        return None
    ticks = sorted({int(str(row[1])) for row in rows})
    base = charted(("method", "x", "y"), rows).encode(
        x=alt.X("x:Q", title="trials", axis=alt.Axis(values=ticks, format="d")),
        y=alt.Y(
            "y:Q", title=f"best {metric(column)} on validation so far", scale=_scale(rows, (2,))
        ),
        color=alt.Color("method:N", scale=style.colours(labels), legend=legend(lines=True)),
        opacity=faded(),
    )
    chart = alt.layer(
        base.mark_line(aria=False, strokeWidth=2.2, interpolate="step-after"),
        base.mark_point(aria=False, filled=True, size=24).encode(
            tooltip=[alt.Tooltip("method:N"), alt.Tooltip("x:Q", title="trials"), "y:Q"]
        ),
    )
    title = f"{column.label}: best of the trials so far"
    return Figure(
        kind="trials",
        name=f"trials-{slug(column.label)[:60]}",
        title=title,
        caption="Trials of the shortest training alone.",
        alt=f"Best {column.metric} on validation over the number of trials for {listed(labels)}.",
        spec=spec(chart, title, title, HEIGHT),
    )


def _mark(trial: Trial) -> str:
    if not trial.chosen:
        return ""
    return BORDER if "lr" in trial.at_border else "taken"


def _base(
    rows: Sequence[Sequence[object]], columns: Sequence[str], style: Style, labels: Sequence[str]
) -> alt.Chart:
    """The rows over learning rate; the first of the columns has a colour for each of its values."""
    import altair as alt

    drawn: alt.Chart = charted(columns, rows).encode(
        x=alt.X(
            "x:Q",
            title="learning rate",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(format=".0e"),
        ),
        color=alt.Color(f"{columns[0]}:N", scale=style.colours(labels), legend=legend(lines=True)),
        opacity=faded(),
    )
    return drawn


def _scale(rows: Sequence[Sequence[object]], columns: Sequence[int]) -> alt.Scale:
    return score_scale(float(str(row[column])) for row in rows for column in columns)


def _tooltip(column: Column) -> list[alt.Tooltip]:
    import altair as alt

    return [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("y:Q", title=column.metric, format=".3f"),
    ]
