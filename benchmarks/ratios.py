"""Ratios of a section's lines: paired by round, so that what else the machine does cancels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peers import describe, settings_of
from plan import Floor

Line = dict[str, Any]
FINALISTS = ("best", "second")  # labels of the settings that run in every round
PROBE = "probe"  # the label of a first look at a precision's speed, on a smaller model
LEARNS = "learns"  # the label of the fastest settings that score as the defaults do


@dataclass(frozen=True)
class Ratio:
    """The median of several rounds' ratios, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Ratio | None:
        """The ratio of these values; None where there are none.

        >>> Ratio.of([2.0, 1.0, 4.0])
        Ratio(median=2.0, low=1.0, high=4.0)
        """
        values = list(values)
        return cls(statistics.median(values), min(values), max(values)) if values else None


def good(lines: Iterable[Line]) -> list[Line]:
    """The lines of processes that finished, without those that ran again after a disturbance."""
    return [line for line in lines if "failed" not in line and not line.get("disturbed")]


def labelled(lines: Iterable[Line], label: str) -> list[Line]:
    """The good lines of a label."""
    return [line for line in good(lines) if line["label"] == label]


def median(lines: Iterable[Line], field: str) -> float | None:
    """The median of a field; None where there is no line."""
    values = [line[field] for line in lines]
    return statistics.median(values) if values else None


def paired(lines: list[Line], label: str, base: str, field: str) -> Ratio | None:
    """A label's field over that of the label `base`, in each round that has both."""
    bases = {line["round"]: line[field] for line in labelled(lines, base)}
    paired_lines = [line for line in labelled(lines, label) if line["round"] in bases]
    return Ratio.of(line[field] / bases[line["round"]] for line in paired_lines)


def best_first(lines: Iterable[Line]) -> list[Line]:
    """The lines, the finalists labelled anew in the order of their median speeds over rounds.

    Their speeds differ by less than the noise of the screening that chose them.
    """
    lines = list(lines)
    speeds = {name: median(labelled(lines, name), "examples_per_s") or 0 for name in FINALISTS}
    ranked = sorted(FINALISTS, key=lambda name: -speeds[name])
    labels = dict(zip(ranked, FINALISTS, strict=True))
    return [line | {"label": labels.get(line["label"], line["label"])} for line in lines]


def groups_of_a_sample(line: Line) -> bool:
    """Whether the peer's batches by length were of pools that a sample of a task makes small.

    So they were until 2026-11-30, at the peer's expense (peer.py).
    """
    settings = line.get("settings", {})
    if line.get("side") != "peer" or line["label"] == PROBE or "failed" in line:
        return False
    is_sample = settings["examples"] > 0
    return is_sample and settings["batches"] == "group_by_length" and "pool" not in settings


def step_ms(line: Line) -> float:
    """The mean step of the timed epoch; unlike the median it counts every step."""
    return float(1000 * line["epoch_s"] * line["settings"]["epochs"] / line["n_steps"])


def least_of_peer(lines: list[Line], field: str, examples: int) -> tuple[float, str] | None:
    """The peer's least value of `field`, and the settings that have it.

    A value is the median where settings ran several times. Only processes with `examples` examples
    count: the peak grows with the longest batch.
    """
    values: dict[str, list[float]] = {}
    for line in good(lines):
        is_peer = line["side"] == "peer" and line["label"] != PROBE
        if is_peer and line["settings"]["examples"] == examples:
            values.setdefault(describe(settings_of(line)), []).append(line[field])
    return min(((statistics.median(v), settings) for settings, v in values.items()), default=None)


def verdict(ratio: float | None, floor: Floor | None) -> str:
    """Yes or NO: whether the floor is met; ? without a ratio, nothing without a floor."""
    if floor is None:
        return ""
    if ratio is None:
        return "?"
    return "yes" if floor.is_met(ratio) else "NO"
