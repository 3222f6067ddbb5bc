"""Figures over training: score, loss, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.report.columns import Column
from peftlab.report.curves import Curves, Means, Points, average, smooth, thin
from peftlab.report.panels import SEED, Plot
from peftlab.report.style import Figure, Style, focus_opacity, make_figure, score_format
from peftlab.report.text import metric, number, score

if TYPE_CHECKING:
    import altair as alt


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on one task: its label and the curves of its seeds, the lowest seed first."""

    label: str
    curves: tuple[Curves, ...]


def score_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Dev score after each epoch: the mean over seeds, and a thin line for each seed."""
    import altair as alt

    averages = {
        line.label: average([curves.score.get(column.metric, []) for curves in line.curves])
        for line in lines
    }
    means = {label: points for label, points in averages.items() if points}
    if not means:
        return None
    epochs = sorted({x for points in means.values() for x, *_ in points})
    ticks = epochs[:: math.ceil(len(epochs) / 10)]  # whole epochs; automatic ticks may be fractions
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="epoch"),
        alt.Tooltip("y:Q", title=f"{column.metric}, mean over seeds", format=score_format(column)),
    ]
    dots = alt.Chart().mark_point(aria=False, filled=True, size=24)
    plot = _plot(
        means,
        alt.X("x:Q", title="epoch", axis=alt.Axis(values=ticks, format="d")),
        f"{metric(column)} on dev",
        marks=[dots.encode(y="y:Q", opacity=focus_opacity(), tooltip=tooltip)],
    )
    ends = (f"{label} {score(points[-1][1], column)}" for label, points in means.items())
    description = f"{column.metric} on dev after the last epoch: {listed(ends)}."
    return make_figure(
        "score",
        column,
        f"dev {column.metric} over training",
        description,
        caption=f"{_seeds_note(lines)}{plot.caption}",
        draw=lambda title: plot.spec(style, title, description, limit),
    )


def loss_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Training loss over steps, smoothed, and thin lines of seeds; an only seed's as it was."""
    import altair as alt

    means: dict[str, Means] = {}
    has_single_seed = False
    for line in lines:
        losses = [curves.loss for curves in line.curves if curves.loss]
        points = average([smooth(loss, _window(loss)) for loss in losses])
        if len(losses) == 1:
            has_single_seed = True
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
    windows = sorted({_window(c.loss) for line in lines for c in line.curves if c.loss})
    bounds = "–".join(str(bound) for bound in dict.fromkeys((windows[0], windows[-1])))
    single = " A method's only seed is thin as it was." if has_single_seed else ""
    ends = (f"{label} {number(points[-1][1])}" for label, points in means.items())
    description = f"Training loss ({unit}) at the end: {listed(ends)}."
    return make_figure(
        "loss",
        column,
        "training loss",
        description,
        caption=f"{_seeds_note(lines)} Smoothed over {bounds} steps.{single}{plot.caption}",
        draw=lambda title: plot.spec(style, title, description, limit),
    )


def memory_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Memory held over the seconds of training, for the lowest seed."""
    import altair as alt

    means: dict[str, Means] = {}
    for line in lines:
        if memory := next((curves.memory for curves in line.curves if curves.memory), []):
            means[line.label] = average([thin(memory, limit)])
    if not means:
        return None
    plot = _plot(
        means,
        alt.X("x:Q", title="seconds of training", scale=alt.Scale(nice=False, zero=True)),
        "memory (MiB)",
        from_zero=True,
    )
    peaks = (f"{label} {number(max(y for _, y in points))}" for label, points in means.items())
    description = f"Most memory held in MiB: {listed(peaks)}."
    return make_figure(
        "memory",
        column,
        "memory over training",
        description,
        caption=f"{'The lowest seed.' if _has_several_seeds(lines) else 'One seed.'}{plot.caption}",
        draw=lambda title: plot.spec(style, title, description, limit),
    )


def _plot(
    means: Mapping[str, Means],
    x: alt.X,
    y_title: str,
    marks: Sequence[alt.Chart] = (),
    from_zero: bool = False,
) -> Plot:
    """A line for each method over thin ones for its seeds, and the `marks`.

    There is no area between the seeds: that of a method with one collapsed run of three covered
    the lines of all others.
    """
    import altair as alt

    lengths = [len(point) for points in means.values() for point in points]
    seeds = [f"{SEED}{number}" for number in range(1, max(lengths) - 1)]
    digits = 4 if from_zero else 6  # an axis from 0 shows no more of them
    rows = [
        (label, f"{x:.6g}", *(f"{y:.{digits}g}" for y in ys), *["NaN"] * (1 + len(seeds) - len(ys)))
        for label, points in means.items()
        for x, *ys in points
    ]
    thick = alt.Chart().mark_line(aria=False, strokeWidth=2)
    mean = thick.encode(y="y:Q", opacity=focus_opacity(), tooltip=[alt.Tooltip("method:N")])
    thin_line = alt.Chart().mark_line(aria=False, strokeWidth=0.8)
    seed_lines = [thin_line.encode(y=f"{seed}:Q", opacity=focus_opacity(0.4)) for seed in seeds]
    return Plot(
        columns=("method", "x", "y", *seeds),
        rows=rows,
        labels=list(means),
        marks=[*seed_lines, mean, *marks],
        x=x,
        y_title=y_title,
        from_zero=from_zero,
    )


def _window(loss: Points) -> int:
    """The number of steps that a loss is smoothed over: odd, so that they have a middle."""
    return max(3, len(loss) // 15) | 1


def _has_several_seeds(lines: Sequence[Line]) -> bool:
    return any(len(line.curves) > 1 for line in lines)


def _seeds_note(lines: Sequence[Line]) -> str:
    if not _has_several_seeds(lines):
        return "One seed."
    return "Line: mean over seeds; thin: each of them."
