"""Figures of one number a method: speed, and peak memory by part.

A method that was measured under several sets of conditions has a bar for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.naming import listed
from peftlab.report.columns import Column
from peftlab.report.costs import CellCost
from peftlab.report.style import (
    GREY,
    Figure,
    Style,
    focus_opacity,
    legend,
    make_figure,
    method_chart,
    spec,
)
from peftlab.report.text import number

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
    "rest": "#7f7f7f",
    REST: "#b4b4b4",
}
OTHER = "#7f7f7f"
BAR = {"step": 24}  # pixels from one bar to the next

Bars = Sequence[tuple[str, str, CellCost]]  # the method, the bar's own name, the cost that it shows


def speed_figure(
    column: Column, bars: Bars, style: Style, replicate: str = "seed"
) -> Figure | None:
    """Examples per second, a bar a method; a thin line spans one sd to either side.

    A mean is over replicates, named `replicate`: seeds, or rounds.
    """
    import altair as alt

    rows: list[tuple[object, ...]] = []
    for label, name, cost in bars:
        mean, sd = cost.examples_per_s.mean, cost.examples_per_s.sd
        if mean is not None:
            low, high = (mean - sd, mean + sd) if sd is not None else (mean, mean)
            rows.append((name, mean, low, high, number(mean), label))
    if not rows:
        return None
    names = [str(row[0]) for row in rows]
    labels = list(dict.fromkeys(str(row[5]) for row in rows))
    columns = ("bar", "x", "low", "high", "text", "method")
    base = method_chart(columns, rows).encode(y=_bar_axis(names), opacity=focus_opacity())
    colour = alt.Color("method:N", scale=style.colours(labels), legend=None)
    bar_marks = base.mark_bar(aria=False).encode(
        x=alt.X("x:Q", title="training examples per second"), color=colour
    )
    spans = base.mark_rule(aria=False, color=GREY).encode(x="low:Q", x2="high:Q")
    texts = base.mark_text(aria=False, align="left", dx=5, fontSize=11).encode(
        x="high:Q", text="text:N"
    )
    has_sd = any(cost.examples_per_s.sd is not None for _, _, cost in bars)
    description = f"Examples per second: {listed(f'{row[0]} {row[4]}' for row in rows)}."
    return make_figure(
        "speed",
        column,
        "training speed",
        description,
        caption=f"Mean over {replicate}s; thin line: ± one sd." if has_sd else f"One {replicate}.",
        draw=lambda title: spec(alt.layer(bar_marks, spans, texts), title, description, BAR),
    )


def peak_figure(column: Column, bars: Bars, replicate: str = "seed") -> Figure | None:
    """Peak memory, a bar a method, stacked by part; `replicate` as in `speed_figure`."""
    import altair as alt

    stacks = [
        (label, name, number(cost.peak_mib.mean), stack)
        for label, name, cost in bars
        if (stack := _stack(cost))
    ]
    if not stacks:
        return None
    is_mean = any(cost.peak_mib.n > 1 for _, _, cost in bars)
    description = f"Peak memory in MiB: {listed(f'{name} {peak}' for _, name, peak, _ in stacks)}."
    y = _bar_axis(name for _, name, *_ in stacks)
    ends = [(label, name, sum(stack.values()), peak) for label, name, peak, stack in stacks]
    texts = (
        method_chart(("method", "bar", "x", "text"), ends)
        .mark_text(aria=False, align="left", dx=5, fontSize=11)
        .encode(y=y, x="x:Q", text="text:N", opacity=focus_opacity())
    )
    parts = [(label, name, stack) for label, name, _, stack in stacks]
    return make_figure(
        "peak",
        column,
        "peak memory",
        description,
        caption=f"Mean over {replicate}s." if is_mean else f"One {replicate}.",
        draw=lambda title: spec(alt.layer(_stack_marks(parts, y), texts), title, description, BAR),
        stem="peak-memory",
    )


def _stack_marks(stacks: Sequence[tuple[str, str, Mapping[str, float]]], y: alt.Y) -> alt.Chart:
    """A bar of parts for each of `stacks`: a method, the bar's name and MiB by part."""
    import altair as alt

    measured = dict.fromkeys(part for *_, stack in stacks for part in stack)
    parts = [part for part in PARTS if part in measured]
    parts += [part for part in measured if part not in PARTS]
    colours = alt.Scale(domain=parts, range=[PARTS.get(part, OTHER) for part in parts])
    rows = [
        (label, name, part, parts.index(part), f"{mib:.6g}")
        for label, name, stack in stacks
        for part, mib in stack.items()
    ]
    chart: alt.Chart = (
        method_chart(("method", "bar", "part", "order", "x"), rows)
        .mark_bar(aria=False)
        .encode(
            y=y,
            x=alt.X("x:Q", stack="zero", title="peak memory (MiB)"),
            color=alt.Color("part:N", scale=colours, legend=legend(of_methods=False)),
            order="order:Q",
            opacity=focus_opacity(),
            tooltip=[
                alt.Tooltip("bar:N", title="method"),
                "part:N",
                alt.Tooltip("x:Q", title="MiB", format=",.1f"),
            ],
        )
    )
    return chart


def _stack(cost: CellCost) -> dict[str, float]:
    """MiB of each part that was measured, and the rest of the peak; empty without a peak."""
    peak = cost.peak_mib.mean
    if peak is None:
        return {}
    stack = {part: mib for part, mib in cost.by_part_mib.items() if mib is not None}
    # the parts may have peaked at different moments: then they exceed the peak and nothing is left
    rest = peak - sum(stack.values())
    return {**stack, REST: rest} if rest > 0 else stack


def _bar_axis(names: Iterable[str]) -> alt.Y:
    import altair as alt

    axis = alt.Axis(labelLimit=130, ticks=False, domain=False)
    return alt.Y("bar:N", sort=list(names), title=None, axis=axis)
