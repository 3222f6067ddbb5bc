"""The figure of quality against cost, and the front: the rows that are best at their cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.records.rows import merit
from peftlab.report.columns import Column
from peftlab.report.costs import main_cost
from peftlab.report.scores import TableCell
from peftlab.report.style import (
    GREY,
    IS_SHOWN,
    Figure,
    Style,
    focus_opacity,
    inline_data,
    make_figure,
    panel_header,
    spec,
)
from peftlab.report.text import count, metric, minutes, number, spread
from peftlab.report.vega import SVG_WIDTH

if TYPE_CHECKING:
    import altair as alt

COSTS = ("trained parameters", "peak MiB", "minutes a cell")
PANEL = {"width": SVG_WIDTH // len(COSTS) - 30, "height": 220}  # pixels
EDGE = 16  # pixels between the outermost points and the panel's edges
FONT = 10  # pixels
NAME = 130  # pixels of the longest name; Vega cuts longer ones
LETTER = 5.6  # pixels of a letter in a name, about
NEAR = ((7, 0, "left"), (-7, 0, "right"), (0, -10, "center"), (0, 10, "center"))
FAR = [(x * side, y) for x in (9, 20, 34, 50) for side in (1, -1) for y in range(-143, 144, 11)]
# where a name may stand, nearest first: pixels from its point to the right and down, and the end of
# the name that is there
PLACES = (
    *NEAR,
    *((x, y, "left" if x > 0 else "right") for x, y in sorted(FAR, key=lambda xy: math.hypot(*xy))),
)
TICKS = (
    "datum.value >= 1e6 ? format(datum.value / 1e6, '.3~r') + ' M' : datum.value >= 1e4 ?"
    " format(datum.value / 1e3, '.3~r') + ' K' : format(datum.value, ',.3~r')"
)  # parameters as in the table


@dataclasses.dataclass(frozen=True)
class Point:
    """A method's score and one of its costs, as numbers and as texts."""

    label: str
    cost: float
    quality: float
    cost_text: str
    score_text: str


def front_figure(
    column: Column, cells: Mapping[str, TableCell], style: Style, conditions: str
) -> Figure | None:
    """Dev score against trained parameters, memory and time; the front as a step line.

    Memory and time are those under the table's first conditions, named `conditions`.
    """
    panels = {
        name: [
            point for label, cell in cells.items() for point in _point(label, name, cell, column)
        ]
        for name in COSTS
    }
    panels = {name: points for name, points in panels.items() if len(points) > 1}
    if not panels:
        return None
    fronts = {name: _front(points, column) for name, points in panels.items()}
    under = f" Memory and time of conditions {conditions} alone." if conditions else ""
    rows = listed(f"by {name} {listed(p.label for p in best)}" for name, best in fronts.items())
    numbers = "; ".join(
        f"by {name} {listed(f'{p.label} ({p.score_text} at {p.cost_text})' for p in best)}"
        for name, best in fronts.items()
    )
    description = f"{column.metric} on dev against cost. Best for what they cost: {numbers}."
    return make_figure(
        "front",
        column,
        "quality against cost",
        description,
        caption=f"Line: rows that no other beats in both, {rows}. Means over seeds: a difference"
        f" within the noise counts too.{under}",
        draw=lambda title: spec(_chart(panels, fronts, column, style), title, description, None),
    )


def _point(label: str, name: str, cell: TableCell, column: Column) -> Iterator[Point]:
    """The method's point in the panel `name`, where it has one."""
    main = main_cost(cell.costs)
    peak, seconds = (main.peak_mib.mean, main.total_s.mean) if main else (None, None)
    costs: dict[str, tuple[float | None, str]] = {
        "trained parameters": (cell.n_trained, count(cell.n_trained)),
        "peak MiB": (peak, number(peak)),
        "minutes a cell": (minutes(seconds), number(minutes(seconds))),
    }
    cost, cost_text = costs[name]
    if cell.last.mean is not None and cost:  # a logarithmic axis has no 0
        yield Point(label, cost, cell.last.mean, cost_text, spread(cell.last, column))


def _front(points: Sequence[Point], column: Column) -> list[Point]:
    """The points on the front, the cheapest first."""
    indices = front([(point.cost, merit(column.metric, point.quality)) for point in points])
    return sorted((points[index] for index in indices), key=lambda point: point.cost)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other dominates.

    One dominates another if it differs, costs no more and is no worse.

    >>> front([(1, 0.5), (2, 0.7), (3, 0.6), (2, 0.7), (2, 0.6)])
    [0, 1, 3]
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(
            other != point and other[0] <= point[0] and other[1] >= point[1] for other in points
        )
    ]


def _chart(
    panels: Mapping[str, Sequence[Point]],
    fronts: Mapping[str, Sequence[Point]],
    column: Column,
    style: Style,
) -> alt.FacetChart:
    """A panel for each cost, all with one axis of scores."""
    import altair as alt

    low, high = _range([point.quality for points in panels.values() for point in points])
    rows = [
        (p.label, name, p.cost, p.quality, p.cost_text, p.score_text, int(p in best), *place)
        for (name, points), best in zip(panels.items(), fronts.values(), strict=True)
        for p, place in zip(points, _places(points, best, low, high), strict=True)
    ]
    columns = ("method", "cost", "x", "y", "told", "score", "front", "dx", "dy", "align")
    x_axis = alt.Axis(labelExpr=TICKS, tickCount=4)
    x_scale = alt.Scale(type="log", nice=False, padding=EDGE)
    y_scale = alt.Scale(domain=[low, high], nice=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", title=None, scale=x_scale, axis=x_axis),
        y=alt.Y("y:Q", title=f"{metric(column)} on dev", scale=y_scale),
    )
    labels = list(dict.fromkeys(str(row[0]) for row in rows))
    chart: alt.FacetChart = (
        alt.layer(_line(base), _threads(base), _dots(base, labels, column, style), _names(base))
        .properties(**PANEL)
        .facet(
            facet=alt.Facet("cost:N", sort=list(panels), header=panel_header(PANEL["width"])),
            columns=len(COSTS),
            data=inline_data(columns, rows),
        )
    )
    shown: alt.FacetChart = chart.resolve_scale(x="independent").transform_filter(IS_SHOWN)
    return shown


def _line(base: alt.Chart) -> alt.Chart:
    """The best score of all rows at a cost; not drawn where some rows are hidden.

    Its method is empty, or a pointer would take the line for the method of its first point.
    """
    is_shown = "datum.front == 1 && length(off) == 0"
    line = base.transform_filter(is_shown).transform_calculate(method="''")
    mark: alt.Chart = line.mark_line(
        aria=False, interpolate="step-after", color=GREY, strokeWidth=1.2, opacity=0.9
    )
    return mark


def _dots(base: alt.Chart, labels: Sequence[str], column: Column, style: Style) -> alt.Chart:
    import altair as alt

    dots: alt.Chart = base.mark_point(aria=False, filled=True)
    return dots.encode(
        color=alt.Color("method:N", scale=style.colours(labels), legend=None),
        size=alt.when("datum.front == 1").then(alt.value(50)).otherwise(alt.value(25)),
        opacity=focus_opacity(),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("score:N", title=f"{column.metric} on dev"),
            alt.Tooltip("cost:N"),
            alt.Tooltip("told:N", title="of"),
        ],
    )


def _names(base: alt.Chart) -> alt.Chart:
    import altair as alt

    names: alt.Chart = base.mark_text(
        aria=False,
        fontSize=FONT,
        limit=NAME,
        dx=alt.ExprRef("+datum.dx"),
        dy=alt.ExprRef("+datum.dy"),
        align=alt.ExprRef("datum.align"),
        fontWeight=alt.ExprRef("datum.front == 1 ? 'bold' : 'normal'"),
    )
    return names.encode(text="method:N", opacity=focus_opacity())


def _threads(base: alt.Chart) -> alt.Chart:
    """Lines from a point to its name, where that does not stand right beside it."""
    import altair as alt

    far = base.transform_filter("abs(datum.dx) + abs(datum.dy) > 10")
    threads: alt.Chart = far.mark_rule(
        aria=False,
        color=GREY,
        strokeWidth=0.7,
        x2Offset=alt.ExprRef("+datum.dx"),
        y2Offset=alt.ExprRef("+datum.dy"),
    )
    return threads.encode(x2="x:Q", y2="y:Q", opacity=focus_opacity())


def _range(heights: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis of scores, which has a width even if all scores are equal."""
    low, high = min(heights), max(heights)
    margin = (high - low or 0.1) * EDGE / (PANEL["height"] - 2 * EDGE)
    return low - margin, high + margin


Place = tuple[int, int, str]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def _places(points: Sequence[Point], best: Sequence[Point], low: float, high: float) -> list[Place]:
    """The place of each point's name: the first that is free, points on the front first.

    They are computed for the panels of a file; wider ones have more room.
    """
    logs = [math.log(point.cost) for point in points]
    left, right = min(logs), max(logs)
    scale = (PANEL["width"] - 2 * EDGE) / (right - left or 1)
    positions = [
        (
            EDGE + scale * (x - left) if right > left else PANEL["width"] / 2,
            PANEL["height"] * (high - point.quality) / (high - low),
        )
        for x, point in zip(logs, points, strict=True)
    ]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in positions]
    places: dict[int, Place] = {}
    for index in sorted(range(len(points)), key=lambda index: points[index] not in best):
        boxes = {place: _box(positions[index], place, points[index].label) for place in PLACES}
        others = taken[:index] + taken[index + 1 :]
        places[index] = min(PLACES, key=lambda place: _overlaps(boxes[place], others))
        taken.append(boxes[places[index]])
    return [places[index] for index in range(len(points))]


def _box(position: tuple[float, float], place: Place, label: str) -> Box:
    """The box that a name covers at a place, in pixels of the panel."""
    dx, dy, side = place
    width = LETTER * len(label)
    x, y = position[0] + dx, position[1] + dy
    left = {"left": x, "right": x - width, "center": x - width / 2}[side]
    return left, y - FONT / 2, left + width, y + FONT / 2


def _overlaps(box: Box, others: Sequence[Box]) -> int:
    """How many of the others, and of the panel's edges, the box covers."""
    left, top, right, bottom = box
    covered = sum(
        left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
        for other in others
    )
    width, height = PANEL["width"], PANEL["height"]
    return covered + (left < 0) + (right > width + EDGE) + (top < 0) + (bottom > height)
