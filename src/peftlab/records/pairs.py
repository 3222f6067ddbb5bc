"""Verdicts on every pair of rows on every task: which is better, and how sure that is.

Verdict    of a, by difference = a - b of the task's main metric after the last epoch, paired by
           seed and by example:
             tie      the 95 % interval lies within ± margin, whatever p is
             better   else, and p <= .05 (worse likewise; of an error less is better)
             unclear  else, or with fewer than three seeds, or without predictions
p          of no difference, corrected by Holm's (1979) step-down. The family is the pairs of one
           task that have three seeds in common. Other pairs can't be decided and are no part of
           it; neither are other tasks, each a question of its own. Rows that were compared but are
           not requested are part of it: whoever picks the best and the worst has looked at all.
interval   95 %, of this pair alone, not corrected; it covers seeds and dev examples (crossed.py),
           two seeds by what three rows and more share; else, and with one, the examples alone
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS, Crossed, Shared, holm, within
from peftlab.records.rows import LOWER_IS_BETTER, MARGIN, TaskKey, is_collapsed, merit
from peftlab.records.table import Runs, RunsByRow, scale

ALPHA = 0.05
Standing = Literal["best", "tie", "unclear", "worse"]
NO_PREDICTIONS, NO_COMMON_SEED = "no predictions", "no seed in common"  # what a verdict may lack


def unclear(lacks: str = "") -> str:
    """The verdict that says nothing, and what it lacks."""
    return f"unclear: {lacks}" if lacks else "unclear"


def split_verdict(verdict: str) -> tuple[str, str]:
    """The word of a verdict, and what it lacks.

    >>> split_verdict(unclear(NO_PREDICTIONS)), split_verdict("better")
    (('unclear', 'no predictions'), ('better', ''))
    """
    word, _, lacks = verdict.partition(": ")
    return word, lacks


class _Row(NamedTuple):
    """A row of the family; an unrequested row may have the same name as a requested one."""

    name: str
    is_requested: bool


_Pair = tuple[_Row, _Row]


class Verdict(BaseModel, extra="forbid", frozen=True):
    """The verdict on row `a` against row `b` on one task; all numbers in the metric's unit.

    Attributes:
        sha256: of the task's examples.
        seeds: the seeds that the difference is of: both rows have them, with predictions if any.
        difference: mean over them of a - b; without a seed in common, of the two rows' means.
        low: lower end of the 95 % interval, null without predictions.
        high: upper end, likewise.
        covers_seeds: whether the interval covers other seeds, and not the examples alone; null
            without one.
        p: corrected for the number of pairs of the task; null with fewer than three seeds.
        verdict: better, worse, tie, unclear, or unclear with what is missing after a colon.
        margin: differences within ± margin count as a tie.
        more_seeds: how many more would settle it, if they varied as these do; with fewer than three
            how many a verdict lacks; null if it is settled, if no 100 would settle it, or if that
            is not known.
    """

    task: str
    sha256: str
    metric: str
    a: str
    b: str
    seeds: list[int]
    difference: float
    low: float | None
    high: float | None
    covers_seeds: bool | None = None  # some records of comparisons do not say
    p: float | None
    verdict: str
    margin: float
    more_seeds: int | None = None

    def of(self, row: str) -> Verdict:
        """The same verdict, on `row` against the other row.

        >>> Verdict(task="t", sha256="", metric="rmse", a="x", b="y", seeds=[], difference=1.0,
        ...         low=0.5, high=2.0, p=0.01, verdict="worse", margin=0.1).of("y").verdict
        'better'
        """
        if row == self.a:
            return self
        opposite = {"better": "worse", "worse": "better"}
        return self.model_copy(
            update={
                "a": self.b,
                "b": self.a,
                "verdict": opposite.get(self.verdict, self.verdict),
                "difference": -self.difference,
                "low": _negate(self.high),
                "high": _negate(self.low),
            }
        )

    @property
    def worst(self) -> float | None:
        """By how much a may be worse than b at most, at 95 %; never below 0, None if not known."""
        return None if self.deficit is None else max(0.0, self.deficit)

    @property
    def deficit(self) -> float | None:
        """How far a is behind b at the unfavourable end of the interval; below 0 if ahead there."""
        return self.high if self.metric in LOWER_IS_BETTER else _negate(self.low)

    @property
    def is_behind(self) -> bool:
        """Whether a lies behind b by this pair alone: no tie, and its interval excludes 0.

        This is weaker than *worse*, which is corrected for all pairs. Without an interval the
        difference itself decides: whether it exceeds the margin.
        """
        if self.verdict == "tie":
            return False
        if self.low is None or self.high is None:
            return merit(self.metric, self.difference) < -self.margin
        return self.low > 0 if self.metric in LOWER_IS_BETTER else self.high < 0


Verdicts = dict[TaskKey, list[Verdict]]


def _negate(value: float | None) -> float | None:
    return None if value is None else -value


def verdicts(
    columns: Mapping[TaskKey, RunsByRow],
    margin: float = MARGIN,
    unrequested: Mapping[TaskKey, RunsByRow] = MappingProxyType({}),
) -> Verdicts:
    """The verdict on every pair of rows that share a task, in the tasks' and the rows' order.

    Args:
        columns: of `table.columns`.
        margin: differences within ± margin count as a tie. For an error it is a share of the
            baseline's error (without a baseline, of the pair's mean), else in the score's unit.
        unrequested: the rows that were compared too, and that no verdict is to be given on.
    """
    return {
        task: _task_verdicts(column, margin, unrequested.get(task, {}))
        for task, column in columns.items()
    }


def verdict_between(pairs: Sequence[Verdict], row: str, other: str) -> Verdict | None:
    """The verdict on `row` against `other` among a task's; None for a row against itself."""
    matches = (pair.of(row) for pair in pairs if {pair.a, pair.b} == {row, other})
    return next(matches, None)


def standing(row: str, best: str, pairs: Sequence[Verdict]) -> Standing:
    """Where `row` stands on the verdicts' task, of which `best` has the best mean.

    It is the best, ties with it, or is worse, which is said if any row is shown to be better.
    """
    verdict = verdict_between(pairs, row, best)
    if verdict is None:
        return "best"
    if verdict.verdict == "tie":
        return "tie"
    return "worse" if better_than(row, pairs) else "unclear"


def better_than(row: str, pairs: Sequence[Verdict]) -> set[str]:
    """The rows that are shown to be better than `row` on the verdicts' task."""
    verdicts_on_row = [pair.of(row) for pair in pairs if row in (pair.a, pair.b)]
    return {verdict.b for verdict in verdicts_on_row if verdict.verdict == "worse"}


def _task_verdicts(column: RunsByRow, margin: float, unrequested: RunsByRow) -> list[Verdict]:
    family = {_Row(name, True): runs for name, runs in column.items()}
    family |= {_Row(name, False): runs for name, runs in unrequested.items()}
    scored = {row: runs for row, runs in family.items() if runs.by_seed}
    effects = {
        (a, b): scored[a].crossed(minus=scored[b]) for a, b in itertools.combinations(scored, 2)
    }
    repeated = {pair: c for pair, c in effects.items() if c is not None and c.n_seeds > 1}
    tested = {pair: c for pair, c in repeated.items() if c.n_seeds >= MIN_SEEDS}
    unsteady = {row for row, runs in scored.items() if any(map(is_collapsed, runs.records))}
    shared = _shared_seeds(tested, unsteady)
    corrected = holm([float(c.p(shared.get(pair))) for pair, c in tested.items()])
    p = dict(zip(tested, corrected, strict=True))
    shared = _shared_seeds(repeated, unsteady) | shared
    return [
        _verdict(
            (a.name, scored[a]),
            (b.name, scored[b]),
            crossed=crossed,
            p=p.get((a, b)),
            margin=_margin(margin, scored[a], scored[b]),
            alpha=ALPHA / max(1, len(tested)),
            shared=shared.get((a, b)),
        )
        for (a, b), crossed in effects.items()
        if a.is_requested and b.is_requested
    ]


def _shared_seeds(
    effects: Mapping[_Pair, Crossed], unsteady: Collection[_Row]
) -> dict[_Pair, Shared]:
    """The variance over seeds that each pair shares with others; a pair alone has no entry.

    That of the `unsteady` rows, of which a run collapsed, says nothing about rows without one.
    """
    sound = {pair: c for pair, c in effects.items() if not any(row in unsteady for row in pair)}
    of_all, of_sound = _shared(effects), _shared(sound)
    of_pairs = {pair: of_sound if pair in sound else of_all for pair in effects}
    return {pair: shared for pair, shared in of_pairs.items() if shared is not None}


def _shared(effects: Mapping[_Pair, Crossed]) -> Shared | None:
    if len(effects) < 2:
        return None
    numbers = {row: n for n, row in enumerate(dict.fromkeys(itertools.chain(*effects)))}
    pairs = [(numbers[a], numbers[b]) for a, b in effects]
    return Shared.of(np.array([c.seed for c in effects.values()]), pairs)


def _margin(margin: float, a: Runs, b: Runs) -> float:
    """The margin in the metric's unit."""
    if a.task.main_metric not in LOWER_IS_BETTER:
        return margin
    task_scale = scale(a.task)
    return margin * (task_scale[1] if task_scale else (a.mean + b.mean) / 2)


def _verdict(
    named_a: tuple[str, Runs],
    named_b: tuple[str, Runs],
    *,
    crossed: Crossed | None,
    p: float | None,
    margin: float,
    alpha: float,
    shared: Shared | None,
) -> Verdict:
    (name_a, a), (name_b, b) = named_a, named_b
    seeds = [seed for seed in a.by_seed if seed in b.by_seed]
    low, high, covers_seeds, more_seeds = None, None, None, None
    if crossed is not None:
        seeds = [seed for seed in a.seeds_with_predictions if seed in b.seeds_with_predictions]
        low, high = (float(end) for end in crossed.interval(shared=shared))
        covers_seeds = crossed.covers_seeds(shared)
    differences = [a.by_seed[seed].score - b.by_seed[seed].score for seed in seeds]
    verdict = _decide(a.task.main_metric, seeds, (low, high), p, margin)
    if crossed is not None and split_verdict(verdict)[0] == "unclear":
        more_seeds = crossed.seeds_to_settle(margin, alpha, shared)
    return Verdict(
        task=a.task.name,
        sha256=a.task.sha256,
        metric=a.task.main_metric,
        a=name_a,
        b=name_b,
        seeds=seeds,
        difference=math.fsum(differences) / len(differences) if differences else a.mean - b.mean,
        low=low,
        high=high,
        covers_seeds=covers_seeds,
        p=p,
        verdict=verdict,
        margin=margin,
        more_seeds=more_seeds,
    )


def _decide(
    metric: str,
    seeds: list[int],
    interval: tuple[float | None, float | None],
    p: float | None,
    margin: float,
) -> str:
    low, high = interval
    if not seeds:
        return unclear(NO_COMMON_SEED)
    if low is None or high is None:
        return unclear(NO_PREDICTIONS)
    if p is None:
        return unclear(counted(len(seeds), "seed"))
    if within(low, high, margin):
        return "tie"
    if p <= ALPHA and (low > 0 or high < 0):
        return "better" if merit(metric, low) > merit(metric, 0) else "worse"
    return unclear()
