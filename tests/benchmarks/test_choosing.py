"""Which of the peer's settings stand for it, and how lines become ratios. Nothing is trained."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import peers
import plan
import pytest
import ratios
import sections

FAST = {"precision": "bf16", "attention": "sdpa", "optimizer": "adamw_torch"}
FAST |= {"batches": "group_by_length"}
SMALL = FAST | {"attention": "eager"}


def line(speed: float = 1.0, settings: Any = FAST, **fields: Any) -> dict[str, Any]:
    asked = settings | {"examples": fields.pop("examples", 640)}
    made = {"side": "peer", "label": "best", "round": 1, "settings": asked}
    return made | {"examples_per_s": speed, "peak_mib": 100.0} | fields


def test_fastest_goes_by_the_median_of_each_settings_lines() -> None:
    lines = [line(100, SMALL), line(10, SMALL), line(10, SMALL), line(50, FAST)]
    assert peers.fastest(lines, 2) == [FAST, SMALL]


def test_a_failed_process_is_never_chosen() -> None:
    failed = {"side": "peer", "settings": SMALL, "failed": "exit 1"}
    assert peers.fastest([failed, line(1, FAST)], 2) == [FAST]
    with pytest.raises(peers.NothingRan):
        peers.fastest([failed])


def test_all_settings_are_there_and_differ() -> None:
    assert len({tuple(one.items()) for one in peers.ALL}) == 3 * 2 * 2 * 2
    assert peers.DEFAULTS in peers.ALL


def scored(precision: str, batches: str, **scores: tuple[float, ...]) -> list[dict[str, Any]]:
    settings = {"precision": precision, "batches": batches}
    return [
        {"side": "peer", "task": task, "settings": settings | {"seed": seed}, "score": score}
        for task, some in scores.items()
        for seed, score in enumerate(some)
    ]


def test_as_good_is_what_is_on_no_task_shown_to_score_less_than_the_defaults() -> None:
    mrpc = (0.85, 0.86, 0.84)
    fp32 = scored("fp32", "random", stsb=(0.80, 0.37, 0.78), mrpc=mrpc)
    unsteady = scored("autocast", "random", stsb=(0.79, 0.10, 0.80), mrpc=mrpc)
    worse = scored("bf16", "random", stsb=(0.80, 0.37, 0.78), mrpc=(0.75, 0.76, 0.75))
    one_task = scored("bf16", "group_by_length", stsb=(0.9, 0.9, 0.9))
    ours = [line | {"side": "ours"} for line in scored("auto", "random", stsb=(0.9,), mrpc=(0.9,))]
    failed = {"side": "peer", "task": "stsb", "settings": fp32[0]["settings"], "failed": "exit 1"}
    lines = [*fp32, *unsteady, *worse, *one_task, *ours, failed]
    assert peers.as_good(lines) == {("fp32", "random"), ("autocast", "random")}
    assert peers.as_good([*unsteady, *worse]) == set()
    lone = [line for line in [*fp32, *worse] if line["settings"]["seed"] == 0]
    assert peers.as_good(lone) == {("fp32", "random")}  # one seed has no interval


def test_ratios_are_of_one_rounds_two() -> None:
    """The machine is twice as slow in round 2; round 3 has one side only."""
    lines = [
        line(30, label="ours", round=1),
        line(10, label="best", round=1),
        line(10, label="ours", round=2),
        line(5, label="best", round=2),
        line(100, label="ours", round=3),
    ]
    ratio = ratios.paired(lines, "ours", "best", "examples_per_s")
    assert ratio == ratios.Ratio(median=2.5, low=2.0, high=3.0)
    assert ratios.paired(lines, "ours", "defaults", "examples_per_s") is None


def test_the_finalist_that_is_faster_in_the_rounds_is_the_best_one() -> None:
    lines = [
        line(10, FAST, label="best", round=1),
        line(12, SMALL, label="second", round=1),
        line(10, FAST, label="best", round=2),
        line(5, SMALL, label="second", round=2),
        line(11, SMALL, label="second", round=3),
        line(30, label="ours", round=1),
    ]
    found = ratios.labelled(ratios.best_first(lines), "best")
    assert [peers.settings_of(one) for one in found] == [SMALL] * 3
    slower = ratios.best_first(line | {"examples_per_s": 1.0} for line in lines[1:5:2])
    assert [one["label"] for one in slower] == ["best", "best"]
    assert ratios.best_first(lines[:1]) == lines[:1]


def test_least_of_peer_compares_processes_of_the_same_size() -> None:
    lines = [
        line(settings=FAST, peak_mib=300, round=1),
        line(settings=FAST, peak_mib=310, round=2),
        line(settings=FAST, peak_mib=320, round=3),
        line(settings=SMALL, peak_mib=305),
        line(settings=SMALL, peak_mib=100, examples=64),  # a screening one
        line(settings=SMALL, peak_mib=1, side="ours"),
        line(settings=SMALL, peak_mib=2, label="probe"),  # by another model
    ]
    assert ratios.least_of_peer(lines, "peak_mib", 640) == (305, peers.describe(SMALL))
    assert ratios.least_of_peer(lines, "peak_mib", 1) is None


def test_floors_hold_from_their_side() -> None:
    speed, memory = plan.Floor(1.7), plan.Floor(0.8, at_most=True)
    assert [speed.is_met(ratio) for ratio in (1.69, 1.7, 1.71)] == [False, True, True]
    assert [memory.is_met(ratio) for ratio in (0.79, 0.8, 0.81)] == [True, True, False]
    assert (str(speed), str(memory)) == ("≥ 1.7", "≤ 0.8")
    verdicts = [ratios.verdict(1.0, speed), ratios.verdict(None, speed), ratios.verdict(1.0, None)]
    assert verdicts == ["NO", "?", ""]


def test_step_ms_is_the_timed_epochs_mean() -> None:
    made = line(epoch_s=4.0, n_steps=40)
    made["settings"]["epochs"] = 2
    assert ratios.step_ms(made) == 200


def test_chosen_sections_keep_their_order_and_speed_is_all_five() -> None:
    assert sections.select_sections("roberta/cola,scores") == ["scores", "roberta/cola"]
    assert sections.select_sections("speed") == [setting.name for setting in plan.LORA]
    assert sections.select_sections(None) == list(sections.SECTIONS)
    with pytest.raises(ValueError, match="no section 'sped'"):
        sections.select_sections("sped")


@pytest.mark.parametrize("name", ["peers", "ratios", "runs"])
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
