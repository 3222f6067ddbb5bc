"""What all figures share: their parts, and one colour and dash for each method.

Altair is imported on first use: the command line's help must not wait for it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import slug
from peftlab.report.columns import Column
from peftlab.report.vega import Spec

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's colours for all kinds of colour vision, less yellow and black, which vanish on a
# white or a dark page. From the eighth method on, the dash tells methods of one colour apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])

# The page sets these in all figures at once; `off` are hidden methods, `picked` stands out.
PARAMS: tuple[Spec, ...] = (
    {"name": "legend_columns", "value": 5},
    {"name": "off", "value": []},
    {"name": "picked", "value": ""},
)
GREY = "#888"  # for marks of no method: readable on white and on dark
IS_SHOWN = "indexof(off, datum.method) < 0"
IS_PICKED = "picked === '' || picked === datum.method"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A spec and its words.

    Attributes:
        kind: its place on the page.
        name: the stem of its SVG file.
        task: the label of its column.
    """

    kind: str
    name: str
    task: str
    title: str
    caption: str
    alt: str
    spec: Spec


def make_figure(
    kind: str,
    column: Column,
    subject: str,
    description: str,
    *,
    caption: str,
    draw: Callable[[str], Spec],
    stem: str | None = None,
) -> Figure:
    """The figure of `subject` on the column's task.

    Args:
        kind: its place on the page; also the beginning of its file's name, if no `stem` is given.
        column: of the table.
        subject: the title, without the task.
        description: what the figure shows, for readers who can't see it.
        caption: the text beside the title.
        draw: makes the spec, given the title.
        stem: the beginning of its file's name.
    """
    title = f"{column.label}: {subject}"
    name = f"{stem or kind}-{slug(column.label)[:60]}"
    return Figure(kind, name, column.label, title, caption, description, draw(title))


class Style:
    """The colour and the dash of every method, by its place in the table."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.colour = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
        self.dash = {
            label: DASHES[i // len(PALETTE) % len(DASHES)] for i, label in enumerate(labels)
        }

    def colours(self, labels: Sequence[str]) -> alt.Scale:
        import altair as alt

        return alt.Scale(domain=list(labels), range=[self.colour[label] for label in labels])

    def dashes(self, labels: Sequence[str]) -> alt.Scale:
        import altair as alt

        return alt.Scale(domain=list(labels), range=[self.dash[label] for label in labels])


def legend(of_methods: bool) -> alt.Legend:
    """A legend below the plot: strokes for methods, faint if hidden, or squares for anything else.

    The page sets how many columns fit.
    """
    import altair as alt

    opacity = alt.ExprRef("indexof(off, datum.value) < 0 ? 1 : 0.25") if of_methods else 1
    return alt.Legend(
        title=None,
        orient="bottom",
        columns=alt.ExprRef("legend_columns"),
        labelOpacity=opacity,
        symbolOpacity=opacity,
        symbolType="stroke" if of_methods else "square",
        symbolStrokeWidth=2.5 if of_methods else 0,
    )


def panel_header(limit: int) -> alt.Header:
    """The header of a panel that is `limit` pixels wide: a longer one would widen it."""
    import altair as alt

    return alt.Header(
        title=None, labelAnchor="start", labelFontSize=11, labelLimit=limit, labelPadding=3
    )


def method_chart(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> alt.Chart:
    """A chart of the rows whose method is not hidden; one of the columns is `method`."""
    import altair as alt

    shown: alt.Chart = alt.Chart(inline_data(columns, rows)).transform_filter(IS_SHOWN)
    return shown


def focus_opacity(opacity: float = 1, test: str = IS_PICKED) -> alt.Opacity:
    """An opacity that falls to an eighth while another method is picked."""
    import altair as alt

    picked = alt.when(test).then(alt.value(opacity))
    return picked.otherwise(alt.Opacity(value=opacity / 8))


def spec(
    chart: alt.LayerChart | alt.FacetChart,
    title: str,
    description: str,
    height: int | dict[str, int] | None,
) -> Spec:
    """The chart as Vega-Lite, as wide as its place on the page; `height` is in pixels.

    `{"step": 24}` is 24 pixels a bar, however many are shown. It is None for a chart of panels,
    which have sizes of their own.
    """
    # set as plain keys: altair would copy and validate the whole chart anew for each of them; a
    # test validates every figure
    made: Spec = chart.to_dict(validate=False)
    # all figures share one configuration, given when they are drawn
    del made["config"], made["$schema"]
    made |= {"params": list(PARAMS), "title": title, "description": description}
    if height is not None:
        autosize = {"type": "fit-x", "contains": "padding"}
        made |= {"width": "container", "height": height, "autosize": autosize}
    return made


def inline_data(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> alt.InlineData:
    """The rows as CSV: a third of the bytes of a list of objects."""
    import altair as alt

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return alt.InlineData(values=text.getvalue(), format=alt.CsvDataFormat(type="csv"))


def score_format(column: Column) -> str:
    """The format of a tooltip's score, for d3: of errors, in the label's unit, four digits."""
    return ",.4~r" if column.lower_is_better else ".3f"


def score_scale(values: Iterable[float]) -> alt.Scale:
    """The scale of an axis that need not begin at 0; it has a width even if all values are equal.

    Without a width Vega rounds the label of its only tick: a score of .95 would stand at 1.
    """
    import altair as alt

    values = list(values)
    low, high = min(values), max(values)
    if low < high:
        return alt.Scale(zero=False, nice=True)
    width = max(0.05, 0.05 * abs(low))
    return alt.Scale(domain=[low - width, high + width], nice=True)
