"""Statistics over seeds. What cannot be known is None: absence is not certainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

ERRORS = frozenset({"rmse", "mae"})  # metrics of which less is better


def known(values: Iterable[float | None]) -> list[float]:
    """The values that were measured: neither None nor NaN nor infinite.

    >>> known([1.0, None, float("nan")])
    [1.0]
    """
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of no values.

    >>> mean([0.5, 0.75]), mean([])
    (0.625, None)
    """
    return statistics.fmean(values) if values else None


def sample_sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1 below); None for fewer than two values.

    >>> sample_sd([1.0, 3.0, 5.0]), sample_sd([1.0])
    (2.0, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def merit(metric: str, score: float) -> float:
    """The score as a number of which more is better, whatever the metric.

    >>> merit("accuracy", 0.75), merit("rmse", 0.75)
    (0.75, -0.75)
    """
    return -score if metric in ERRORS else score
