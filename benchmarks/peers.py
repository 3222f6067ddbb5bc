"""The peer's settings: all, the fastest one, the fastest that scores as well as the defaults."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

Line = dict[str, Any]
Settings = dict[str, str]
NAMES = ("precision", "attention", "optimizer", "batches")
SHORT = {"adamw_torch": "plain AdamW", "adamw_torch_fused": "fused AdamW"}
SHORT |= {"group_by_length": "grouped", "bf16": "bf16-loaded"}

# what an installation does where nothing is asked
DEFAULTS: Settings = {
    "precision": "fp32",
    "attention": "sdpa",
    "optimizer": "adamw_torch_fused",
    "batches": "random",
}
ALL: list[Settings] = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(
        ("autocast", "bf16", "fp32"),
        ("eager", "sdpa"),
        ("adamw_torch_fused", "adamw_torch"),
        ("group_by_length",),
    )
]


class NothingRan(Exception):
    """No side of those that were to be compared came to its end."""


def settings_of(line: Line) -> Settings:
    """The settings that a peer's line was made with."""
    return {name: line["settings"][name] for name in NAMES}


def told(settings: Settings) -> str:
    """Settings in words.

    >>> told(DEFAULTS)
    'fp32, sdpa, fused AdamW, random'
    """
    return ", ".join(SHORT.get(settings[name], settings[name]) for name in NAMES)


def fastest(lines: Iterable[Line], n: int = 1) -> list[Settings]:
    """The `n` settings with the most examples a second, best first; medians where run twice."""
    return _ranked(lines, lambda line: -line["examples_per_s"])[:n]


def as_good(lines: Iterable[Line], within: float) -> list[Line]:
    """The peer's lines that score as well as its defaults, up to `within`, the fastest first.

    Its defaults are fp32 and random batches: batches by length cost a score too.
    """
    lines = [line for line in lines if line.get("score") is not None]
    full = [line["score"] for line in lines if DEFAULTS.items() <= line["settings"].items()]
    if not full:
        return []
    good = [line for line in lines if line["score"] >= full[0] - within]
    return sorted(good, key=lambda line: -line["examples_per_s"])


def _ranked(lines: Iterable[Line], key: Callable[[Line], float]) -> list[Settings]:
    values: dict[tuple[str, ...], list[float]] = {}
    for line in lines:
        if "failed" not in line:
            values.setdefault(tuple(settings_of(line).values()), []).append(key(line))
    ranked = sorted(values, key=lambda settings: statistics.median(values[settings]))
    if not ranked:
        raise NothingRan("every setting of the peer failed; its lines in the results say why")
    return [dict(zip(NAMES, settings, strict=True)) for settings in ranked]
