"""A number over seeds, and a count over tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Self

from peftlab.records.rows import finite_values, mean, sample_sd


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, sample standard deviation (None below two), how many."""

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self:
        measured = finite_values(values)
        return cls(mean(measured), sample_sd(measured), len(measured))


@dataclasses.dataclass(frozen=True)
class Span:
    """The smallest and the largest of a count; they differ only where tasks or seeds do."""

    low: int | None
    high: int | None

    @classmethod
    def of(cls, values: Iterable[int | None]) -> Self:
        measured = [value for value in values if value is not None]
        return cls(min(measured, default=None), max(measured, default=None))
