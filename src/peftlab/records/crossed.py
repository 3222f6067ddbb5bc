"""How sure a mean over seeds and dev examples is: crossed random effects.

    d_s = δ + α_s + mean_i(β_i + γ_si)        seeds s = 1..S, examples i = 1..n
    V   = s²(d) / S + var_i(mean_s u_si) / n - MS(γ) / (S n)

d_s is a score, or a difference of two, under seed s on all examples; u_si is the influence of
example i on it (influence.py), an estimate of β_i + γ_si. Seeds that are run again and examples
that are drawn again both move d; the first two terms each hold the interaction γ once, so it is
taken off once.

Papers     Cornfield & Tukey 1956, "Average values of mean squares in factorials"; Owen 2007, "The
           pigeonhole bootstrap", arXiv:0712.1111 (resampling both factors estimates this V, with
           the interaction counted too often); Satterthwaite 1946 (degrees of freedom)
Shapes     d (..., S), u (..., S, n); all results (...,)
Departs    V is not taken below the larger of its first two terms
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]
FEWEST = 3  # seeds; two have one degree of freedom, and an interval 12.7 standard errors wide


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

    @staticmethod
    def of(d: Array, u: Array, grain: float = 0.0) -> Crossed:
        """From the values d (..., S) and the influences u (..., S, n), each with a mean of 0.

        Args:
            d: one value a seed.
            u: of every example on it.
            grain: by how much one example changes d at least; `example` is held at or above what
                one changed answer gives, since that none changed here proves nothing of others.
        """
        n_seeds, n = u.shape[-2:]
        over_seeds = u.mean(axis=-2)
        example = over_seeds.var(axis=-1, ddof=1) if n > 1 else np.zeros(d.shape[:-1])
        seed, interaction = np.zeros(d.shape[:-1]), np.zeros(d.shape[:-1])
        if n_seeds >= FEWEST:
            seed = d.var(axis=-1, ddof=1)
            rest = np.square(u).sum(axis=(-2, -1)) - n_seeds * np.square(over_seeds).sum(axis=-1)
            interaction = np.maximum(rest, 0) / ((n_seeds - 1) * max(1, n - 1))
        return Crossed(
            mean=d.mean(axis=-1),
            seed=seed,
            example=np.maximum(example, n * grain**2),
            interaction=interaction,
            n_seeds=n_seeds,
            n_examples=n,
        )

    def _terms(self) -> tuple[Array, Array, Array]:
        """The three terms of V, and their degrees of freedom in `df`."""
        return (
            self.seed / self.n_seeds,
            self.example / self.n_examples,
            self.interaction / (self.n_seeds * self.n_examples),
        )

    @property
    def variance(self) -> Array:
        """V, of the mean."""
        seed, example, both = self._terms()
        return np.maximum(seed + example - both, np.maximum(seed, example))

    @property
    def df(self) -> Array:
        """Satterthwaite's degrees of freedom of V; infinite where V is 0."""
        seeds, examples = max(1, self.n_seeds - 1), max(1, self.n_examples - 1)
        freedoms = (seeds, examples, seeds * examples)
        below = sum(np.square(term) / df for term, df in zip(self._terms(), freedoms, strict=True))
        return _quotient(np.square(self.variance), np.asarray(below))

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high end of the interval of that level."""
        half = -stdtrit(_finite(self.df), (1 - level) / 2) * np.sqrt(self.variance)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> Array:
        """Of the mean being 0, two-sided; 1 where it is 0 and certain."""
        t = _quotient(abs(self.mean), np.sqrt(self.variance))
        return np.asarray(np.where(self.mean == 0, 1.0, 2 * stdtr(_finite(self.df), -t)))

    def seeds_to_settle(self, margin: float, level: float = 0.95, most: int = 100) -> int | None:
        """How many more seeds would show it better, worse or within ± margin, were all as now.

        None if even `most` would not, as where the dev set alone is too small; at least as many as
        `FEWEST` asks for. Of one value, not of an array.
        """
        seed = np.maximum(self.seed - self.interaction / self.n_examples, 0)  # of α alone
        example = np.maximum(self.example - self.interaction / self.n_seeds, 0)  # of β alone
        for n in range(max(FEWEST, self.n_seeds + 1), most + 1):
            then = dataclasses.replace(
                self,
                n_seeds=n,
                seed=seed + self.interaction / self.n_examples,
                example=example + self.interaction / n,
            )
            low, high = then.interval(level)
            if low > 0 or high < 0 or (-margin <= low and high <= margin):
                return n - self.n_seeds
        return None


def weighted(parts: list[Crossed], weights: list[float]) -> tuple[float, float, float]:
    """Σ w_k m_k of independent means with its 95 % interval: mean, low, high.

    Terms of every part enter Satterthwaite's formula by themselves through the part's own degrees
    of freedom.
    """
    mean = sum(w * float(part.mean) for part, w in zip(parts, weights, strict=True))
    variances = [w**2 * float(part.variance) for part, w in zip(parts, weights, strict=True)]
    below = sum(v**2 / float(_finite(part.df)) for v, part in zip(variances, parts, strict=True))
    total = sum(variances)
    df = _finite(_quotient(np.asarray(total**2), np.asarray(below)))
    half = -float(stdtrit(df, 0.025)) * total**0.5
    return mean, mean - half, mean + half


def _quotient(above: Array, below: Array) -> Array:
    """The quotient, infinite where nothing is below."""
    return np.divide(above, below, out=np.full(np.shape(below), np.inf), where=below > 0)


def _finite(df: Array) -> Array:
    return np.minimum(df, 1e9)  # scipy's quantile of infinitely many is NaN


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
