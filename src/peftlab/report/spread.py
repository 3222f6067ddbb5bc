"""A number over seeds, and a count over tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from peftlab.records.rows import known, mean, sample_sd


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, sample standard deviation (None below two), how many."""

    mean: float | None
    sd: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread:
        found = known(values)
        return Spread(mean(found), sample_sd(found), len(found))


@dataclasses.dataclass(frozen=True)
class Span:
    """Smallest and largest of a number; they differ only where tasks or seeds differ in it."""

    low: int | None
    high: int | None

    @staticmethod
    def of(values: Iterable[int | None]) -> Span:
        found = [value for value in values if value is not None]
        return Span(min(found, default=None), max(found, default=None))
