"""Ratios of the lines of a section: paired by round, so that the machine's moods cancel."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peers import settings_of, told
from plan import Floor

Line = dict[str, Any]
FINALISTS = ("best", "second")  # labels of the settings that run in every round
PROBE = "probe"  # the label of what tells a precision's speed, by another model
LEARNS = "learns"  # the label of the fastest that score as the defaults do


@dataclass(frozen=True)
class Ratio:
    """The median of some rounds' ratios, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Ratio | None:
        """None where there are none.

        >>> Ratio.of([2.0, 1.0, 4.0])
        Ratio(median=2.0, low=1.0, high=4.0)
        """
        values = list(values)
        return cls(statistics.median(values), min(values), max(values)) if values else None


def good(lines: Iterable[Line]) -> list[Line]:
    """The lines that came to their end, without those that were run again for being disturbed."""
    return [line for line in lines if "failed" not in line and not line.get("disturbed")]


def labelled(lines: Iterable[Line], label: str) -> list[Line]:
    """The good lines of a label."""
    return [line for line in good(lines) if line["label"] == label]


def median(lines: Iterable[Line], field: str) -> float | None:
    """The median of a field; None where there is no line."""
    values = [line[field] for line in lines]
    return statistics.median(values) if values else None


def paired(lines: list[Line], above: str, below: str, field: str) -> Ratio | None:
    """A label's field over another label's, of each round that has both."""
    under = {line["round"]: line[field] for line in labelled(lines, below)}
    over = labelled(lines, above)
    return Ratio.of(line[field] / under[line["round"]] for line in over if line["round"] in under)


def best_first(lines: Iterable[Line]) -> list[Line]:
    """The lines with the finalists' labels in the order of their median speeds.

    The peer's settings differ by less than the noise of the screening that chose the finalists.
    """
    lines = list(lines)
    speeds = {name: median(labelled(lines, name), "examples_per_s") or 0 for name in FINALISTS}
    ranked = sorted(FINALISTS, key=lambda name: -speeds[name])
    names = dict(zip(ranked, FINALISTS, strict=True))
    return [line | {"label": names.get(line["label"], line["label"])} for line in lines]


def step_ms(line: Line) -> float:
    """The timed epoch's mean step, which unlike the median counts every one."""
    return float(1000 * line["epoch_s"] * line["settings"]["epochs"] / line["n_steps"])


def least_of_peer(lines: list[Line], field: str, examples: int) -> tuple[float, str] | None:
    """The least that the peer has of `field`, and at which settings.

    The median where settings were run several times, and only of processes with so many
    `examples`: the peak grows with the longest batch.
    """
    values: dict[str, list[float]] = {}
    for line in good(lines):
        of_it = line["side"] == "peer" and line["label"] != PROBE
        if of_it and line["settings"]["examples"] == examples:
            values.setdefault(told(settings_of(line)), []).append(line[field])
    return min(((statistics.median(some), name) for name, some in values.items()), default=None)


def verdict(ratio: float | None, floor: Floor | None) -> str:
    """Whether the floor is met; a question mark without a ratio, nothing without a floor."""
    if floor is None:
        return ""
    if ratio is None:
        return "?"
    return "yes" if floor.met(ratio) else "NO"
