"""Lines over x: in one plot, or in a panel for each method where one plot can't tell them apart."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftlab.report.curves import thin
from peftlab.report.style import (
    GREY,
    IS_SHOWN,
    Style,
    focus_opacity,
    inline_data,
    legend,
    method_chart,
    panel_header,
    score_scale,
    spec,
)
from peftlab.report.vega import SVG_WIDTH, Spec

if TYPE_CHECKING:
    import altair as alt

MANY = 6  # methods that one plot can tell apart
HEIGHT = 250  # pixels of one plot
COLUMNS = 4  # of panels in a file; the page has as many as fit
SEED = "seed"  # begins the names of the columns with the values of single seeds
PANEL = {"width": SVG_WIDTH // COLUMNS - 30, "height": 80}  # pixels
PANEL_POINTS = 80  # of a line: more than its width can show
APART = 13  # pixels between two names at the ends of lines
LONGEST = 14  # letters of a name at the end of a line, at most: longer ones would narrow the plot


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over x, each method in its own colour and dash.

    `columns` of `rows` are method, x, y and whatever else the marks show; the rows of a line stand
    together, x rising. `by` is the column that holds `labels`, in the table's order: a colour each.
    `detail` is a column that separates lines of one colour. `marks` have their y; the plot adds
    data, x and colour.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    labels: Sequence[str]
    marks: Sequence[alt.Chart]
    x: alt.X
    y_title: str
    from_zero: bool = False
    by: str = "method"
    detail: str | None = None

    @property
    def caption(self) -> str:
        """The end of the figure's caption, which explains the form of the plot."""
        return " Grey: the other methods." if self._many else ""

    @property
    def _many(self) -> bool:
        return len(self.labels) > MANY

    def spec(self, style: Style, title: str, description: str, limit: int) -> Spec:
        """The figure's spec; a line has at most `limit` points, one in grey a share of these."""
        if self._many:
            return spec(self._panels(style, limit), title, description, None)
        return spec(self._one_plot(style), title, description, HEIGHT)

    def _one_plot(self, style: Style) -> alt.LayerChart:
        """One plot, with the methods' names at the ends of their lines or in a legend."""
        import altair as alt

        names = self._names()
        key = None if names else legend(of_methods=True)
        colour = alt.Color(f"{self.by}:N", scale=style.colours(self.labels), legend=key)
        dash = alt.StrokeDash(f"{self.by}:N", scale=style.dashes(self.labels), legend=key)
        marks = [
            mark.encode(strokeDash=dash) if _kind(mark) == "line" else mark
            for mark in self._colour_marks(colour)
        ]
        plot = alt.LayerChart(layer=[*marks, *names], data=inline_data(self.columns, self.rows))
        return plot.transform_filter(IS_SHOWN)

    def _panels(self, style: Style, limit: int) -> alt.FacetChart:
        """A panel for each label, its line in colour over the others in grey."""
        import altair as alt

        colour = alt.Color(f"{self.by}:N", scale=style.colours(self.labels), legend=None)
        header = panel_header(PANEL["width"])
        # layers with other data are the same in every panel
        grey = self._grey(colour, max(10, limit // len(self.labels)))
        panels: alt.FacetChart = (
            alt.layer(*grey, *self._colour_marks(colour))
            .properties(**PANEL)
            .facet(
                facet=alt.Facet(f"{self.by}:N", sort=list(self.labels), header=header),
                columns=COLUMNS,
                data=inline_data(self.columns, self.rows),
            )
        )
        return panels.properties(spacing={"row": 8, "column": 16}).transform_filter(IS_SHOWN)

    def _grey(self, colour: alt.Color, limit: int) -> list[alt.Chart]:
        """All lines in grey at a few points each, and again the picked one, in its colour."""
        import altair as alt

        fields = list(dict.fromkeys(("x", "y", "method", self.by)))
        # one path for all lines, broken between them, is short; a pointer takes it for its first
        # row, whose method therefore is empty
        rows: list[list[object]] = [[self.rows[0][self._index("x")], "NaN", "", ""][: len(fields)]]
        for line in self._lines():
            rows += thin(self._select(line, fields), limit)
            x, _, *names = rows[-1]
            rows.append([x, "NaN", *names])
        base = method_chart(fields, rows).encode(x=self.x, y=self._y("y:Q"))
        # in the order of the rows; by default x would mix the lines
        path = base.mark_line(
            aria=False, strokeWidth=1, order=False, invalid="break-paths-filter-domains"
        )
        picked = path.transform_filter("picked && picked === datum.method")
        return [
            path.encode(color=alt.value(GREY), opacity=alt.value(0.35)),
            picked.encode(color=colour),
        ]

    def _names(self) -> list[alt.Chart]:
        """The methods' names at the ends of their lines; none where some would collide."""
        fields = list(dict.fromkeys(("method", self.by, "x", "y")))
        lasts = {line[-1][self._index(self.by)]: line[-1] for line in self._lines()}
        heights = [*self._heights(), *([0.0] if self.from_zero else [])]
        min_gap = APART / HEIGHT * (max(heights) - min(heights))
        ends = sorted(float(str(row[self._index("y")])) for row in lasts.values())
        collide = any(high - low <= min_gap for low, high in itertools.pairwise(ends))
        if collide or any(len(label) > LONGEST for label in self.labels):
            return []
        names = method_chart(fields, self._select(list(lasts.values()), fields))
        texts = names.mark_text(aria=False, align="left", dx=7, fontSize=11)
        text = f"{self.by}:N"
        return [texts.encode(x=self.x, y=self._y("y:Q"), text=text, opacity=focus_opacity())]

    def _colour_marks(self, colour: alt.Color) -> list[alt.Chart]:
        """The marks on the axes, in colour; texts stay black, which the page turns into its ink."""
        on_axes = [
            mark.encode(x=self.x, y=self._y(mark.encoding.y.shorthand)) for mark in self.marks
        ]
        return [mark if _kind(mark) == "text" else mark.encode(color=colour) for mark in on_axes]

    def _y(self, field: str) -> alt.Y:
        import altair as alt

        scale = alt.Scale(zero=True) if self.from_zero else score_scale(self._heights())
        return alt.Y(field, title=self.y_title, scale=scale)

    def _heights(self) -> list[float]:
        """Every value on the y axis."""
        ys = ("y", "low", "high")
        names = [name for name in self.columns if name in ys or name.startswith(SEED)]
        heights = [float(str(y)) for row in self._select(self.rows, names) for y in row]
        return [height for height in heights if not math.isnan(height)]

    def _lines(self) -> list[list[Sequence[object]]]:
        """The rows of each line."""
        keys = [name for name in (self.by, self.detail) if name]
        groups = itertools.groupby(self.rows, key=lambda row: self._select([row], keys))
        return [list(rows) for _, rows in groups]

    def _select(
        self, rows: Sequence[Sequence[object]], fields: Sequence[str]
    ) -> list[list[object]]:
        return [[row[self._index(field)] for field in fields] for row in rows]

    def _index(self, field: str) -> int:
        return list(self.columns).index(field)


def _kind(mark: alt.Chart) -> str:
    return str(mark.to_dict(validate=False)["mark"]["type"])
