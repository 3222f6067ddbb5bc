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
    SHOWN,
    Style,
    charted,
    data,
    faded,
    heading,
    legend,
    score_scale,
    spec,
)
from peftlab.report.vega import SVG_WIDTH, Spec

if TYPE_CHECKING:
    import altair as alt

MANY = 6  # methods that one plot can tell apart
HEIGHT = 250  # pixels of one plot
COLUMNS = 4  # of panels in a file; the page has as many as fit
SEED = "seed"  # begins the names of the columns with what single seeds have
PANEL = {"width": SVG_WIDTH // COLUMNS - 30, "height": 80}  # pixels
PANEL_POINTS = 80  # of a line: more than its width can show
APART = 13  # pixels between two names at the ends of lines
LONGEST = 14  # letters of a name at the end of a line, which takes the plot's width


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over x, each method's in its own colour and dash.

    `columns` of `rows` are method, x, y and what the marks show beside; a line's rows stand
    together, x rising. `by` is the column of `labels`, in the table's order: a colour each.
    `detail` tells apart lines of one colour. `marks` say their y; data, x and colour come here.
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
    def told(self) -> str:
        """What a caption says of the form."""
        return " Grey: the other methods." if self._many else ""

    @property
    def _many(self) -> bool:
        return len(self.labels) > MANY

    def spec(self, style: Style, title: str, description: str, limit: int) -> Spec:
        """`limit` is the number of points of a line; those in grey have a share of it."""
        if self._many:
            return spec(self._panels(style, limit), title, description, None)
        return spec(self._whole(style), title, description, HEIGHT)

    def _whole(self, style: Style) -> alt.LayerChart:
        """One plot, with the methods' names at the ends of their lines or in a legend."""
        import altair as alt

        names = self._names()
        key = None if names else legend(of_methods=True)
        colour = alt.Color(f"{self.by}:N", scale=style.colours(self.labels), legend=key)
        dash = alt.StrokeDash(f"{self.by}:N", scale=style.dashes(self.labels), legend=key)
        marks = [
            mark.encode(strokeDash=dash) if _kind(mark) == "line" else mark
            for mark in self._on(colour)
        ]
        whole = alt.LayerChart(layer=[*marks, *names], data=data(self.columns, self.rows))
        return whole.transform_filter(SHOWN)

    def _panels(self, style: Style, limit: int) -> alt.FacetChart:
        """A panel for each label, its line in colour over the others in grey."""
        import altair as alt

        colour = alt.Color(f"{self.by}:N", scale=style.colours(self.labels), legend=None)
        # layers with other data are the same in every panel
        grey = self._grey(colour, max(10, limit // len(self.labels)))
        panels: alt.FacetChart = (
            alt.layer(*grey, *self._on(colour))
            .properties(**PANEL)
            .facet(
                facet=alt.Facet(f"{self.by}:N", sort=list(self.labels), header=heading()),
                columns=COLUMNS,
                data=data(self.columns, self.rows),
            )
        )
        return panels.properties(spacing={"row": 8, "column": 16}).transform_filter(SHOWN)

    def _grey(self, colour: alt.Color, limit: int) -> list[alt.Chart]:
        """All lines at a few points each; the one that is looked at again, in its colour."""
        import altair as alt

        fields = list(dict.fromkeys(("x", "y", "method", self.by)))
        # one path for all lines, broken between them, is short; a pointer takes it for its first
        # row, which therefore is of no method
        rows: list[list[object]] = [[self.rows[0][self._at("x")], "NaN", "", ""][: len(fields)]]
        for line in self._lines():
            rows += thin(self._of(line, fields), limit)
            x, _, *names = rows[-1]
            rows.append([x, "NaN", *names])
        base = charted(fields, rows).encode(x=self.x, y=self._y("y:Q"))
        # in the order of the rows; by default x would mix the lines
        drawn = base.mark_line(
            aria=False, strokeWidth=1, order=False, invalid="break-paths-filter-domains"
        )
        looked_at = drawn.transform_filter("picked && picked === datum.method")
        return [
            drawn.encode(color=alt.value(GREY), opacity=alt.value(0.35)),
            looked_at.encode(color=colour),
        ]

    def _names(self) -> list[alt.Chart]:
        """The methods' names at the ends of their lines; none where some would collide."""
        fields = list(dict.fromkeys(("method", self.by, "x", "y")))
        lasts = {line[-1][self._at(self.by)]: line[-1] for line in self._lines()}
        heights = [*self._heights(), *([0.0] if self.from_zero else [])]
        apart = APART / HEIGHT * (max(heights) - min(heights))
        ends = sorted(float(str(row[self._at("y")])) for row in lasts.values())
        close = any(high - low <= apart for low, high in itertools.pairwise(ends))
        if close or any(len(label) > LONGEST for label in self.labels):
            return []
        names = charted(fields, self._of(list(lasts.values()), fields))
        marked = names.mark_text(aria=False, align="left", dx=7, fontSize=11)
        return [marked.encode(x=self.x, y=self._y("y:Q"), text=f"{self.by}:N", opacity=faded())]

    def _on(self, colour: alt.Color) -> list[alt.Chart]:
        """The marks on the axes; words stay black, which the page turns into its ink."""
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
        fields = [self._at(name) for name in self.columns if name in ys or name.startswith(SEED)]
        found = [float(str(row[at])) for row in self.rows for at in fields]
        return [height for height in found if not math.isnan(height)]

    @property
    def _keys(self) -> list[str]:
        """The columns that make a line."""
        return [name for name in (self.by, self.detail) if name]

    def _lines(self) -> list[list[Sequence[object]]]:
        groups = itertools.groupby(self.rows, key=lambda row: self._of([row], self._keys))
        return [list(rows) for _, rows in groups]

    def _of(self, rows: Sequence[Sequence[object]], fields: Sequence[str]) -> list[list[object]]:
        return [[row[self._at(field)] for field in fields] for row in rows]

    def _at(self, field: str) -> int:
        return list(self.columns).index(field)


def _kind(mark: alt.Chart) -> str:
    return str(mark.to_dict(validate=False)["mark"]["type"])
