"""How sure a mean over seeds and dev examples is: crossed random effects.

    d_s = δ + α_s + mean_i(β_i + γ_si)        seeds s = 1..S, examples i = 1..n
    V   = A + B - C     A = s²(d) / S,  B = var_i(mean_s u_si) / n,  C = MS(γ) / (S n)

d_s is a score, or a difference of two, under seed s on all examples; u_si is the influence of
example i on it (influence.py), an estimate of β_i + γ_si. Seeds that are run again and examples
that are drawn again both move d. A and B each hold the interaction γ once: it is taken off once.

A has S - 1 degrees of freedom, B and C have many. Weighing t quantiles by them, as Banerjee does,

    half² = t²(S - 1) · (max(A, C) - λ C) + t²(n - 1) · (B - (1 - λ) C)₊

With λ = 0 the two parts are independent and Banerjee's inequality holds at every level: p is the
level at which half = |d|, and is never too small. But all of γ, of which the examples tell much,
then weighs by the quantile of the few seeds, and three seeds make a 95 % interval cover 97 to 99 %.
With λ = 1 three seeds that agree by chance make it too short. The interval takes λ = 3/4: of 0,
1/4 .. 1 the largest that covers 93 % of normal data whatever the ratios of α, β and γ (least 93.7;
1 covers 91.0). As its half is never the longer one, p < .05 implies an interval without 0.

With three seeds t(2) is 10.9 at the level of six pairs, so p is taken a second time with seeds'
variance shared by all rows (`Shared`), never below the pair's own, and the smaller of the two is
doubled. The former alone misses what rows have in common, the latter lets one unsteady row hide
all others.

Papers     Cornfield & Tukey 1956, "Average values of mean squares in factorials"; Owen 2007, "The
           pigeonhole bootstrap", arXiv:0712.1111 (resampling both factors estimates V as well,
           with C counted too often); Banerjee 1960, "Approximate confidence interval for linear
           functions of means of k populations when the population variances are not equal";
           Satterthwaite 1946 (degrees of freedom of a sum of variances)
Shapes     d (..., S), u (..., S, n); all results (...,)
Measured   experiments/coverage_of_verdicts.py, docs/verdicts.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
OF_SEEDS = 0.75  # λ
RULE_OF_THREE = 1.5  # standard errors of 1 / n: half of a 95 % interval where none of n is seen
MIN_SEEDS = 3  # seeds; two have one degree of freedom, and an interval 12.7 standard errors wide


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over `n_seeds` seeds and `n_examples` examples, and the mean squares of its parts.

    With fewer than three seeds `seed` and `interaction` are 0: the examples alone are covered.
    """

    mean: Array
    seed: Array  # s² over seeds
    example: Array  # variance over examples of the mean influence
    interaction: Array  # mean square of what is neither
    n_seeds: int
    n_examples: int

    @classmethod
    def of(cls, d: Array, u: Array, grain: float = 0.0) -> Self:
        """From the values d (..., S) and the influences u (..., S, n), each with a mean of 0.

        Args:
            d: one value a seed.
            u: of every example on it.
            grain: by how much another answer to one example changes d; `example` is held at or
                above what one and a half such answers give: that none of n changed here leaves
                3 / n of them.
        """
        n_seeds, n = u.shape[-2:]
        over_seeds = u.mean(axis=-2)
        example = over_seeds.var(axis=-1, ddof=1) if n > 1 else np.zeros(d.shape[:-1])
        seed, interaction = np.zeros(d.shape[:-1]), np.zeros(d.shape[:-1])
        if n_seeds >= MIN_SEEDS:
            seed = d.var(axis=-1, ddof=1)
            rest = np.square(u).sum(axis=(-2, -1)) - n_seeds * np.square(over_seeds).sum(axis=-1)
            interaction = np.maximum(rest, 0) / ((n_seeds - 1) * max(1, n - 1))
        return cls(
            mean=d.mean(axis=-1),
            seed=seed,
            example=np.maximum(example, n * (RULE_OF_THREE * grain) ** 2),
            interaction=interaction,
            n_seeds=n_seeds,
            n_examples=n,
        )

    def _terms(self) -> tuple[Array, Array, Array]:
        """A, B and C."""
        return (
            self.seed / self.n_seeds,
            self.example / self.n_examples,
            self.interaction / (self.n_seeds * self.n_examples),
        )

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high end of the interval of that level."""
        a, b, c = self._terms()
        df = np.asarray(float(max(1, self.n_seeds - 1)))
        seeds, examples = np.maximum(a, c) - OF_SEEDS * c, np.maximum(b - (1 - OF_SEEDS) * c, 0)
        half = self._half(seeds, examples, np.asarray(1 - level), df)
        return self.mean - half, self.mean + half

    def p(self, shared: Shared | None = None) -> Array:
        """Of the mean being 0, two-sided; 1 where it is 0.

        Args:
            shared: the rows' seed noise, where there are more than two.
        """
        found = [self._p(*parts) for parts in self._ways(shared)]
        return found[0] if shared is None else np.minimum(1, 2 * np.minimum(*found))

    def _ways(self, shared: Shared | None) -> list[tuple[Array, Array, Array]]:
        """The parts of seeds and of examples with λ = 0, and the former's degrees of freedom."""
        _, b, c = self._terms()
        variances = [(self.seed, np.asarray(float(max(1, self.n_seeds - 1))))]
        if shared is not None:
            df = np.maximum(1, shared.rows * (self.n_seeds - 1))
            variances.append((np.maximum(self.seed, shared.seed), df))
        return [
            (np.maximum(seed / self.n_seeds, c), np.maximum(b - c, 0), df) for seed, df in variances
        ]

    def _p(self, seeds: Array, examples: Array, df: Array) -> Array:
        low, high = np.full(np.shape(self.mean), -40.0), np.zeros(np.shape(self.mean))
        for _ in range(30):  # bisection of log p: half falls as the level rises
            middle = (low + high) / 2
            beyond = self._half(seeds, examples, np.exp(middle), df) <= abs(self.mean)
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return np.asarray(np.where(self.mean == 0, 1.0, np.exp(high)))

    def _half(self, seeds: Array, examples: Array, alpha: Array, df: Array) -> Array:
        t_examples = stdtrit(max(1, self.n_examples - 1), alpha / 2)
        return np.asarray(np.sqrt(stdtrit(df, alpha / 2) ** 2 * seeds + t_examples**2 * examples))

    def seeds_to_settle(
        self, margin: float, alpha: float = 0.05, shared: Shared | None = None, most: int = 100
    ) -> int | None:
        """How many more seeds would settle a single comparison, if they varied as these do.

        Settled means shown better, worse, or within ± margin. None if even `most` seeds would not
        do, as where the dev set is too small. With fewer than `MIN_SEEDS`, how many are missing:
        the seeds' own variance and the interaction can't be told apart yet.

        Args:
            margin: what counts as equal, in the metric's unit.
            alpha: that p must not exceed, .05 over the number of pairs.
            shared: as for `p`.
            most: seeds in all.
        """
        if self.n_seeds < MIN_SEEDS:
            return MIN_SEEDS - self.n_seeds
        seed = np.maximum(self.seed - self.interaction / self.n_examples, 0)  # of α alone
        example = np.maximum(self.example - self.interaction / self.n_seeds, 0)  # of β alone
        for n in range(self.n_seeds + 1, most + 1):
            then = dataclasses.replace(
                self,
                n_seeds=n,
                seed=seed + self.interaction / self.n_examples,
                example=example + self.interaction / n,
            )
            low, high = then.interval()
            if within(low, high, margin) or (not low <= 0 <= high and then._shown(alpha, shared)):
                return n - self.n_seeds
        return None

    def _shown(self, alpha: float, shared: Shared | None) -> bool:
        """Whether p <= alpha."""
        level = np.asarray(alpha if shared is None else alpha / 2)
        ways = self._ways(shared)
        return any(
            bool(self._half(seeds, examples, level, df) <= abs(self.mean))
            for seeds, examples, df in ways
        )


def within(low: float | Array, high: float | Array, margin: float) -> bool:
    """Whether the interval is one of values that count as equal."""
    return bool(-margin <= low and high <= margin)


@dataclasses.dataclass(frozen=True)
class Shared:
    """What rows have in common in how much seeds move them.

    Attributes:
        seed: mean variance over seeds of all pairs' differences.
        rows: how many rows it is of, were all alike: (Σ v)² / Σ v² of their variances over seeds.
    """

    seed: Array
    rows: Array

    @classmethod
    def of(cls, pairs: Array, rows: Array) -> Self:
        """From variances over seeds: of differences (..., pairs) and of the rows (..., rows)."""
        squares = np.square(rows).sum(axis=-1)
        alike = np.divide(
            np.square(rows.sum(axis=-1)), squares, out=np.ones(np.shape(squares)), where=squares > 0
        )
        return cls(pairs.mean(axis=-1), alike)


def half_width(parts: Sequence[Crossed], weights: Sequence[float]) -> float:
    """Half of the 95 % interval of Σ w_k m_k over independent means m_k.

    Several tasks have degrees of freedom enough for Satterthwaite's formula, which Banerjee's
    intervals, made for one task, would exceed by far.
    """
    total, below = 0.0, 0.0
    for part, weight in zip(parts, weights, strict=True):
        a, b, c = (weight**2 * float(term) for term in part._terms())
        total += max(a - c, 0) + b
        below += max(a - c, 0) ** 2 / max(1, part.n_seeds - 1) + b**2 / max(1, part.n_examples - 1)
    return -float(stdtrit(total**2 / below, 0.025)) * total**0.5 if total else 0.0


def holm(p: list[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p values: no false verdict among all with 1 - alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
