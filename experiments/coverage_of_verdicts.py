"""Whether 95 % intervals hold the truth: `python experiments/coverage_of_verdicts.py [TIMES]`.

Simulates comparisons whose truth is known. Every repetition draws dev sets and seeds anew; all rows
are trained on the same seeds and judged on the same examples, as by `peftlab compare`.

    classes      latent of the true class  z_msi = skill_m + a_ms + h_i + r_mi + e_msi
                 latent towards class 1    (2 y_i - 1) z_msi + b_ms;  predicted 1 where it is > 0
    regression   prediction = y_i + exp(a_ms) noise_m (h_i + r_mi + e_msi)

a, b: effects of the seed; h: how hard the example is for all rows; r: for one row; e: for one row
under one seed. All are normal, and h² + r² + e² = 1 on average. So a row's score under one seed on
infinitely many examples is known in closed form, and the truth is its mean over seeds, by
Gauss-Hermite quadrature.

Prints the table of docs/verdicts.md, in percent: 4 rows, so 6 pairs a task. Coverage is with
2 · 3 · 5 · 10 seeds, the rest with 3 · 5 · 10: two have no verdicts.
Two worlds: in one all rows are equal, in the other the first row is better by 4 points. Coverage is
the mean of both; false verdicts are the repetitions with any better or worse between equal rows, in
the world with more of them; power is the share of the better row's 3 pairs shown as better.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from peftlab.records.crossed import MIN_SEEDS, Crossed, Shared, holm
from peftlab.records.influence import influences

Array = NDArray[np.float64]
ROWS = 4
PAIRS = list(itertools.combinations(range(ROWS), 2))  # those of the first row come first
BETTER = 0.04  # of the score, where one row is better


@dataclasses.dataclass(frozen=True)
class World:
    """The distribution that repetitions are drawn from.

    Shares of the latent's variance: `hard` is common to all rows, `row` to all seeds of one row;
    the rest is drawn for each run. `seeds` is the standard deviation of a, `bias` of b; `common` is
    the correlation of a and b between rows of one seed.
    """

    metric: str
    level: float  # accuracy, or Pearson's correlation
    share: float = 0.5  # of class 1
    hard: float = 0.96
    row: float = 0.01
    seeds: float = 0.04
    bias: float = 0.08
    common: float = 0.3


# Levels and shares of class 1: CoLA's dev .69 (accuracy of all-mpnet-base-v2's rows .80), MRPC's
# .68, STS-B's Pearson and RTE's .50. Examples: ten rows of all-mpnet-base-v2 on CoLA, one seed
# each: two rows disagree on .9 to 10.5 % of answers, median 4.9 %. Synthetic tasks, minilm, five
# seeds of full and lora: two seeds of a row disagree on 3.5 to 6.0 %, two rows of a seed on 4.0 to
# 5.1 %. Regression (similarity): errors of two seeds correlate by .71 to .87, of two rows .77.
# Seeds: sd of the score .006 to .013 on MRPC (F1, minilm, five seeds, LOG.md), .007 to .038 on the
# synthetic tasks; the rows' scores correlate over seeds by -.5 to .9, mean .3.
WORLDS = {
    "matthews": World("matthews", 0.80, share=0.69),
    "f1": World("f1", 0.82, share=0.68),
    "accuracy": World("accuracy", 0.70, share=0.50),
    "pearson": World("pearson", 0.87, hard=0.75, row=0.05),
}
DEV = (277, 1500)  # RTE's and STS-B's, the least and the most of GLUE's small tasks
SEEDS = (2, 3, 5, 10)


def truth(world: World, skill: float) -> float:
    """The mean over seeds of the score on infinitely many examples."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    if world.metric == "pearson":
        noise = skill * np.exp(world.seeds * nodes)
        return float((weights / np.sqrt(1 + noise**2)).sum())
    a, b = world.seeds * nodes[:, None], world.bias * nodes[None, :]
    recall_1, recall_0 = ndtr(skill + a + b), ndtr(skill + a - b)
    score = _score(world.metric, world.share, recall_1, recall_0)
    return float((weights[:, None] * weights[None, :] * score).sum())


def _score(metric: str, share: float, recall_1: Array, recall_0: Array) -> Array:
    """The score where `share` of the examples are of class 1, by the recalls of both classes."""
    tp, tn = share * recall_1, (1 - share) * recall_0
    fn, fp = share - tp, 1 - share - tn
    if metric == "accuracy":
        return tp + tn
    if metric == "f1":
        return 2 * tp / (2 * tp + fp + fn)
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / np.sqrt(spread)


def skills(world: World, better: float) -> list[float]:
    """The skill of every row: the truth of the first is higher than the others' by `better`."""
    is_pearson = world.metric == "pearson"
    usual = np.sqrt(1 / world.level**2 - 1) if is_pearson else ndtri(world.level)
    target = truth(world, usual) + better
    low, high = (0.01, usual) if is_pearson else (usual, 3.0)
    for _ in range(50):  # bisection
        middle = (low + high) / 2
        if (truth(world, middle) > target) == is_pearson:
            low = middle
        else:
            high = middle
    return [middle if better else usual, *[usual] * (ROWS - 1)]


def draw(
    world: World, skill: list[float], seeds: int, n: int, repetitions: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Labels (repetitions, 1, 1, n) and predictions (repetitions, rows, seeds, n)."""

    def normal(n_rows: int, n_seeds: int, n_examples: int, sd: float) -> Array:
        size = (repetitions, n_rows, n_seeds, n_examples)
        return sd * rng.standard_normal(size, dtype=np.float32).astype(np.float64)

    def seed_effect(sd: float) -> Array:
        of_run, common = (1 - world.common) ** 0.5 * sd, world.common**0.5 * sd
        return normal(ROWS, seeds, 1, of_run) + normal(1, seeds, 1, common)

    latent = normal(1, 1, n, world.hard**0.5) + normal(ROWS, 1, n, world.row**0.5)
    latent = latent + normal(ROWS, seeds, n, (1 - world.hard - world.row) ** 0.5)
    level = np.array(skill)[None, :, None, None]
    if world.metric == "pearson":
        labels = normal(1, 1, n, 1.0)
        return labels, labels + level * np.exp(seed_effect(world.seeds)) * latent
    labels = (rng.random((repetitions, 1, 1, n)) < world.share).astype(np.float64)
    z = level + seed_effect(world.seeds) + latent
    towards_1 = (2 * labels - 1) * z + seed_effect(world.bias)
    return labels, (towards_1 > 0).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a simulation found; means over its repetitions."""

    coverage: float  # of intervals, those that hold the truth
    false: float  # of repetitions, those with any verdict between equal rows
    power: float  # of pairs with the better row, those that show it as better
    wrong: float  # of the same pairs, those that show it as worse
    sd: float  # of a row's score over seeds
    disagree: float  # answers in which two seeds of a row differ; in a regression the correlation
    between: float  # of their errors; the same of two rows under one seed


def simulate(
    world: World, seeds: int, n: int, repetitions: int, better: float = 0.0, rng_seed: int = 0
) -> Rates:
    """Draw `repetitions` comparisons, and judge the intervals and verdicts of all their pairs."""
    rng, skill = np.random.default_rng(rng_seed), skills(world, better)
    chunk = max(1, 2_000_000 // (ROWS * seeds * n))
    parts = [
        _judge(world, skill, *draw(world, skill, seeds, n, size, rng))
        for size in (min(chunk, repetitions - k) for k in range(0, repetitions, chunk))
    ]
    return Rates(*np.concatenate(parts).mean(axis=0))


def _judge(world: World, skill: list[float], labels: Array, predictions: Array) -> Array:
    """The values of `Rates` in each repetition: (repetitions, fields)."""
    scores, influence = influences(world.metric, labels, predictions, 2)
    crossed, shown = shown_pairs(world, scores, influence)
    low, high = crossed.interval(shared=shared_seeds(crossed))  # (repetitions, pairs)
    truths = [truth(world, level) for level in skill]
    difference = np.array([truths[a] - truths[b] for a, b in PAIRS])
    is_higher, n_first = crossed.mean > 0, ROWS - 1
    equal = shown[:, n_first:] if truths[0] != truths[1] else shown
    if world.metric == "pearson":
        disagree, between = _correlations(labels, predictions)
    else:
        disagree = (predictions[:, :, 0] != predictions[:, :, 1]).mean(axis=(1, 2))
        between = (predictions[:, 1] != predictions[:, 2]).mean(axis=(1, 2))
    return np.stack(
        [
            ((low <= difference) & (difference <= high)).mean(axis=1),
            equal.any(axis=1),
            (shown & is_higher)[:, :n_first].mean(axis=1),
            (shown & ~is_higher)[:, :n_first].mean(axis=1),
            scores.std(axis=-1, ddof=1).mean(axis=1),
            disagree,
            between,
        ],
        axis=1,
    )


def shown_pairs(world: World, scores: Array, influence: Array) -> tuple[Crossed, NDArray[np.bool_]]:
    """The differences of all pairs, and which of them are shown: (repetitions, pairs).

    Args:
        world: where they were drawn.
        scores: (repetitions, rows, seeds).
        influence: (repetitions, rows, seeds, n).
    """
    a, b = (list(rows) for rows in zip(*PAIRS, strict=True))
    grain = 0 if world.metric == "pearson" else 1 / influence.shape[-1]
    crossed = Crossed.of(scores[:, a] - scores[:, b], influence[:, a] - influence[:, b], grain)
    if crossed.n_seeds < MIN_SEEDS:
        return crossed, np.zeros(crossed.mean.shape, bool)
    p = crossed.p(shared_seeds(crossed))
    shown = np.apply_along_axis(lambda row: np.array(holm(list(row))) <= 0.05, 1, p)
    low, high = crossed.interval()
    return crossed, shown & ((low > 0) | (high < 0))


def shared_seeds(crossed: Crossed) -> Shared:
    """What the pairs' seeds share: (repetitions, 1) each."""
    shared = Shared.of(crossed.seed, PAIRS)
    return Shared(shared.seed[:, None], shared.df[:, None])


def _correlations(labels: Array, predictions: Array) -> tuple[Array, Array]:
    """The correlation of errors between two seeds of a row, and between two rows of a seed."""
    error = predictions - labels
    error = error / np.sqrt(np.square(error).mean(axis=-1, keepdims=True))
    seeds = (error[:, :, 0] * error[:, :, 1]).mean(axis=(1, 2))
    return seeds, (error[:, 1] * error[:, 2]).mean(axis=(1, 2))


HEAD = """\
| metric | dev | noise | sd | coverage | false verdicts | power |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table; the number of repetitions may be given."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(HEAD)
    for usual, n, noise in itertools.product(WORLDS.values(), DEV, (1, 3)):
        world = dataclasses.replace(usual, seeds=noise * usual.seeds, bias=noise * usual.bias)
        equal = [simulate(world, seeds, n, repetitions) for seeds in SEEDS]
        better = [simulate(world, seeds, n, repetitions, BETTER, rng_seed=1) for seeds in SEEDS]
        both = list(zip(equal, better, strict=True))
        cells = (
            f"{np.mean([rates.sd for rates in equal]):.3f}",
            " · ".join(f"{100 * (a.coverage + b.coverage) / 2:.1f}" for a, b in both),
            " · ".join(f"{100 * max(a.false, b.false):.1f}" for a, b in both[1:]),
            " · ".join(f"{100 * rates.power:.0f}" for rates in better[1:]),
        )
        print(f"| {world.metric} | {n:,} | × {noise} | {' | '.join(cells)} |", flush=True)
    cpu_s = time.process_time()
    print(f"{repetitions} repetitions, {cpu_s:.0f} s of processor", file=sys.stderr)


if __name__ == "__main__":
    main()
