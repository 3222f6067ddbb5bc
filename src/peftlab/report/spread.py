"""A number over seeds, and a count over tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

from peftlab.records.rows import known, mean, sample_sd


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, sample standard deviation (None below two), how many."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self:
        found = known(values)
        return cls(mean(found), sample_sd(found), len(found))


@dataclasses.dataclass(frozen=True)
class Span:
    """Smallest and largest of a number; they differ only where tasks or seeds differ in it."""

    low: int | None
    high: int | None

    @classmethod
    def of(cls, values: Iterable[int | None]) -> Self:
        found = [value for value in values if value is not None]
        return cls(min(found, default=None), max(found, default=None))
