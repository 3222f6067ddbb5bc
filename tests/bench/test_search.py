"""Where trials look, and which of them is taken: no model is needed for that."""

from __future__ import annotations

import math

import pytest

from peftlab.bench.search import Space, best_index, rung_sizes, search
from peftlab.methods import METHODS
from peftlab.methods.base import Range
from peftlab.records.trials import Values

SPACE = {"lr": Range(1e-4, 1e-2), "rank": Range(1, 64, whole=True)}
DEFAULT = {"lr": 1e-3, "rank": 8}


def hill(values: Values, epochs: int) -> float:
    """The best rate is 4e-3; what is trained for longer is better."""
    return epochs - abs(math.log(values["lr"] / 4e-3))


def test_the_given_points_come_first_and_all_lie_in_the_space() -> None:
    tried = search(SPACE, [{"lr": 5e-4, "rank": 8}, DEFAULT], 14, hill, [3])
    assert [one.values for one in tried[:2]] == [{"lr": 5e-4, "rank": 8}, DEFAULT]
    assert len(tried) == 14
    for values in (one.values for one in tried):
        assert 1e-4 <= values["lr"] <= 1e-2
        assert values["rank"] in range(1, 65)


@pytest.mark.parametrize("n_trials", [1, 6, 10, 14])
def test_no_more_than_the_trials_that_were_asked_for(n_trials: int) -> None:
    assert len(search(SPACE, [DEFAULT, DEFAULT], n_trials, hill, [1])) == n_trials


def test_the_points_of_a_short_search_are_the_same_places_of_every_range() -> None:
    """Every method gets the same luck: a place is a share of its own range."""

    def places(low: float) -> list[float]:
        space = {"lr": Range(low, low * 100)}
        tried = search(space, [{"lr": low * 10}], 8, lambda values, epochs: 0.0, [1])
        return [math.log(one.values["lr"] / low) for one in tried]

    assert places(1e-5) == pytest.approx(places(3e-3), abs=0.02)


def test_the_points_after_the_tenth_follow_what_was_found() -> None:
    tried = search(SPACE, [DEFAULT], 30, hill, [1])
    start, late = tried[1:10], tried[20:]

    def off(part: list) -> float:
        return sum(abs(math.log(one.values["lr"] / 4e-3)) for one in part) / len(part)

    assert off(late) < 0.7 * off(start)


def test_the_best_third_runs_on_and_the_best_of_it_is_taken() -> None:
    tried = search(SPACE, [DEFAULT], 6, hill, [1, 3])
    assert [one.epochs for one in tried] == [1] * 6 + [3] * 2
    ranked = sorted(tried[:6], key=lambda one: -(one.merit or 0))
    assert [one.values for one in tried[6:]] == [one.values for one in ranked[:2]]
    assert best_index(tried) == 6


def test_equals_go_on_together() -> None:
    """Six short trainings that had all collapsed: the first two of the list were taken for best."""

    def late(values: Values, epochs: int) -> float:
        return hill(values, epochs) if epochs == 3 else 0.0

    tried = search(SPACE, [DEFAULT], 6, late, [1, 3])
    assert [one.epochs for one in tried] == [1] * 6 + [3] * 6
    best = best_index(tried)
    assert best is not None
    assert tried[best].merit == max(hill(one.values, 3) for one in tried)


def test_a_point_that_is_drawn_twice_takes_one_place_of_the_next_rung() -> None:
    """Of 20 ranks between 1 and 16 several are equal: the longest trainings compared 8 with 8."""
    space = {"rank": Range(1, 16, log=False, whole=True)}
    merits = lambda values, epochs: -abs(values["rank"] - 8.1)  # noqa: E731
    tried = search(space, [{"rank": 8}], 20, merits, [1, 3, 9])
    for epochs in (3, 9):
        ranks = [one.values["rank"] for one in tried if one.epochs == epochs]
        assert len(set(ranks)) == len(ranks) > 2


def test_what_fails_is_never_taken_and_does_not_run_on() -> None:
    def fails_high(values: Values, epochs: int) -> float | None:
        return None if values["lr"] > 1e-3 else values["lr"]

    tried = search(SPACE, [DEFAULT], 9, fails_high, [1, 3])
    assert all(one.values["lr"] <= 1e-3 for one in tried if one.epochs == 3)
    best = best_index(tried)
    assert best is not None
    assert tried[best].values == DEFAULT
    assert best_index(search(SPACE, [DEFAULT], 3, lambda values, epochs: None, [1, 3])) is None


def test_a_search_again_is_the_same_search() -> None:
    def search_once() -> list:
        return search(SPACE, [DEFAULT], 15, hill, [1, 3])

    assert search_once() == search_once()


def test_rungs_are_a_third_each() -> None:
    assert rung_sizes(9, 3) == [9, 3, 1]


@pytest.mark.parametrize("name", METHODS)
def test_published_and_default_rates_lie_inside_the_declared_range(name: str) -> None:
    method = METHODS[name]
    space: Space = method.search_space()
    for rate in (method.published_lr, method.default_lr):
        assert rate is None or space["lr"].low <= rate <= space["lr"].high
    for setting, where in space.items():
        if setting not in ("lr", "head_lr"):
            default = method().settings[setting]
            assert where.low <= default <= where.high
            assert type(default) is (int if where.whole else float)
