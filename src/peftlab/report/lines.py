"""Figures of something over training: score, loss, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.report.columns import Column
from peftlab.report.curves import Curves, Means, Points, averaged, smooth, thin
from peftlab.report.panels import SEED, Plot
from peftlab.report.style import Figure, Style, faded, figure_of
from peftlab.report.text import metric, number, score

if TYPE_CHECKING:
    import altair as alt


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on one task: its label and its seeds' curves, the lowest seed first."""

    label: str
    curves: tuple[Curves, ...]


def score_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Dev score after each epoch: the mean over seeds, and each seed's own thin."""
    import altair as alt

    found = {
        line.label: averaged([one.score.get(column.metric, []) for one in line.curves])
        for line in lines
    }
    means = {label: points for label, points in found.items() if points}
    if not means:
        return None
    epochs = sorted({x for points in means.values() for x, *_ in points})
    ticks = epochs[:: math.ceil(len(epochs) / 10)]  # whole epochs, which no automatic tick heeds
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="epoch"),
        alt.Tooltip("y:Q", title=f"{column.metric}, mean over seeds", format=".3f"),
    ]
    dots = alt.Chart().mark_point(aria=False, filled=True, size=24)
    plot = _plot(
        means,
        alt.X("x:Q", title="epoch", axis=alt.Axis(values=ticks, format="d")),
        f"{metric(column)} on dev",
        marks=[dots.encode(y="y:Q", opacity=faded(), tooltip=tooltip)],
    )
    ends = (f"{label} {score(points[-1][1], column)}" for label, points in means.items())
    words = f"{column.metric} on dev after the last epoch: {listed(ends)}."
    return figure_of(
        "score",
        column,
        f"dev {column.metric} over training",
        words,
        caption=f"{_told_seeds(lines)}{plot.told}",
        draw=lambda title: plot.spec(style, title, words, limit),
    )


def loss_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Training loss over steps, smoothed: the mean, and each seed's thin; one seed's as it was."""
    import altair as alt

    means: dict[str, Means] = {}
    lone = False
    for line in lines:
        losses = [one.loss for one in line.curves if one.loss]
        points = averaged([smooth(loss, _window(loss)) for loss in losses])
        if len(losses) == 1:
            lone = True
            points = [(*point, y) for point, (_, y) in zip(points, losses[0], strict=True)]
        if points:
            means[line.label] = thin(points, limit)
    if not means:
        return None
    unit = "cross-entropy" if column.kind == "classes" else "mean squared error"
    plot = _plot(
        means,
        alt.X("x:Q", title="step", axis=alt.Axis(format=",d"), scale=alt.Scale(nice=False)),
        unit,
        from_zero=True,
    )
    windows = sorted({_window(one.loss) for line in lines for one in line.curves if one.loss})
    bounds = "–".join(str(bound) for bound in dict.fromkeys((windows[0], windows[-1])))
    alone = " A method's only seed is thin as it was." if lone else ""
    ends = (f"{label} {number(points[-1][1])}" for label, points in means.items())
    words = f"Training loss ({unit}) at the end: {listed(ends)}."
    return figure_of(
        "loss",
        column,
        "training loss",
        words,
        caption=f"{_told_seeds(lines)} Smoothed over {bounds} steps.{alone}{plot.told}",
        draw=lambda title: plot.spec(style, title, words, limit),
    )


def memory_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Memory held over the seconds of training, of the lowest seed."""
    import altair as alt

    means: dict[str, Means] = {}
    for line in lines:
        if memory := next((one.memory for one in line.curves if one.memory), []):
            means[line.label] = averaged([thin(memory, limit)])
    if not means:
        return None
    plot = _plot(
        means,
        alt.X("x:Q", title="seconds of training", scale=alt.Scale(nice=False, zero=True)),
        "memory (MiB)",
        from_zero=True,
    )
    peaks = (f"{label} {number(max(y for _, y in points))}" for label, points in means.items())
    words = f"Most memory held in MiB: {listed(peaks)}."
    return figure_of(
        "memory",
        column,
        "memory over training",
        words,
        caption=f"{'The lowest seed.' if _many(lines) else 'One seed.'}{plot.told}",
        draw=lambda title: plot.spec(style, title, words, limit),
    )


def _plot(
    means: Mapping[str, Means],
    x: alt.X,
    y_title: str,
    marks: Sequence[alt.Chart] = (),
    from_zero: bool = False,
) -> Plot:
    """A line for each method over thin ones of its seeds, and the `marks`.

    No area between the seeds: one collapsed run of three laid its method's over all others' lines.
    """
    import altair as alt

    lengths = [len(point) for points in means.values() for point in points]
    seeds = [f"{SEED}{number}" for number in range(1, max(lengths) - 1)]
    rows = [
        (label, f"{x:.6g}", *(f"{y:.4g}" for y in ys), *["NaN"] * (1 + len(seeds) - len(ys)))
        for label, points in means.items()
        for x, *ys in points
    ]
    line = alt.Chart().mark_line(aria=False, strokeWidth=2)
    mean = line.encode(y="y:Q", opacity=faded(), tooltip=[alt.Tooltip("method:N")])
    own = alt.Chart().mark_line(aria=False, strokeWidth=0.8)
    return Plot(
        columns=("method", "x", "y", *seeds),
        rows=rows,
        labels=list(means),
        marks=[*(own.encode(y=f"{seed}:Q", opacity=faded(0.4)) for seed in seeds), mean, *marks],
        x=x,
        y_title=y_title,
        from_zero=from_zero,
    )


def _window(loss: Points) -> int:
    """Steps that a loss is smoothed over: odd, so that they have a middle."""
    return max(3, len(loss) // 15) | 1


def _many(lines: Sequence[Line]) -> bool:
    return any(len(line.curves) > 1 for line in lines)


def _told_seeds(lines: Sequence[Line]) -> str:
    """What the lines are."""
    return "Line: mean over seeds; thin: each of them." if _many(lines) else "One seed."
