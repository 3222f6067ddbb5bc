"""The figure of score by rank, of methods that train all ranks at once (DyLoRA)."""

from __future__ import annotations

from collections.abc import Mapping

from peftlab.naming import listed
from peftlab.report.columns import Column
from peftlab.report.scores import TableCell
from peftlab.report.style import (
    Figure,
    Style,
    focus_opacity,
    legend,
    make_figure,
    method_chart,
    score_format,
    score_scale,
    spec,
)
from peftlab.report.text import metric

HEIGHT = 200  # pixels


def rank_figure(column: Column, cells: Mapping[str, TableCell], style: Style) -> Figure | None:
    """Score over the number of ranks in use; a thin line spans one sd over seeds to either side."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    for label, cell in cells.items():
        for rank, score in cell.by_rank.items():
            if score.mean is not None:
                sd = score.sd or 0.0
                rows.append((label, rank, score.mean, score.mean - sd, score.mean + sd))
    if not rows:
        return None
    labels = list(dict.fromkeys(str(row[0]) for row in rows))
    ticks = sorted({int(str(row[1])) for row in rows})
    base = method_chart(("method", "x", "y", "low", "high"), rows).encode(
        x=alt.X("x:Q", title="ranks in use", axis=alt.Axis(values=ticks, format="d")),
        color=alt.Color("method:N", scale=style.colours(labels), legend=legend(of_methods=True)),
    )
    scale = score_scale(float(str(bound)) for row in rows for bound in row[3:])
    y = alt.Y("y:Q", title=f"{metric(column)} on dev", scale=scale)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("x:Q", title="ranks"),
        alt.Tooltip("y:Q", title=f"{column.metric}, mean over seeds", format=score_format(column)),
    ]
    lines = base.mark_line(aria=False, strokeWidth=2.2).encode(y=y, opacity=focus_opacity())
    spans = base.mark_rule(aria=False).encode(y="low:Q", y2="high:Q", opacity=focus_opacity(0.5))
    dots = base.mark_point(aria=False, filled=True, size=24).encode(
        y=y, tooltip=tooltip, opacity=focus_opacity()
    )
    has_sd = any(score.sd is not None for cell in cells.values() for score in cell.by_rank.values())
    description = f"{column.metric} on dev over the number of ranks in use for {listed(labels)}."
    return make_figure(
        "rank",
        column,
        "score by rank",
        description,
        caption="Mean over seeds; thin line: ± one sd." if has_sd else "One seed.",
        draw=lambda title: spec(alt.layer(spans, lines, dots), title, description, HEIGHT),
    )
