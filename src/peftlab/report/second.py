"""The figure of a second metric over training, beside the one that a task is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from peftlab.records.rows import LOWER_IS_BETTER
from peftlab.report.columns import Column
from peftlab.report.lines import Line
from peftlab.report.style import Figure

FIRST = ("f1", "accuracy", "spearman", "pearson")  # whichever of them the task is not judged by


def second_figure(
    column: Column, lines: Sequence[Line], draw: Callable[[Column], Figure | None]
) -> Figure | None:
    """What `draw` makes of the task judged by another metric; None if its curves have no other."""
    metrics = dict.fromkeys(m for line in lines for one in line.curves for m in one.score)
    other = [one for one in (*FIRST, *metrics) if one in metrics and one != column.metric]
    if not other:
        return None
    by_other = dataclasses.replace(
        column, metric=other[0], lower_is_better=other[0] in LOWER_IS_BETTER
    )
    figure = draw(by_other)
    return figure and dataclasses.replace(
        figure, kind="second", name=figure.name.replace(figure.kind, "second", 1)
    )
