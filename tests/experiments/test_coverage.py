"""Coverage at a small size: what docs/verdicts.md shows at full size holds here too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from adding_seeds import forecast, watched
from coverage_of_verdicts import BETTER, WORLDS, draw, simulate, skills, truth

from peftlab.tasks.metrics import score


@pytest.mark.parametrize("metric", WORLDS)
def test_the_truth_is_the_mean_score_of_many_examples_and_seeds(metric: str) -> None:
    """Found by another way than intervals are: the metric itself, on 10,000 examples."""
    world = dataclasses.replace(WORLDS[metric], seeds=0.1, bias=0.2)
    skill = skills(world, 0.05)
    labels, predictions = draw(world, skill, 40, 10_000, 1, np.random.default_rng(0))
    for row in (0, 1):
        found = [score([metric], labels[0, 0, 0], one)[metric] for one in predictions[0, row]]
        sure = np.std(found) / 40**0.5 + 0.005  # forty seeds, and the examples they share
        assert np.mean(found) == pytest.approx(truth(world, skill[row]), abs=2 * sure)
    assert truth(world, skill[0]) - truth(world, skill[1]) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("metric", WORLDS)
@pytest.mark.parametrize(("noise", "high"), [(1, 0.99), (3, 0.975)])
def test_intervals_hold_the_truth_and_verdicts_between_equals_are_rare(
    metric: str, noise: float, high: float
) -> None:
    """150 repetitions of six pairs: one sd of the coverage is about a point."""
    usual = WORLDS[metric]
    world = dataclasses.replace(usual, seeds=noise * usual.seeds, bias=noise * usual.bias)
    for seeds in (3, 10):
        found = simulate(world, seeds, 277, 150)
        assert 0.92 < found.coverage <= high
        assert found.false <= 0.08  # 5 % and two sd


def test_a_better_row_is_shown_as_better_and_never_as_worse() -> None:
    found = simulate(WORLDS["f1"], 10, 1500, 40, BETTER)
    assert found.power > 0.9 and found.wrong == 0


def test_noise_is_as_measured() -> None:
    """The ranges are those in the comment above WORLDS."""
    found = simulate(WORLDS["f1"], 5, 408, 40)
    assert 0.006 < found.sd < 0.015
    assert 0.035 < found.disagree < 0.065 and 0.009 < found.between < 0.105


def test_seeds_that_are_added_until_a_verdict_is_clear_find_more_between_equals() -> None:
    """docs/verdicts.md: .5 % with three seeds, 13 % watched up to forty."""
    shares = watched(WORLDS["accuracy"], 1500, 40)
    assert shares == sorted(shares) and shares[0] <= 0.05
    assert shares[-1] >= shares[0] + 0.05


def test_a_forecast_of_seeds_comes_true_about_as_often_as_not() -> None:
    """docs/verdicts.md: 63 %."""
    came_true = forecast(WORLDS["f1"], 277, 20)
    assert len(came_true) > 40 and 0.4 < np.mean(came_true) < 0.85
