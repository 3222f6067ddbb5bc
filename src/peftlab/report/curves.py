"""The curves of one cell, read from curves/CELL.jsonl and made short enough to draw."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from peftlab.records.store import rows_of

Points = list[tuple[float, float]]  # (x, y), x rising
Means = list[tuple[float, ...]]  # (x, mean, then the y of each of several curves), x rising
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Curves:
    """`loss` over steps, `memory` (MiB) over seconds, `score` (metric -> points) over epochs."""

    loss: Points
    memory: Points
    score: dict[str, Points]


def read(path: Path) -> Curves:
    """The curves of one cell; empty where the file is absent or holds something else."""
    rows = rows_of(path)
    steps = [row for row in rows if "step" in row]
    score: dict[str, Points] = {}
    for row in rows:
        for metric, value in row.get("score", {}).items():
            score.setdefault(metric, []).append((row["epoch"], value))
    return Curves(
        loss=_measured([(row["step"], row.get("loss")) for row in steps]),
        memory=_measured([(row.get("time_s"), row.get("memory_mib")) for row in steps]),
        score={metric: _measured(points) for metric, points in score.items()},
    )


def _measured(points: Sequence[tuple[Any, Any]]) -> Points:
    return [(x, y) for x, y in points if x is not None and y is not None]


def thin(points: list[T], limit: int) -> list[T]:
    """At most `limit` of the points: every k-th, and the last.

    >>> thin([(x, 0.0) for x in range(10)], 4)
    [(0, 0.0), (3, 0.0), (6, 0.0), (9, 0.0)]
    """
    if len(points) <= limit:
        return points
    stride = math.ceil((len(points) - 1) / (limit - 1))
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def smooth(points: Points, window: int) -> Points:
    """The running mean of y over `window` (odd) points around each, fewer at the ends.

    >>> smooth([(0, 0.0), (1, 3.0), (2, 6.0)], 3)
    [(0, 1.5), (1, 3.0), (2, 4.5)]
    """
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    half = window // 2
    smoothed = []
    for index, (x, _) in enumerate(points):
        low, high = max(0, index - half), min(len(points), index + half + 1)
        smoothed.append((x, (sums[high] - sums[low]) / (high - low)))
    return smoothed


def average(curves: Sequence[Points]) -> Means:
    """The mean of y over several curves, then the y of each, at every x that all of them have.

    >>> average([[(1, 2.0), (2, 4.0)], [(1, 4.0)]])
    [(1, 3.0, 2.0, 4.0)]
    >>> average([[(1, 2.0)]])
    [(1, 2.0)]
    """
    by_x = [dict(curve) for curve in curves if curve]
    if len(by_x) < 2:
        return [point for curve in by_x for point in curve.items()]
    shared = sorted(x for x in by_x[0] if all(x in curve for curve in by_x))
    heights = {x: [curve[x] for curve in by_x] for x in shared}
    return [(x, fmean(ys), *ys) for x, ys in heights.items()]
