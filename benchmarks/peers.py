"""The peer's settings: all, the fastest ones, those that learn as much as the defaults do."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from scipy.stats import ttest_1samp

Line = dict[str, Any]
Settings = dict[str, str]
Learning = tuple[str, str]  # precision, batches
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
        ("group_by_length", "random"),
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
    return ", ".join(in_words(settings[name]) for name in NAMES)


def in_words(value: str) -> str:
    """A setting's value as tables say it."""
    return SHORT.get(value, value)


def fastest(lines: Iterable[Line], n: int = 1) -> list[Settings]:
    """The `n` settings with the most examples a second, best first; medians where run twice."""
    return _ranked(lines, lambda line: -line["examples_per_s"])[:n]


def scored(lines: Iterable[Line]) -> dict[Learning, dict[str, dict[int, float]]]:
    """The peer's scores by what they hang on, then by task and seed."""
    found: dict[Learning, dict[str, dict[int, float]]] = {}
    for line in lines:
        if line.get("side") == "peer" and line.get("score") is not None:
            of_tasks = found.setdefault(learning(line["settings"]), {})
            of_tasks.setdefault(line["task"], {})[line["settings"]["seed"]] = line["score"]
    return found


def as_good(lines: Iterable[Line]) -> set[Learning]:
    """What is on no task shown to score less than the defaults: the doubt is the peer's to have.

    Shown is what the 95 % interval of the difference, paired by seed, leaves no doubt of. Batches
    by length cost a score on MRPC in every seed; weights in 16 bits may, on STS-B, where seeds
    differ more than precisions do. Nothing where the defaults have no scores.
    """
    found = scored(lines)
    defaults = found.get(learning(DEFAULTS), {})
    return {
        one
        for one, of_tasks in found.items()
        if defaults
        and all(
            task in of_tasks and not _is_less(of_tasks[task], by_default)
            for task, by_default in defaults.items()
        )
    }


def _is_less(one: dict[int, float], other: dict[int, float]) -> bool:
    differences = [one[seed] - other[seed] for seed in one.keys() & other.keys()]
    if len(set(differences)) < 2:  # no interval
        return max(differences, default=0.0) < 0
    return bool(ttest_1samp(differences, 0.0).confidence_interval(0.95).high < 0)


def learning(settings: Settings) -> Learning:
    """What the score hangs on: attention and the optimizer's code compute the same.

    >>> learning(DEFAULTS)
    ('fp32', 'random')
    """
    return settings["precision"], settings["batches"]


def _ranked(lines: Iterable[Line], key: Callable[[Line], float]) -> list[Settings]:
    values: dict[tuple[str, ...], list[float]] = {}
    for line in lines:
        if "failed" not in line:
            values.setdefault(tuple(settings_of(line).values()), []).append(key(line))
    ranked = sorted(values, key=lambda settings: statistics.median(values[settings]))
    if not ranked:
        raise NothingRan("every setting of the peer failed; its lines in the results say why")
    return [dict(zip(NAMES, settings, strict=True)) for settings in ranked]
