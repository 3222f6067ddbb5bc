"""Figures of one number a method: speed, and peak memory by part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peftlab.report.scores import Cell, Column
from peftlab.report.style import Figure, Style, data, legend, listed, spec
from peftlab.report.text import number, slug

if TYPE_CHECKING:
    import altair as alt

REST = "rest of the peak"
# dark to light, so that the parts differ in print and without colour vision
PARTS = {
    "weights": "#3b528b",
    "adapters": "#2c9fb0",
    "gradients": "#35b779",
    "optimizer": "#9fda3a",
    "activations": "#fde725",
    REST: "#b4b4b4",
}
OTHER = "#7f7f7f"
BAR = 24  # pixels from one bar to the next


def speed_figure(column: Column, cells: Mapping[str, Cell], style: Style) -> Figure | None:
    """Examples per second, a bar a method; a thin line spans one sd over seeds to either side."""
    import altair as alt

    rows: list[tuple[object, ...]] = []
    for label, cell in cells.items():
        mean, sd = cell.examples_per_s.mean, cell.examples_per_s.sd
        if mean is not None:
            low, high = (mean - sd, mean + sd) if sd is not None else (mean, mean)
            rows.append((label, mean, low, high, number(mean)))
    if not rows:
        return None
    labels = [str(row[0]) for row in rows]
    base = alt.Chart(data(("method", "x", "low", "high", "text"), rows)).encode(y=_methods(labels))
    colour = alt.Color("method:N", scale=style.colours(labels), legend=None)
    bars = base.mark_bar(aria=False).encode(
        x=alt.X("x:Q", title="training examples per second"), color=colour
    )
    spans = base.mark_rule(aria=False, color="#888").encode(x="low:Q", x2="high:Q")
    texts = base.mark_text(aria=False, align="left", dx=5, fontSize=11).encode(
        x="high:Q", text="text:N"
    )
    spread_known = any(cell.examples_per_s.sd is not None for cell in cells.values())
    title = f"{column.label}: training speed"
    words = f"Examples per second: {listed(f'{row[0]} {row[4]}' for row in rows)}."
    return Figure(
        kind="speed",
        name=f"speed-{slug(column.label)}",
        title=title,
        caption="Mean over seeds; thin line: ± one sd." if spread_known else "One seed.",
        alt=words,
        spec=spec(alt.layer(bars, spans, texts), title, words, BAR * len(labels)),
    )


def peak_figure(column: Column, cells: Mapping[str, Cell]) -> Figure | None:
    """Peak memory, a bar a method, stacked by what it went to."""
    import altair as alt

    stacks = {label: stack for label, cell in cells.items() if (stack := _stack(cell))}
    if not stacks:
        return None
    many = any(cell.peak_mib.n > 1 for cell in cells.values())
    peaks = {label: cells[label].peak_mib.mean or 0.0 for label in stacks}
    ends = [(label, sum(stacks[label].values()), number(peak)) for label, peak in peaks.items()]
    words = f"Peak memory in MiB: {listed(f'{label} {text}' for label, _, text in ends)}."
    title = f"{column.label}: peak memory"
    texts = (
        alt.Chart(data(("method", "x", "text"), ends))
        .mark_text(aria=False, align="left", dx=5, fontSize=11)
        .encode(y=_methods(stacks), x="x:Q", text="text:N")
    )
    return Figure(
        kind="peak",
        name=f"peak-memory-{slug(column.label)}",
        title=title,
        caption="Mean over seeds." if many else "One seed.",
        alt=words,
        spec=spec(alt.layer(_stacked(stacks), texts), title, words, BAR * len(stacks)),
    )


def _stacked(stacks: Mapping[str, Mapping[str, float]]) -> alt.Chart:
    import altair as alt

    found = dict.fromkeys(part for stack in stacks.values() for part in stack)
    parts = [part for part in PARTS if part in found]
    parts += [part for part in found if part not in PARTS]
    colours = alt.Scale(domain=parts, range=[PARTS.get(part, OTHER) for part in parts])
    rows = [
        (label, part, parts.index(part), f"{mib:.6g}")
        for label, stack in stacks.items()
        for part, mib in stack.items()
    ]
    drawn: alt.Chart = (
        alt.Chart(data(("method", "part", "order", "x"), rows))
        .mark_bar(aria=False)
        .encode(
            y=_methods(stacks),
            x=alt.X("x:Q", stack="zero", title="peak memory (MiB)"),
            color=alt.Color("part:N", scale=colours, legend=legend(lines=False)),
            order="order:Q",
            tooltip=["method:N", "part:N", alt.Tooltip("x:Q", title="MiB", format=",.1f")],
        )
    )
    return drawn


def _stack(cell: Cell) -> dict[str, float]:
    """MiB of each part that was measured, and what of the peak is left; empty without a peak."""
    peak = cell.peak_mib.mean
    if peak is None:
        return {}
    stack = {part: mib for part, mib in cell.by_part_mib.items() if mib is not None}
    # the parts may have peaked at different moments: then they exceed the peak and nothing is left
    rest = peak - sum(stack.values())
    return {**stack, REST: rest} if rest > 0 else stack


def _methods(labels: Iterable[str]) -> alt.Y:
    import altair as alt

    axis = alt.Axis(labelLimit=130, ticks=False, domain=False)
    return alt.Y("method:N", sort=list(labels), title=None, axis=axis)
