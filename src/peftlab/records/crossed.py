"""How sure a mean over seeds and dev examples is: crossed random effects.

    d_s = δ + α_s + mean_i(β_i + γ_si)        seeds s = 1..S, examples i = 1..n
    V   = A + B - C     A = s²(d) / S,  B = var_i(mean_s u_si) / n,  C = MS(γ) / (S n)

d_s is a score, or a difference of two, under seed s on all examples; u_si is the influence of
example i on it (influence.py), an estimate of β_i + γ_si. New seeds and new examples both move d.
A and B each contain the interaction γ once, so C is taken off once.

A has S - 1 degrees of freedom, B and C have many. Weighing t quantiles by them, as Banerjee does,

    half² = t²(S - 1) · (max(A, C) - λ C) + t²(n - 1) · (B - (1 - λ) C)₊

With λ = 0 the two parts are independent and Banerjee's inequality holds at every level: p is the
level at which half = |d|, and is never too small. But then all of γ, which the many examples
estimate well, is weighed by the quantile of the few seeds, and with three seeds a 95 % interval
covers 97 to 99 %. With λ = 1 three seeds that agree by chance make it too short. The interval takes
λ = 3/4: of 0, 1/4 .. 1 the largest that covers 93 % of normal data whatever the ratios of α, β and
γ (least 93.7; 1 covers 91.0). Its half is never longer than that of λ = 0, so p < .05 implies an
interval without 0.

With three seeds t(2) is 10.9 at the level of six pairs, so p is computed a second time, with the
variance over seeds that all rows share (`Shared`), never below the pair's own, and the smaller of
the two is doubled. The first p alone ignores what rows have in common; the second alone would let
one unsteady row hide the differences of all others. Two seeds have one degree of freedom: there the
interval is the shorter of the two that the own variance and the shared one make.

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
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
LAMBDA = 0.75  # share of C that is taken off the seeds' part, in intervals
RULE_OF_THREE = 1.5  # / n, the standard error if 0 of n are seen: twice it is 3 / n, the 95 % end
MIN_SEEDS = 3  # for a verdict, and for an interval by a row's or a pair's own seeds alone
MOST_SEEDS = 100  # that are ever advised


class _Parts(NamedTuple):
    """What seeds and examples add to the variance of the mean, and the degrees of freedom."""

    seeds: Array
    examples: Array
    df: Array  # of `seeds`


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over `n_seeds` seeds and `n_examples` examples, and the mean squares of its parts.

    With one seed `seed` and `interaction` are 0, and with fewer than three they count only beside
    what the rows share: else the examples alone are covered.
    """

    mean: Array
    seed: Array  # s²(d)
    example: Array  # variance over examples of the mean influence over seeds
    interaction: Array  # MS(γ), the mean square of what is neither
    n_seeds: int
    n_examples: int

    @classmethod
    def of(cls, d: Array, u: Array, grain: float = 0.0) -> Self:
        """The effects of values d (..., S) with influences u (..., S, n), which have a mean of 0.

        Args:
            d: one value a seed.
            u: the influence of every example on it.
            grain: a third of how much other answers to three examples change d. The standard error
                from the examples is at least 1.5 times that: where none of n answers differs, up
                to 3 / n of them may (the rule of three).
        """
        n_seeds, n = u.shape[-2:]
        mean_u = u.mean(axis=-2)
        example = mean_u.var(axis=-1, ddof=1) if n > 1 else np.zeros(d.shape[:-1])
        seed, interaction = np.zeros(d.shape[:-1]), np.zeros(d.shape[:-1])
        if n_seeds > 1:
            seed = d.var(axis=-1, ddof=1)
            residual = np.square(u).sum(axis=(-2, -1)) - n_seeds * np.square(mean_u).sum(axis=-1)
            interaction = np.maximum(residual, 0) / ((n_seeds - 1) * max(1, n - 1))
        return cls(
            mean=d.mean(axis=-1),
            seed=seed,
            example=np.maximum(example, n * (RULE_OF_THREE * grain) ** 2),
            interaction=interaction,
            n_seeds=n_seeds,
            n_examples=n,
        )

    def _variances(self) -> tuple[Array, Array, Array]:
        """A, B and C."""
        return (
            self.seed / self.n_seeds,
            self.example / self.n_examples,
            self.interaction / (self.n_seeds * self.n_examples),
        )

    def interval(self, level: float = 0.95, shared: Shared | None = None) -> tuple[Array, Array]:
        """The low and the high end of the interval of that level.

        Args:
            level: how often such intervals hold the truth.
            shared: the rows' seed noise, which counts where there are fewer than three seeds.
        """
        alpha = np.asarray(1 - level)
        half = np.minimum.reduce([self._half(parts, alpha) for parts in self._parts(shared)])
        return self.mean - half, self.mean + half

    def covers_seeds(self, shared: Shared | None) -> bool:
        """Whether the interval covers other seeds, and not the examples alone."""
        return self.n_seeds >= MIN_SEEDS or (self.n_seeds > 1 and shared is not None)

    def _parts(self, shared: Shared | None) -> list[_Parts]:
        """The parts of the interval, by the own variance over seeds and, of two, the shared one."""
        a, b, c = self._variances()
        own = np.asarray(float(max(1, self.n_seeds - 1)))
        if not self.covers_seeds(shared):
            return [_Parts(np.zeros_like(a), b, own)]
        seed_variances = [(a, own)]
        if self.n_seeds < MIN_SEEDS:
            assert shared is not None
            seed_variances.append((shared.seed / self.n_seeds, shared.df * own))
        examples = np.maximum(b - (1 - LAMBDA) * c, 0)
        return [_Parts(np.maximum(a, c) - LAMBDA * c, examples, df) for a, df in seed_variances]

    def p(self, shared: Shared | None = None) -> Array:
        """The two-sided p of a mean of 0; 1 where the mean is 0.

        Args:
            shared: the rows' seed noise, where there are more than two rows.
        """
        values = [self._p(parts) for parts in self._tests(shared)]
        return values[0] if shared is None else np.minimum(1, 2 * np.minimum(*values))

    def _tests(self, shared: Shared | None) -> list[_Parts]:
        """The parts with λ = 0: by the row's own variance over seeds, and by the shared one."""
        _, b, c = self._variances()
        seed_variances = [(self.seed, np.asarray(float(max(1, self.n_seeds - 1))))]
        if shared is not None:
            df = shared.df * (self.n_seeds - 1)
            seed_variances.append((np.maximum(self.seed, shared.seed), df))
        return [
            _Parts(np.maximum(seed / self.n_seeds, c), np.maximum(b - c, 0), df)
            for seed, df in seed_variances
        ]

    def _p(self, parts: _Parts) -> Array:
        low, high = np.full(np.shape(self.mean), -40.0), np.zeros(np.shape(self.mean))
        for _ in range(30):  # bisection of log p: half falls as the level rises
            middle = (low + high) / 2
            is_shown = self._half(parts, np.exp(middle)) <= abs(self.mean)
            low, high = np.where(is_shown, low, middle), np.where(is_shown, middle, high)
        return np.asarray(np.where(self.mean == 0, 1.0, np.exp(high)))

    def _half(self, parts: _Parts, alpha: Array) -> Array:
        t_seeds = stdtrit(parts.df, alpha / 2)
        t_examples = stdtrit(max(1, self.n_examples - 1), alpha / 2)
        return np.asarray(np.sqrt(t_seeds**2 * parts.seeds + t_examples**2 * parts.examples))

    def seeds_to_settle(
        self, margin: float, alpha: float = 0.05, shared: Shared | None = None
    ) -> int | None:
        """How many more seeds would settle a single comparison, if they varied as these do.

        Settled means shown better, worse, or within ± margin. None if even `MOST_SEEDS` would not
        do, as where the dev set is too small. With fewer than `MIN_SEEDS`, how many are missing:
        the seeds' own variance and the interaction can't be told apart yet.

        Args:
            margin: differences within ± margin count as equal; in the metric's unit.
            alpha: the level of p, .05 over the number of pairs.
            shared: as for `p`.
        """
        if self.n_seeds < MIN_SEEDS:
            return MIN_SEEDS - self.n_seeds
        seed_alone = np.maximum(self.seed - self.interaction / self.n_examples, 0)  # of α
        example_alone = np.maximum(self.example - self.interaction / self.n_seeds, 0)  # of β
        for n in range(self.n_seeds + 1, MOST_SEEDS + 1):
            more = dataclasses.replace(
                self,
                n_seeds=n,
                seed=seed_alone + self.interaction / self.n_examples,
                example=example_alone + self.interaction / n,
            )
            low, high = more.interval()
            excludes_0 = not low <= 0 <= high
            if within(low, high, margin) or (excludes_0 and more._is_shown(alpha, shared)):
                return n - self.n_seeds
        return None

    def _is_shown(self, alpha: float, shared: Shared | None) -> bool:
        """Whether p <= alpha, without the bisection that p takes."""
        level = np.asarray(alpha if shared is None else alpha / 2)
        return any(
            bool(self._half(parts, level) <= abs(self.mean)) for parts in self._tests(shared)
        )


def within(low: float | Array, high: float | Array, margin: float) -> bool:
    """Whether all of the interval counts as equal: it lies within ± margin."""
    return bool(-margin <= low and high <= margin)


@dataclasses.dataclass(frozen=True)
class Shared:
    """The variance over seeds that the rows of a task share.

    Attributes:
        seed: mean over all pairs of their difference's variance.
        df: its degrees of freedom for each seed but one: one less than there are rows where all
            vary alike, 1 where a single row does.
    """

    seed: Array
    df: Array

    @classmethod
    def of(cls, variances: Array, pairs: Sequence[tuple[int, int]]) -> Self:
        """From the variances over seeds of the differences (..., pairs) of numbered rows.

        A difference's is the sum of its rows', v_a + v_b: what a seed does to all rows alike
        cancels in it. The mean over all pairs of k rows is then 2 / (k - 1) times the trace of a
        Wishart matrix of P diag(v) P, P = 1 - 1/k, of which Satterthwaite's degrees of freedom are

            ((1 - 1/k) Σ v)² / ((1 - 2/k) Σ v² + (Σ v)² / k²)        for each seed but one
        """
        k = 1 + max(map(max, pairs))
        rows = np.zeros((len(pairs), k))
        for row, pair in zip(rows, pairs, strict=True):
            row[list(pair)] = 1
        v = np.maximum(variances @ np.linalg.pinv(rows).T, 0)
        total, squares = v.sum(axis=-1), np.square(v).sum(axis=-1)
        below = (1 - 2 / k) * squares + np.square(total / k)
        above = np.square((1 - 1 / k) * total)
        df = np.divide(above, below, out=np.ones(np.shape(below)), where=below > 0)
        return cls(variances.mean(axis=-1), df)


def half_width(parts: Sequence[Crossed], weights: Sequence[float]) -> float:
    """Half of the 95 % interval of Σ w_k m_k over independent means m_k.

    Several tasks have degrees of freedom enough for Satterthwaite's formula; Banerjee's intervals,
    made for one task, would be far longer.
    """
    total, below = 0.0, 0.0  # df = (Σ v)² / Σ (v² / df of v)
    for part, weight in zip(parts, weights, strict=True):
        a, b, c = (weight**2 * float(variance) for variance in part._variances())
        seeds = max(a - c, 0) if part.n_seeds >= MIN_SEEDS else 0.0
        total += seeds + b
        below += seeds**2 / max(1, part.n_seeds - 1) + b**2 / max(1, part.n_examples - 1)
    return -float(stdtrit(total**2 / below, 0.025)) * total**0.5 if total else 0.0


def holm(p: list[float]) -> list[float]:
    """Holm's (1979) step-down p values: at level alpha, P(no false verdict at all) >= 1 - alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
