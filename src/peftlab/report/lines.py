"""Figures of something over training: score, loss, memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import slug
from peftlab.report.columns import Column
from peftlab.report.curves import FEW, Bands, Curves, Points, banded, smooth, thin
from peftlab.report.panels import Plot
from peftlab.report.style import Figure, Style, faded, listed
from peftlab.report.text import metric, number, score

if TYPE_CHECKING:
    import altair as alt


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on one task: its label and its seeds' curves, the lowest seed first."""

    label: str
    seeds: tuple[int, ...]
    curves: tuple[Curves, ...]


def score_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Dev score after each epoch: the mean over seeds on a band of their spread."""
    import altair as alt

    found = {
        line.label: banded([one.score.get(column.metric, []) for one in line.curves])
        for line in lines
    }
    bands = {label: band for label, band in found.items() if band}
    if not bands:
        return None
    epochs = sorted({x for band in bands.values() for x, *_ in band})
    ticks = epochs[:: math.ceil(len(epochs) / 10)]  # whole epochs, which no automatic tick heeds
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="epoch"),
        alt.Tooltip("y:Q", title=f"{column.metric}, mean over seeds", format=".3f"),
    ]
    dots = alt.Chart().mark_point(aria=False, filled=True, size=24)
    plot = _plot(
        bands,
        alt.X("x:Q", title="epoch", axis=alt.Axis(values=ticks, format="d")),
        f"{metric(column)} on dev",
        marks=[dots.encode(y="y:Q", opacity=faded(), tooltip=tooltip)],
    )
    ends = (f"{label} {score(band[-1][1], column)}" for label, band in bands.items())
    title = f"{column.label}: dev {column.metric} over training"
    words = f"{column.metric} on dev after the last epoch: {listed(ends)}."
    return Figure(
        kind="score",
        name=_name("score", column),
        title=title,
        caption=f"{_told_seeds(lines)}{plot.told}",
        alt=words,
        spec=plot.spec(style, title, words, limit),
    )


def loss_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Training loss over steps, smoothed: the mean on a band of the seeds; one seed's own faint."""
    import altair as alt

    bands: dict[str, Bands] = {}
    lone: dict[str, dict[float, float]] = {}
    for line in lines:
        losses = [one.loss for one in line.curves if one.loss]
        if band := banded([smooth(loss, _window(loss)) for loss in losses]):
            bands[line.label] = thin(band, limit)
            lone |= {line.label: dict(losses[0])} if len(losses) == 1 else {}
    if not bands:
        return None
    unit = "cross-entropy" if column.kind == "classes" else "mean squared error"
    raw = alt.Chart().mark_line(aria=False, strokeWidth=0.8)
    plot = _plot(
        bands,
        alt.X("x:Q", title="step", axis=alt.Axis(format=",d"), scale=alt.Scale(nice=False)),
        unit,
        marks=[raw.encode(y="raw:Q", opacity=faded(0.3))] if lone else [],
        from_zero=True,
        raw=lone,
    )
    windows = sorted({_window(one.loss) for line in lines for one in line.curves if one.loss})
    bounds = "–".join(str(bound) for bound in dict.fromkeys((windows[0], windows[-1])))
    faint = " Faint: a method's only seed as it was." if lone else ""
    ends = (f"{label} {number(band[-1][1])}" for label, band in bands.items())
    title = f"{column.label}: training loss"
    words = f"Training loss ({unit}) at the end: {listed(ends)}."
    return Figure(
        kind="loss",
        name=_name("loss", column),
        title=title,
        caption=f"{_told_seeds(lines)} Smoothed over {bounds} steps.{faint}{plot.told}",
        alt=words,
        spec=plot.spec(style, title, words, limit),
    )


def memory_figure(column: Column, lines: Sequence[Line], style: Style, limit: int) -> Figure | None:
    """Memory held over the seconds of training, of the lowest seed."""
    import altair as alt

    bands: dict[str, Bands] = {}
    for line in lines:
        if memory := next((one.memory for one in line.curves if one.memory), []):
            bands[line.label] = banded([thin(memory, limit)])
    if not bands:
        return None
    plot = _plot(
        bands,
        alt.X("x:Q", title="seconds of training", scale=alt.Scale(nice=False, zero=True)),
        "memory (MiB)",
        from_zero=True,
    )
    peaks = (f"{label} {number(max(y for _, y, *_ in band))}" for label, band in bands.items())
    title = f"{column.label}: memory over training"
    words = f"Most memory held in MiB: {listed(peaks)}."
    return Figure(
        kind="memory",
        name=_name("memory", column),
        title=title,
        caption=f"{'The lowest seed.' if _many(lines) else 'One seed.'}{plot.told}",
        alt=words,
        spec=plot.spec(style, title, words, limit),
    )


def _plot(
    bands: Mapping[str, Bands],
    x: alt.X,
    y_title: str,
    marks: Sequence[alt.Chart] = (),
    from_zero: bool = False,
    raw: Mapping[str, Mapping[float, float]] | None = None,
) -> Plot:
    """A line for each method on its band, where seeds differ, and the `marks`."""
    import altair as alt

    raw = raw or {}
    spread = any(low < high for band in bands.values() for *_, low, high in band)
    drawn = 3 if spread else 1  # of mean, low, high
    rows = [
        (
            label,
            f"{x:.6g}",
            *(f"{y:.4g}" for y in heights[:drawn]),
            *([f"{raw[label][x]:.4g}" if label in raw else "NaN"] if raw else []),
        )
        for label, band in bands.items()
        for x, *heights in band
    ]
    area = alt.Chart().mark_area(aria=False).encode(y="low:Q", y2="high:Q", opacity=faded(0.2))
    line = alt.Chart().mark_line(aria=False, strokeWidth=2)
    means = line.encode(y="y:Q", opacity=faded(), tooltip=[alt.Tooltip("method:N")])
    return Plot(
        columns=("method", "x", *("y", "low", "high")[:drawn], *(["raw"] if raw else [])),
        rows=rows,
        labels=list(bands),
        marks=[*([area] if spread else []), means, *marks],
        x=x,
        y_title=y_title,
        from_zero=from_zero,
    )


def _window(loss: Points) -> int:
    """Steps that a loss is smoothed over: odd, so that they have a middle."""
    return max(3, len(loss) // 15) | 1


def _many(lines: Sequence[Line]) -> bool:
    return any(len(line.seeds) > 1 for line in lines)


def _told_seeds(lines: Sequence[Line]) -> str:
    """What line and band are."""
    if not _many(lines):
        return "One seed."
    counts = {len(line.seeds) for line in lines}
    told = ["lowest to highest seed"] if any(1 < n <= FEW for n in counts) else []
    told += [f"± one sd over more than {FEW} seeds"] if max(counts) > FEW else []
    return f"Line: mean over seeds; band: {' or '.join(told)}."


def _name(kind: str, column: Column) -> str:
    return f"{kind}-{slug(column.label)[:60]}"
