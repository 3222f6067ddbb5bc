"""The peer's settings: all, the fastest ones, and those that score as the defaults do."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from scipy.stats import ttest_1samp

Line = dict[str, Any]
Settings = dict[str, str]
# precision and batches: a score depends on them, not on attention or the optimizer's code
ScoreKey = tuple[str, str]
NAMES = ("precision", "attention", "optimizer", "batches")
SHORT = {"adamw_torch": "plain AdamW", "adamw_torch_fused": "fused AdamW"}
SHORT |= {"group_by_length": "grouped", "bf16": "bf16-loaded"}

# what an installation does by default
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
    """No process of a side that was to be compared came to its end."""


def settings_of(line: Line) -> Settings:
    """The settings of the peer's process that a line is from."""
    return {name: line["settings"][name] for name in NAMES}


def describe(settings: Settings) -> str:
    """Settings in words.

    >>> describe(DEFAULTS)
    'fp32, sdpa, fused AdamW, random'
    """
    return ", ".join(in_words(settings[name]) for name in NAMES)


def in_words(value: str) -> str:
    """A setting's value as tables name it."""
    return SHORT.get(value, value)


def fastest(lines: Iterable[Line], n: int = 1) -> list[Settings]:
    """The `n` settings with the most examples a second, best first; medians where run twice.

    Raises:
        NothingRan: if every process failed.
    """
    speeds: dict[tuple[str, ...], list[float]] = {}
    for line in lines:
        if "failed" not in line:
            values = tuple(settings_of(line).values())
            speeds.setdefault(values, []).append(line["examples_per_s"])
    if not speeds:
        raise NothingRan("every setting of the peer failed; its lines in the results say why")
    ranked = sorted(speeds, key=lambda values: -statistics.median(speeds[values]))
    return [dict(zip(NAMES, values, strict=True)) for values in ranked[:n]]


def _scores_of_peer(lines: Iterable[Line]) -> dict[ScoreKey, dict[str, dict[int, float]]]:
    """The peer's scores by the settings that they depend on, then by task and seed."""
    scores: dict[ScoreKey, dict[str, dict[int, float]]] = {}
    for line in lines:
        if line.get("side") == "peer" and line.get("score") is not None:
            by_task = scores.setdefault(score_key(line["settings"]), {})
            by_task.setdefault(line["task"], {})[line["settings"]["seed"]] = line["score"]
    return scores


def as_good(lines: Iterable[Line]) -> set[ScoreKey]:
    """The settings that on no task are shown to score less than the defaults.

    A loss is shown where the 95 % interval of the difference, paired by seed, lies below 0: the
    peer has the benefit of the doubt. Batches by length cost a score on MRPC in every seed; weights
    in 16 bits may, on STS-B, where seeds differ more than precisions do. Empty where the defaults
    have no scores.
    """
    scores = _scores_of_peer(lines)
    defaults = scores.get(score_key(DEFAULTS), {})
    return {
        key
        for key, by_task in scores.items()
        if defaults
        and all(
            task in by_task and not _is_less(by_task[task], by_default)
            for task, by_default in defaults.items()
        )
    }


def _is_less(scores: dict[int, float], others: dict[int, float]) -> bool:
    differences = [scores[seed] - others[seed] for seed in scores.keys() & others.keys()]
    if len(set(differences)) < 2:  # no interval
        return max(differences, default=0.0) < 0
    return bool(ttest_1samp(differences, 0.0).confidence_interval(0.95).high < 0)


def score_key(settings: Settings) -> ScoreKey:
    """The settings that the score depends on.

    >>> score_key(DEFAULTS)
    ('fp32', 'random')
    """
    return settings["precision"], settings["batches"]
