"""What a comparison is asked: how wide a tie is, what decides between equals, what may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Literal, get_args

from pydantic import ByteSize, TypeAdapter

from peftlab.errors import RequestError, expect, unknown
from peftlab.records.rows import MARGIN

Prefer = Literal["score", "memory", "speed", "size"]


@dataclass(frozen=True)
class Question:
    """The settings of a comparison's verdicts and of its recommendation.

    Attributes:
        margin: differences within ± margin count as a tie.
        prefer: the criterion that decides between rows none of which is shown to be worse than the
            best: score (the mean of scaled scores), memory, speed or size. Speed is the time of
            rounds if all rows took turns in the same rounds, else the time of cells.
        memory_mib: limit of a run's peak memory; None for no limit. A row that was not measured
            does not meet it.
        minutes: limit of a cell's mean duration, likewise.

    Raises:
        RequestError: if the margin is no finite number of at least 0, the preference is unknown, or
            a limit is no number above 0.
    """

    margin: float = MARGIN
    prefer: str = "size"
    memory_mib: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        expect("margin", self.margin, (int, float), "a number")
        if not 0 <= self.margin < float("inf"):
            raise RequestError(
                f"margin must be at least 0 and finite, got {self.margin}; 0.01 is one point"
            )
        if self.prefer not in get_args(Prefer):
            raise unknown("preference", self.prefer, get_args(Prefer))
        for name in ("memory_mib", "minutes"):
            limit = getattr(self, name)
            expect(name, limit, (int, float, NoneType), "a number")
            if limit is not None and not limit > 0:
                raise RequestError(
                    f"{name} must be above 0, got {limit}; leave it out for no limit"
                )


DEFAULT_QUESTION = Question()


def mebibytes(text: str | None) -> float | None:
    """An amount of memory such as 2GiB or 512MB in MiB; None for None.

    Raises:
        RequestError: if the text is no amount of memory.

    >>> mebibytes("2GiB"), mebibytes("512 MiB")
    (2048.0, 512.0)
    """
    if text is None:
        return None
    try:
        if not any(map(str.isalpha, text)):  # pydantic takes it for bytes, which nobody means
            raise ValueError
        return TypeAdapter(ByteSize).validate_python(text) / 2**20
    except ValueError:  # pydantic's ValidationError is one
        raise RequestError(
            f"memory must be a number with a unit, such as 2GiB or 800MiB, got {text!r}"
        ) from None
