"""The figure over training of a second metric, beside the one that a task is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from peftlab.records.rows import LOWER_IS_BETTER
from peftlab.report.columns import Column
from peftlab.report.lines import Line
from peftlab.report.style import Figure

PREFERRED = ("f1", "accuracy", "spearman", "pearson")  # the first that does not judge the task


def second_figure(
    column: Column, lines: Sequence[Line], draw: Callable[[Column], Figure | None]
) -> Figure | None:
    """The figure that `draw` makes of another metric; None if the task's curves have no other."""
    metrics = dict.fromkeys(m for line in lines for curves in line.curves for m in curves.score)
    others = [m for m in (*PREFERRED, *metrics) if m in metrics and m != column.metric]
    if not others:
        return None
    by_other = dataclasses.replace(
        column, metric=others[0], lower_is_better=others[0] in LOWER_IS_BETTER
    )
    figure = draw(by_other)
    return figure and dataclasses.replace(
        figure, kind="second", name=figure.name.replace(figure.kind, "second", 1)
    )
