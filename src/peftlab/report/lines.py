"""Figures of something over training: score, loss, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.naming import slug
from peftlab.report.columns import Column
from peftlab.report.curves import Curves, Points, average, smooth, thin
from peftlab.report.style import Figure, Style, charted, listed, score_scale, spec
from peftlab.report.text import metric

if TYPE_CHECKING:
    import altair as alt

HEIGHT = 250  # pixels
COLUMNS = ("method", "seed", "kind", "x", "y")


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on one task: its label and its seeds' curves, the lowest seed first."""

    label: str
    seeds: tuple[int, ...]
    curves: tuple[Curves, ...]


def score_figure(column: Column, lines: Sequence[Line], style: Style) -> Figure | None:
    """Dev score after each epoch: mean over seeds, the seeds faint behind it."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    labels = []
    for line in lines:
        seeds = [_score(one, column) for one in line.curves]
        if mean := average([points for points in seeds if points]):
            labels.append(line.label)
            rows += _rows(line.label, "mean", "mean", mean)
        if len(seeds) > 1:
            for seed, points in zip(line.seeds, seeds, strict=True):
                rows += _rows(line.label, seed, "seed", points)
    if not labels:
        return None
    epochs = sorted({x for line in lines for one in line.curves for x, _ in _score(one, column)})
    heights = [y for line in lines for one in line.curves for _, y in _score(one, column)]
    ticks = epochs[:: math.ceil(len(epochs) / 10)]  # whole epochs, which no automatic tick heeds
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="epoch"),
        alt.Tooltip("y:Q", title=f"{column.metric}, mean over seeds", format=".3f"),
    ]
    base = charted(COLUMNS, rows).encode(
        x=alt.X("x:Q", title="epoch", axis=alt.Axis(values=ticks, format="d")),
        y=alt.Y("y:Q", title=f"{metric(column)} on dev", scale=score_scale(heights)),
    )
    mean_line = style.lines(base, "mean", labels, opacity=1, width=2.2)
    dots = mean_line.mark_point(aria=False, filled=True, size=24).encode(tooltip=tooltip)
    many = _many(lines)
    faint = [style.lines(base, "seed", labels, opacity=0.35, width=1)] if many else []
    chart = alt.layer(*faint, mean_line, dots)
    return _figure(
        "score",
        column,
        chart,
        title=f"{column.label}: dev {column.metric} over training",
        caption="Bold: mean over seeds; faint: each seed." if many else "One seed.",
        alt=f"{column.metric} on dev over epochs for {listed(labels)}.",
    )


def loss_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Training loss over steps: smoothed, the lowest seed's raw losses faint behind it."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    labels = []
    windows = set()
    for line in lines:
        losses = [one.loss for one in line.curves if one.loss]
        mean = average(losses)
        if not mean:
            continue
        labels.append(line.label)
        window = max(3, len(mean) // 15) | 1  # odd, so that it has a middle
        windows.add(window)
        rows += _rows(line.label, "raw", "raw", thin(losses[0], limit))
        rows += _rows(line.label, "smooth", "smooth", thin(smooth(mean, window), limit))
    if not labels:
        return None
    unit = "cross-entropy" if column.kind == "classes" else "mean squared error"
    base = charted(COLUMNS, rows).encode(
        x=alt.X("x:Q", title="step", axis=alt.Axis(format=",d"), scale=alt.Scale(nice=False)),
        y=alt.Y("y:Q", title=f"training loss ({unit})"),
    )
    chart = alt.layer(
        style.lines(base, "raw", labels, opacity=0.3 if len(labels) < 5 else 0.15, width=0.8),
        style.lines(base, "smooth", labels, opacity=1, width=2.2).encode(
            tooltip=[alt.Tooltip("method:N")]
        ),
    )
    bounds = "–".join(str(bound) for bound in sorted({min(windows), max(windows)}))
    return _figure(
        "loss",
        column,
        chart,
        title=f"{column.label}: training loss",
        caption=f"Bold: {'mean over seeds, ' if _many(lines) else ''}smoothed over {bounds} steps; "
        f"faint: {'the lowest seed ' if _many(lines) else ''}as it was.",
        alt=f"Training loss over steps for {listed(labels)}.",
    )


def memory_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Memory held over the seconds of training, of the lowest seed."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    labels = []
    for line in lines:
        if memory := next((one.memory for one in line.curves if one.memory), []):
            labels.append(line.label)
            rows += _rows(line.label, "one", "one", thin(memory, limit))
    if not labels:
        return None
    base = charted(COLUMNS, rows).encode(
        x=alt.X("x:Q", title="seconds of training", scale=alt.Scale(nice=False, zero=True)),
        y=alt.Y("y:Q", title="memory (MiB)"),
    )
    line_layer = style.lines(base, "one", labels, opacity=1, width=2)
    return _figure(
        "memory",
        column,
        alt.layer(line_layer.encode(tooltip=[alt.Tooltip("method:N")])),
        title=f"{column.label}: memory over training",
        caption="The lowest seed." if _many(lines) else "One seed.",
        alt=f"Memory in MiB over seconds of training for {listed(labels)}.",
    )


def _many(lines: Sequence[Line]) -> bool:
    return any(len(line.seeds) > 1 for line in lines)


def _score(curves: Curves, column: Column) -> Points:
    return curves.score.get(column.metric, [])


def _rows(label: str, seed: object, kind: str, points: Points) -> list[tuple[object, ...]]:
    return [(label, seed, kind, f"{x:.6g}", f"{y:.4g}") for x, y in points]


def _figure(
    kind: str,
    column: Column,
    chart: alt.LayerChart | alt.FacetChart,
    *,
    title: str,
    caption: str,
    alt: str,
) -> Figure:
    return Figure(
        kind=kind,
        name=f"{kind}-{slug(column.label)[:60]}",
        title=title,
        caption=caption,
        alt=alt,
        spec=spec(chart, title, alt, HEIGHT),
    )
