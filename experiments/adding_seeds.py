"""What adding seeds does to verdicts: `python experiments/adding_seeds.py [TIMES]`.

In the worlds of coverage_of_verdicts.py, of 4 rows each, seeds come one at a time, from three on.

    watched   all rows are equal: repetitions that find any better or worse, looked at with three
              seeds alone, or after each seed until there is one, up to 10, 20 and 40 seeds
    forecast  the first row is better by 4 points: of the pairs that three seeds leave unclear and
              that N more would settle "were they like these", the share that N more do settle

Prints the table of docs/verdicts.md, in percent.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator

import numpy as np
from coverage_of_verdicts import (
    BETTER,
    DEV,
    PAIRS,
    WORLDS,
    Array,
    World,
    draw,
    shared_seeds,
    shown_pairs,
    skills,
)
from numpy.typing import NDArray

from peftlab.records.crossed import MIN_SEEDS, Crossed, Shared
from peftlab.records.influence import influences
from peftlab.records.pairs import ALPHA, MARGIN

UP_TO = (10, 20, 40)  # seeds
TOGETHER = 20  # repetitions drawn at once
Shown = NDArray[np.bool_]


def _drawn(
    world: World, n: int, repetitions: int, better: float, rng_seed: int
) -> Iterator[tuple[Array, Array]]:
    """Scores and influences of some repetitions after others, of as many seeds as ever run."""
    rng, skill = np.random.default_rng(rng_seed), skills(world, better)
    for start in range(0, repetitions, TOGETHER):
        size = min(TOGETHER, repetitions - start)
        labels, predictions = draw(world, skill, UP_TO[-1], n, size, rng)
        yield influences(world.metric, labels, predictions, 2)


def watched(world: World, n: int, repetitions: int) -> list[float]:
    """The share of repetitions with a verdict between equals: with three seeds, and up to more."""
    looks = range(MIN_SEEDS, UP_TO[-1] + 1)
    found = []  # (looks, repetitions)
    for scores, influence in _drawn(world, n, repetitions, 0.0, rng_seed=0):
        by_look = (_judged(world, scores, influence, seeds)[1].any(axis=1) for seeds in looks)
        found.append(np.stack(list(by_look)))
    ever = np.logical_or.accumulate(np.concatenate(found, axis=1), axis=0)
    return [float(ever[looks.index(most)].mean()) for most in (MIN_SEEDS, *UP_TO)]


def forecast(world: World, n: int, repetitions: int) -> list[bool]:
    """Whether each forecast of at most as many seeds as ever run came true."""
    came_true = []
    for scores, influence in _drawn(world, n, repetitions, BETTER, rng_seed=1):
        crossed, shown = _judged(world, scores, influence, MIN_SEEDS)
        shared = shared_seeds(crossed)
        for i, pair in np.argwhere(~_settled(crossed, shown)):
            more = _single(crossed, i, pair).seeds_to_settle(
                MARGIN, ALPHA / len(PAIRS), Shared(shared.seed[i, 0], shared.df[i, 0])
            )
            if more is not None and MIN_SEEDS + more <= UP_TO[-1]:
                one = slice(i, i + 1)
                later = _judged(world, scores[one], influence[one], MIN_SEEDS + more)
                came_true.append(bool(_settled(*later)[0, pair]))
    return came_true


def _judged(world: World, scores: Array, influence: Array, seeds: int) -> tuple[Crossed, Shown]:
    """As by `shown_pairs`, of the first `seeds` seeds."""
    return shown_pairs(world, scores[..., :seeds], influence[..., :seeds, :])


def _settled(crossed: Crossed, shown: Shown) -> Shown:
    """Which pairs are better, worse or a tie: (repetitions, pairs)."""
    low, high = crossed.interval()
    return shown | ((low >= -MARGIN) & (high <= MARGIN))


def _single(crossed: Crossed, i: int, pair: int) -> Crossed:
    names = ("mean", "seed", "example", "interaction")
    values = {name: getattr(crossed, name)[i, pair] for name in names}
    return dataclasses.replace(crossed, **values)


HEAD = """\
| metric | dev | 3 seeds | up to 10 · 20 · 40, watched | forecasts | came true |
|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table; the number of repetitions may be given."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(HEAD)
    for world in WORLDS.values():
        for n in DEV:
            once, *later = (100 * share for share in watched(world, n, repetitions))
            came_true = forecast(world, n, repetitions)
            cells = (
                f"{once:.1f}",
                " · ".join(f"{share:.1f}" for share in later),
                f"{len(came_true):,}",
                f"{100 * np.mean(came_true):.0f}" if came_true else "–",
            )
            print(f"| {world.metric} | {n:,} | {' | '.join(cells)} |", flush=True)
    cpu_s = time.process_time()
    print(f"{repetitions} repetitions, {cpu_s:.0f} s of processor", file=sys.stderr)


if __name__ == "__main__":
    main()
