"""Crossed random effects: known variances, known limits, and coverage of a known truth."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from peftlab.records.crossed import Crossed, Shared, half_width, holm
from peftlab.records.influence import Array


def drawn(
    seeds: int, n: int, sd: tuple[float, float, float], repetitions: int = 1, at: int = 0
) -> Crossed:
    """Values whose truth is 0: sd of seeds, of examples, and of both."""
    draw = np.random.default_rng(at)
    x = draw.normal(0, sd[0], (repetitions, seeds, 1)) + draw.normal(0, sd[1], (repetitions, 1, n))
    x = x + draw.normal(0, sd[2], (repetitions, seeds, n))
    d = x.mean(axis=-1)
    return Crossed.of(d, x - d[..., None])


def variance(c: Crossed) -> Array:
    """Of the mean, by the three that its interval is made of."""
    interaction = c.interaction / (c.n_seeds * c.n_examples)
    return c.seed / c.n_seeds + c.example / c.n_examples - interaction


@pytest.mark.parametrize("sd", [(0.0, 1.0, 1.0), (0.1, 1.0, 1.0), (0.3, 0.3, 3.0)])
def test_the_variance_is_that_of_the_mean(sd: tuple[float, float, float]) -> None:
    c = drawn(10, 100, sd, 4000)
    true = sd[0] ** 2 / 10 + sd[1] ** 2 / 100 + sd[2] ** 2 / 1000
    assert np.var(c.mean) == pytest.approx(true, rel=0.1)  # 4,000 draws: 2.2 % is one sd
    assert np.mean(variance(c)) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "sd",
    [
        *((0.0, 1.0, 0.0), (0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.2, 1.0, 1.0), (1.0, 1.0, 1.0)),
        (0.2, 0.0, 1.0),  # where three seeds that agree by chance do most harm
    ],
)
def test_95_percent_are_about_95_percent(seeds: int, sd: tuple[float, float, float]) -> None:
    c = drawn(seeds, 100, sd, 4000)
    low, high = c.interval()
    most = (
        0.975 if sd[0] >= 0.2 or not sd[2] else 0.995
    )  # wider where seeds add little of their own
    assert 0.925 < ((low < 0) & (high > 0)).mean() < most  # one sd of the draws is 0.3 points
    for alpha in (0.05, 0.01):
        assert (c.p() <= alpha).mean() < alpha + 3 * (alpha / 4000) ** 0.5
    assert not ((c.p() < 0.05) & (low < 0) & (high > 0)).any()


def test_seeds_alone_are_a_t_test_of_them() -> None:
    d = np.array([0.1, 0.3, 0.35, 0.2])
    c = Crossed.of(d, np.zeros((4, 50)))
    expected = stats.ttest_1samp(d, 0)
    assert c.p() == pytest.approx(expected.pvalue)
    assert c.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_one_seed_is_a_paired_t_test_over_examples() -> None:
    x = np.random.default_rng(0).normal(0.1, 1, 80)
    c = Crossed.of(x.mean(keepdims=True), (x - x.mean())[None])
    expected = stats.ttest_1samp(x, 0)
    assert c.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_two_seeds_of_two_rows_cover_the_examples_alone() -> None:
    u = np.random.default_rng(0).normal(size=(2, 80))
    u -= u.mean(axis=1, keepdims=True)
    near, far = Crossed.of(np.array([0.1, 0.1]), u), Crossed.of(np.array([-0.4, 0.6]), u)
    assert near.interval() == pytest.approx(far.interval())
    assert half_width([near], [1.0]) == pytest.approx(half_width([far], [1.0]))


@pytest.mark.parametrize("sd", [(0.3, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0)])
def test_two_seeds_of_several_rows_cover_the_seeds(sd: tuple[float, float, float]) -> None:
    """Without what the rows share, 24 to 85 % of such intervals held the truth."""
    draw, k = np.random.default_rng(0), 6
    x = draw.normal(0, sd[0], (1000, k, 2, 1)) + draw.normal(0, sd[1], (1000, k, 1, 100))
    x = x + draw.normal(0, sd[2], (1000, k, 2, 100))
    scores, pairs = x.mean(axis=-1), list(itertools.combinations(range(k), 2))
    u = x - scores[..., None]
    a, b = (list(rows) for rows in zip(*pairs, strict=True))
    c = Crossed.of(scores[:, a] - scores[:, b], u[:, a] - u[:, b])
    shared = Shared.of(c.seed, pairs)
    low, high = c.interval(shared=Shared(shared.seed[:, None], shared.df[:, None]))
    assert 0.93 < ((low < 0) & (high > 0)).mean() < 0.99
    unsteady = c.interval(shared=Shared(1e6 * shared.seed[:, None], np.ones((1000, 1))))
    own = float(stats.t.ppf(0.975, 1)) * (c.seed / 2) ** 0.5
    assert np.median((unsteady[1] - unsteady[0]) / 2 / own) < 3  # one row hides no other's


def test_the_same_on_all_examples_and_seeds_is_certain_and_no_difference() -> None:
    c = Crossed.of(np.zeros(3), np.zeros((3, 10)))
    assert c.p() == 1.0 and c.interval() == (0.0, 0.0)
    assert Crossed.of(np.full(3, 0.5), np.zeros((3, 10))).p() < 1e-15


def test_no_changed_answer_of_few_examples_proves_little() -> None:
    few, many = (Crossed.of(np.zeros(3), np.zeros((3, n)), grain=1 / n) for n in (20, 1000))
    # t of 19 degrees of freedom; and the rule of three
    assert few.interval()[1] == pytest.approx(1.5 * 2.093 / 20, rel=1e-3)
    assert many.interval()[1] == pytest.approx(3 / 1000, rel=0.02)
    assert many.interval()[1] < 0.01


def test_more_seeds_settle_what_seeds_made_unclear() -> None:
    d = np.array([0.02, 0.05, -0.01])
    c = Crossed.of(d, np.zeros((3, 500)))
    more = c.seeds_to_settle(0.0)
    assert more is not None
    sd = d.std(ddof=1)

    def half(n: int) -> float:
        return float(stats.t.ppf(0.975, n - 1)) * sd / n**0.5

    assert half(3 + more) < d.mean() <= half(3 + more - 1)


def test_no_number_of_seeds_settles_what_the_examples_leave_open() -> None:
    u = np.tile(np.random.default_rng(0).normal(size=100), (3, 1))
    assert Crossed.of(np.full(3, 0.01), u - u.mean()).seeds_to_settle(0.01) is None


def test_p_is_the_level_at_which_seeds_and_examples_together_reach_the_mean() -> None:
    c = single(5, 100, (0.1, 1.0, 0.0), 3)
    t = [float(stats.t.ppf(float(c.p()) / 2, df)) for df in (4, 99)]
    half = (t[0] ** 2 * c.seed / 5 + t[1] ** 2 * c.example / 100) ** 0.5
    assert half == pytest.approx(abs(c.mean), rel=1e-6)


PAIRS = [(0, 1), (0, 2), (1, 2)]


def test_rows_that_vary_alike_count_each_but_one_and_an_unsteady_one_alone() -> None:
    alike = Shared.of(np.array([2.0, 2.0, 2.0]), PAIRS)
    assert (alike.seed, alike.df) == (2.0, pytest.approx(2.0))
    assert Shared.of(np.array([101.0, 101.0, 2.0]), PAIRS).df == pytest.approx(1.03, abs=0.01)
    assert Shared.of(np.zeros(3), PAIRS).df == 1.0
    assert Shared.of(np.array([5.0]), PAIRS[:1]).df == pytest.approx(1.0)


@pytest.mark.parametrize("sd", [(1, 1, 1, 1), (1, 2, 3, 1), (5, 1, 1, 1), (1, 1, 0, 0)])
def test_the_shared_variance_has_the_degrees_of_freedom_of_a_chi_square(sd: tuple) -> None:
    """Whatever a seed does to all rows alike, which made 15 equal rows differ in 11 % of cases."""
    draw, n_seeds = np.random.default_rng(0), 3
    scores = draw.normal(0, 4, (40_000, 1, n_seeds))
    scores = scores + np.array(sd)[:, None] * draw.normal(size=(40_000, 4, n_seeds))
    pairs = list(itertools.combinations(range(4), 2))
    a, b = (list(rows) for rows in zip(*pairs, strict=True))
    variances = (scores[:, a] - scores[:, b]).var(axis=-1, ddof=1)
    of_each = Shared.of(variances, pairs).seed
    known = Shared.of(np.array([sd[i] ** 2 + sd[j] ** 2 for i, j in pairs], float), pairs)
    assert of_each.mean() == pytest.approx(known.seed, rel=0.03)
    df = 2 * of_each.mean() ** 2 / of_each.var()
    assert df == pytest.approx(known.df * (n_seeds - 1), rel=0.05)


def test_rows_that_vary_alike_make_three_seeds_tell_more() -> None:
    c = dataclasses.replace(single(3, 400, (0.0, 1.0, 1.0), 5), mean=np.array(0.5))
    assert c.p(Shared(c.seed, np.array(6.0))) < c.p() / 3
    unsteady = c.p(Shared(100 * c.seed, np.array(1.0)))
    assert unsteady == pytest.approx(2 * c.p())


def test_a_pair_that_varies_more_than_the_rest_keeps_its_own_variance() -> None:
    c = dataclasses.replace(single(3, 400, (0.5, 1.0, 1.0), 5), mean=np.array(0.5))
    quiet = [Shared(share * c.seed, np.array(6.0)) for share in (0.0, 0.5, 1.0)]
    assert len({float(c.p(one)) for one in quiet}) == 1


def test_one_seed_asks_for_two_more() -> None:
    assert Crossed.of(np.array([0.5]), np.zeros((1, 100))).seeds_to_settle(0.01) == 2


def single(seeds: int, n: int, sd: tuple[float, float, float], at: int) -> Crossed:
    many = drawn(seeds, n, sd, at=at)
    parts = {name: getattr(many, name)[0] for name in ("mean", "seed", "example", "interaction")}
    return dataclasses.replace(many, **parts)


def test_a_mean_over_tasks_has_the_sum_of_their_variances() -> None:
    one, other = single(5, 100, (0.1, 1, 1), 1), single(5, 400, (0.2, 1, 1), 2)
    sd = ((variance(one) + variance(other)) / 4) ** 0.5
    # t of infinitely many and of four degrees of freedom
    assert 1.96 * sd < half_width([one, other], [0.5, 0.5]) < 2.78 * sd


def test_a_single_task_s_mean_is_a_t_test_where_the_seeds_alone_vary() -> None:
    one = Crossed.of(np.array([0.1, 0.3, 0.35, 0.2]), np.zeros((4, 50)))
    assert half_width([one], [1.0]) == pytest.approx(one.interval()[1] - one.mean)
    assert half_width([Crossed.of(np.ones(3), np.zeros((3, 50)))], [1.0]) == 0


def test_holm_never_falls_and_never_exceeds_one() -> None:
    assert holm([]) == []
    assert holm([0.9, 0.001, 0.4]) == [0.9, 0.003, 0.8]
    assert holm([0.02, 0.021]) == [0.04, 0.04]


@pytest.mark.parametrize("parts", [(0.0, 1.0, 40.0), (0.05, 1.0, 40.0), (0.2, 4.0, 0.0)])
def test_more_seeds_are_foretold_by_what_seeds_and_examples_are_each(
    parts: tuple[float, float, float],
) -> None:
    """What both have of the interaction falls with the seeds, and must not be counted twice."""
    alone, of_examples, both = parts
    n, mean = 200, np.array(0.45)

    def at(seeds: int) -> Crossed:
        seed, example = alone + both / n, of_examples + both / seeds
        return Crossed(mean, *map(np.asarray, (seed, example, both)), seeds, n)

    def is_settled(seeds: int) -> bool:
        return bool(at(seeds).interval()[0] > 0 and at(seeds).p() <= 0.05)

    first = next(seeds for seeds in range(3, 100) if is_settled(seeds))
    for seeds in (3, 4):
        assert first > seeds + 1
        assert at(seeds).seeds_to_settle(0.0) == first - seeds


def test_a_mean_over_tasks_counts_what_seeds_and_examples_share_once() -> None:
    """Of 30 seeds and 100 examples, whose scatter is all of both: 1 / 3000 a task, not twice."""
    parts = map(np.asarray, (0.0, 1 / 100, 1 / 30, 1.0))
    one = Crossed(*parts, n_seeds=30, n_examples=100)
    assert half_width([one, one], [0.5, 0.5]) == pytest.approx(1.96 * (1 / 6000) ** 0.5, rel=0.02)
