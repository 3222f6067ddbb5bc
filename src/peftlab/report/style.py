"""What all figures share: a figure's parts, and one colour and dash for each method.

Altair is imported on first use: a command line's help must not wait for it.
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
# white or a dark page. Beyond seven methods the dash tells apart what the colour doesn't.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])

# What the page chooses for all figures at once: methods that are hidden, and one that is looked at.
PARAMS: tuple[Spec, ...] = (
    {"name": "legend_columns", "value": 5},
    {"name": "off", "value": []},
    {"name": "picked", "value": ""},
)
GREY = "#888"  # of what is no method's: readable on white and on dark
SHOWN = "indexof(off, datum.method) < 0"
PICKED = "picked === '' || picked === datum.method"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A spec and its words.

    Attributes:
        kind: its place on the page.
        name: the stem of its SVG file.
        task: the label of the column that it is of.
    """

    kind: str
    name: str
    task: str
    title: str
    caption: str
    alt: str
    spec: Spec


def figure_of(
    kind: str,
    column: Column,
    what: str,
    words: str,
    *,
    caption: str,
    draw: Callable[[str], Spec],
    stem: str | None = None,
) -> Figure:
    """The figure of `what` on the column's task.

    Args:
        kind: its place on the page, with which its file's name begins, if that is no other `stem`.
        column: of the table.
        what: it shows, as a title says it.
        words: what is to be seen, for who can't.
        caption: below it.
        draw: makes the spec, given the title.
        stem: what its file's name begins with instead.
    """
    title = f"{column.label}: {what}"
    name = f"{stem or kind}-{slug(column.label)[:60]}"
    return Figure(kind, name, column.label, title, caption, words, draw(title))


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
    """Below the plot: strokes for methods, faint for hidden ones, or squares for what is no method.

    The page sets how many columns fit.
    """
    import altair as alt

    shown = alt.ExprRef("indexof(off, datum.value) < 0 ? 1 : 0.25") if of_methods else 1
    return alt.Legend(
        title=None,
        orient="bottom",
        columns=alt.ExprRef("legend_columns"),
        labelOpacity=shown,
        symbolOpacity=shown,
        symbolType="stroke" if of_methods else "square",
        symbolStrokeWidth=2.5 if of_methods else 0,
    )


def heading() -> alt.Header:
    """What stands above a panel."""
    import altair as alt

    return alt.Header(title=None, labelAnchor="start", labelFontSize=11, labelPadding=3)


def charted(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> alt.Chart:
    """The rows of methods that are not hidden; one of the columns is `method`."""
    import altair as alt

    shown: alt.Chart = alt.Chart(data(columns, rows)).transform_filter(SHOWN)
    return shown


def faded(opacity: float = 1, test: str = PICKED) -> alt.Opacity:
    """An opacity that falls to an eighth where another method is looked at."""
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

    `{"step": 24}` is 24 pixels a bar, however many are shown. A chart of panels, whose size the
    panels say, has None.
    """
    # as plain keys, for altair would copy and validate the whole chart anew for each of them; a
    # test validates every figure
    drawn: Spec = chart.to_dict(validate=False)
    del drawn["config"], drawn["$schema"]  # one configuration for all is given when they are drawn
    drawn |= {"params": list(PARAMS), "title": title, "description": description}
    if height is not None:
        autosize = {"type": "fit-x", "contains": "padding"}
        drawn |= {"width": "container", "height": height, "autosize": autosize}
    return drawn


def data(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> alt.InlineData:
    """The rows as CSV: a third of the bytes of a list of objects."""
    import altair as alt

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return alt.InlineData(values=text.getvalue(), format=alt.CsvDataFormat(type="csv"))


def score_scale(values: Iterable[float]) -> alt.Scale:
    """An axis that need not begin at 0, with a width around a constant too.

    Without one Vega rounds the label of its only tick: a score of .95 would stand at 1.
    """
    import altair as alt

    found = list(values)
    low, high = min(found), max(found)
    if low < high:
        return alt.Scale(zero=False, nice=True)
    width = max(0.05, 0.05 * abs(low))
    return alt.Scale(domain=[low - width, high + width], nice=True)
