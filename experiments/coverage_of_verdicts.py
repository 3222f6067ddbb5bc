"""Whether 95 % intervals hold the truth: `python experiments/coverage_of_verdicts.py [TIMES]`.

A world in which the truth is known. Dev sets and seeds are drawn anew in every repetition; rows
are trained on the same seeds and judged on the same examples, as by `peftlab compare`.

    classes      latent of the true class  z_msi = skill_m + a_ms + h_i + r_mi + e_msi
                 latent towards class 1    (2 y_i - 1) z_msi + b_ms;  predicted 1 where it is > 0
    regression   prediction = y_i + exp(a_ms) noise_m (h_i + r_mi + e_msi)

a, b: seeds; h: how hard the example is for all rows; r: for one; e: for one under one seed. All
are normal, and h² + r² + e² = 1 on average. So a row's score under one seed on infinitely many
examples is known in closed form, and the truth is its mean over seeds, by Gauss and Hermite.

Prints the table of docs/verdicts.md, in percent, with 3 · 5 · 10 seeds: 4 rows, so 6 pairs a task.
Once all rows are equal, once the first one is better by 4 points. Coverage is the mean of the two;
false verdicts are repetitions with any better or worse between equal rows, the larger of the two;
power is the share of the better row's 3 pairs that are shown as better.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from peftlab.records.crossed import Crossed, Shared, holm
from peftlab.records.influence import influences

Array = NDArray[np.float64]
ROWS = 4
BETTER = 0.04  # of the score, where one row is better


@dataclasses.dataclass(frozen=True)
class World:
    """What a repetition is drawn from.

    Shares of the latent's variance: `hard` is common to all rows, `own` to all seeds of one row;
    the rest is drawn for each run. `seeds` is the spread of a, `bias` of b, `common` the
    correlation of a and b between rows of one seed.
    """

    metric: str
    level: float  # accuracy, or Pearson's correlation
    share: float = 0.5  # of class 1
    hard: float = 0.96
    own: float = 0.01
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
    "pearson": World("pearson", 0.87, hard=0.75, own=0.05),
}
DEV = (277, 1500)  # RTE's and STS-B's, the least and the most of GLUE's small tasks
SEEDS = (3, 5, 10)


def truth(world: World, skill: float) -> float:
    """The mean over seeds of the score on infinitely many examples."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    if world.metric == "pearson":
        noise = skill * np.exp(world.seeds * nodes)
        return float((weights / np.sqrt(1 + noise**2)).sum())
    a, b = world.seeds * nodes[:, None], world.bias * nodes[None, :]
    hit, correct = ndtr(skill + a + b), ndtr(skill + a - b)  # of class 1 and of class 0
    score = _of_rates(world.metric, world.share, hit, correct)
    return float((weights[:, None] * weights[None, :] * score).sum())


def _of_rates(metric: str, share: float, hit: Array, correct: Array) -> Array:
    tp, tn = share * hit, (1 - share) * correct
    fn, fp = share - tp, 1 - share - tn
    if metric == "accuracy":
        return tp + tn
    if metric == "f1":
        return 2 * tp / (2 * tp + fp + fn)
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / np.sqrt(spread)


def skills(world: World, better: float) -> list[float]:
    """Of every row: the first one's truth is higher than the others' by `better`."""
    pearson = world.metric == "pearson"
    usual = np.sqrt(1 / world.level**2 - 1) if pearson else ndtri(world.level)
    aim = truth(world, usual) + better
    low, high = (0.01, usual) if pearson else (usual, 3.0)
    for _ in range(50):  # bisection
        middle = (low + high) / 2
        if (truth(world, middle) > aim) == pearson:
            low = middle
        else:
            high = middle
    return [middle if better else usual, *[usual] * (ROWS - 1)]


def draw(
    world: World, skill: list[float], seeds: int, n: int, repetitions: int, at: np.random.Generator
) -> tuple[Array, Array]:
    """Labels (repetitions, 1, 1, n) and predictions (repetitions, rows, seeds, n)."""
    shape = (repetitions, ROWS, seeds, n)

    def normal(rows: int, of_seeds: int, of_n: int, sd: float) -> Array:
        size = (repetitions, rows, of_seeds, of_n)
        return sd * at.standard_normal(size, dtype=np.float32).astype(np.float64)

    def of_seeds(sd: float) -> Array:
        own, common = (1 - world.common) ** 0.5 * sd, world.common**0.5 * sd
        return normal(ROWS, seeds, 1, own) + normal(1, seeds, 1, common)

    latent = normal(1, 1, n, world.hard**0.5) + normal(ROWS, 1, n, world.own**0.5)
    latent = latent + normal(*shape[1:], (1 - world.hard - world.own) ** 0.5)
    level = np.array(skill)[None, :, None, None]
    if world.metric == "pearson":
        labels = normal(1, 1, n, 1.0)
        return labels, labels + level * np.exp(of_seeds(world.seeds)) * latent
    labels = (at.random((repetitions, 1, 1, n)) < world.share).astype(np.float64)
    towards = (2 * labels - 1) * (level + of_seeds(world.seeds) + latent) + of_seeds(world.bias)
    return labels, (towards > 0).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Found:
    """Shares of what was drawn."""

    coverage: float
    false: float  # repetitions with any verdict between equal rows
    power: float  # of the pairs with the better row
    wrong: float  # of those, shown as worse
    sd: float  # of a row's score over seeds, mean
    disagree: float  # of two seeds of a row; for a regression the correlation of their errors
    between: float  # of two rows under one seed, likewise


def simulate(
    world: World, seeds: int, n: int, repetitions: int, better: float = 0.0, at: int = 0
) -> Found:
    """Intervals and verdicts of all pairs in each of `repetitions`."""
    generator, skill = np.random.default_rng(at), skills(world, better)
    chunk = max(1, 2_000_000 // (ROWS * seeds * n))
    parts = [
        _judge(world, skill, *draw(world, skill, seeds, n, size, generator))
        for size in (min(chunk, repetitions - k) for k in range(0, repetitions, chunk))
    ]
    return Found(*np.concatenate(parts).mean(axis=0))


def _judge(world: World, skill: list[float], labels: Array, predictions: Array) -> Array:
    """(repetitions, fields of Found)."""
    scores, u = influences(world.metric, labels, predictions, 2)
    grain = 0 if world.metric == "pearson" else 1 / labels.shape[-1]
    true = [truth(world, one) for one in skill]
    pairs = list(itertools.combinations(range(ROWS), 2))
    one, other = (list(rows) for rows in zip(*pairs, strict=True))
    c = Crossed.of(scores[:, one] - scores[:, other], u[:, one] - u[:, other], grain)
    low, high = c.interval()  # (repetitions, pairs)
    difference = np.array([true[a] - true[b] for a, b in pairs])
    rows = Shared.of(c.seed, scores.var(axis=-1, ddof=1))
    p = c.p(Shared(rows.seed[:, None], rows.rows[:, None]))
    shown = np.apply_along_axis(lambda row: np.array(holm(list(row))) <= 0.05, 1, p)
    shown &= (low > 0) | (high < 0)
    up, first = c.mean > 0, ROWS - 1  # the pairs of the first row come first
    equal = shown[:, first:] if true[0] != true[1] else shown
    if world.metric == "pearson":
        same, between = _correlation(labels, predictions)
    else:
        same = (predictions[:, :, 0] != predictions[:, :, 1]).mean(axis=(1, 2))
        between = (predictions[:, 1] != predictions[:, 2]).mean(axis=(1, 2))
    return np.stack(
        [
            ((low <= difference) & (difference <= high)).mean(axis=1),
            equal.any(axis=1),
            (shown & up)[:, :first].mean(axis=1),
            (shown & ~up)[:, :first].mean(axis=1),
            scores.std(axis=-1, ddof=1).mean(axis=1),
            same,
            between,
        ],
        axis=1,
    )


def _correlation(labels: Array, predictions: Array) -> tuple[Array, Array]:
    error = predictions - labels
    error = error / np.sqrt(np.square(error).mean(axis=-1, keepdims=True))
    same = (error[:, :, 0] * error[:, :, 1]).mean(axis=(1, 2))
    return same, (error[:, 1] * error[:, 2]).mean(axis=(1, 2))


HEAD = """\
| metric | dev | noise | sd | coverage | false verdicts | power |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """The table; the number of repetitions may be given."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(HEAD)
    for usual, n, noise in itertools.product(WORLDS.values(), DEV, (1, 3)):
        world = dataclasses.replace(usual, seeds=noise * usual.seeds, bias=noise * usual.bias)
        none = [simulate(world, seeds, n, repetitions) for seeds in SEEDS]
        one = [simulate(world, seeds, n, repetitions, BETTER, at=1) for seeds in SEEDS]
        both = list(zip(none, one, strict=True))
        cells = (
            f"{np.mean([found.sd for found in none]):.3f}",
            " · ".join(f"{100 * (a.coverage + b.coverage) / 2:.1f}" for a, b in both),
            " · ".join(f"{100 * max(a.false, b.false):.1f}" for a, b in both),
            " · ".join(f"{100 * found.power:.0f}" for found in one),
        )
        print(f"| {world.metric} | {n:,} | × {noise} | {' | '.join(cells)} |", flush=True)
    took = time.process_time()
    print(f"{repetitions} repetitions, {took:.0f} s of processor", file=sys.stderr)


if __name__ == "__main__":
    main()
