"""Which row is better, and how sure that is: every pair of rows on every task.

Verdict    of a, by difference = a - b of the task's main metric after the last epoch, paired by
           seed and by example:
             tie      the 95 % interval lies within ± margin, whatever p is
             better   else, and p <= .05 (worse likewise; of an error less is better)
             unclear  else, or with fewer than three seeds, or without predictions
p          of no difference, corrected by Holm's (1979) step-down. The family is the pairs of one
           task that have three seeds in common; other pairs can't be decided, so they take nothing
           from these, and a task is a question of its own. Rows that were compared too and are not
           asked for are part of it: to look at the best and the worst alone is to have looked at
           all.
interval   95 %, of this pair alone, not corrected; it covers seeds and dev examples (crossed.py),
           with fewer than three seeds the examples alone
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from peftlab.naming import counted
from peftlab.records.crossed import MIN_SEEDS, Crossed, Shared, holm, within
from peftlab.records.rows import LOWER_IS_BETTER, MARGIN, TaskKey, collapsed, merit
from peftlab.records.table import Column, Runs, scale

ALPHA = 0.05


class _Row(NamedTuple):
    """A row of the family; one that was not asked for may have the name of one that was."""

    name: str
    is_asked: bool


class Verdict(BaseModel, extra="forbid", frozen=True):
    """What is known of row `a` against row `b` on one task; all in the metric's unit.

    Attributes:
        sha256: of the task's examples.
        seeds: those that the difference is of: both rows have them, with predictions if any.
        difference: mean over them of a - b; without a seed in common that of the two means.
        low: lower end of the 95 % interval, null without predictions. With fewer than three seeds
            it covers the examples alone.
        high: its upper end.
        p: corrected for the number of pairs of the task; null with fewer than three seeds.
        verdict: better, worse, tie, unclear, or unclear with what is missing after a colon.
        margin: differences within ± margin count as a tie.
        more_seeds: how many more would settle it, were they like these; what a verdict needs at
            least with fewer than three; null if it is settled, if no 100 would, or unknown.
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
    p: float | None
    verdict: str
    margin: float
    more_seeds: int | None = None

    def of(self, row: str) -> Verdict:
        """The same, as of `row` against the other one.

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
                "low": _minus(self.high),
                "high": _minus(self.low),
            }
        )

    @property
    def worst(self) -> float | None:
        """How much worse than b a may be, at most, at 95 %; never below 0, None if not known."""
        return None if self.deficit is None else max(0.0, self.deficit)

    @property
    def deficit(self) -> float | None:
        """The unfavourable end of the interval: b less a, below 0 where a is ahead even there."""
        return self.high if self.metric in LOWER_IS_BETTER else _minus(self.low)

    @property
    def is_behind(self) -> bool:
        """Whether a lies behind b by this pair alone: no tie, and its interval leaves out 0.

        Less than *worse* asks for, which is corrected for all pairs. Without an interval it is the
        difference itself, beyond the margin.
        """
        if self.verdict == "tie":
            return False
        if self.low is None or self.high is None:
            return merit(self.metric, self.difference) < -self.margin
        return self.high < 0 if self.metric not in LOWER_IS_BETTER else self.low > 0


Verdicts = dict[TaskKey, list[Verdict]]


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def verdicts(
    columns: Mapping[TaskKey, Column],
    margin: float = MARGIN,
    beside: Mapping[TaskKey, Column] = MappingProxyType({}),
) -> Verdicts:
    """Of every pair of rows that share a task, in the tasks' and the rows' order.

    Args:
        columns: of `table.columns`.
        beside: the rows that were compared too and are not asked for.
        margin: what counts as equal, as a share: of an error it is one of the baseline's error
            (without a baseline, of the pair's mean), of all else in the score's own unit.
    """
    return {
        task: _of_task(column, margin, beside.get(task, {})) for task, column in columns.items()
    }


def against(pairs: Sequence[Verdict], row: str, other: str) -> Verdict | None:
    """Of a task's verdicts that of `row` against `other`; None of a row against itself."""
    found = (one.of(row) for one in pairs if {one.a, one.b} == {row, other})
    return next(found, None)


def better_than(row: str, pairs: Sequence[Verdict]) -> set[str]:
    """The rows that are shown to be better than it on the verdicts' task."""
    own = [one.of(row) for one in pairs if row in (one.a, one.b)]
    return {one.b for one in own if one.verdict == "worse"}


def _of_task(column: Column, margin: float, beside: Column) -> list[Verdict]:
    family = {_Row(name, True): runs for name, runs in column.items()}
    family |= {_Row(name, False): runs for name, runs in beside.items()}
    scored = {row: runs for row, runs in family.items() if runs.by_seed}
    pairs = list(itertools.combinations(scored, 2))
    found = {(a, b): scored[a].crossed(minus=scored[b]) for a, b in pairs}
    sure = {pair: c for pair, c in found.items() if c is not None and c.n_seeds >= MIN_SEEDS}
    # a collapsed run's variance over seeds is of no use to rows that have none
    sound = {row for row, runs in scored.items() if not any(map(collapsed, runs.records))}
    of_all = _shared(scored, sure)
    of_sound = _shared(scored, {pair: c for pair, c in sure.items() if sound.issuperset(pair)})
    shared = {pair: of_sound if sound.issuperset(pair) else of_all for pair in found}
    p = dict(zip(sure, holm([float(c.p(shared[pair])) for pair, c in sure.items()]), strict=True))
    return [
        _verdict(
            (a.name, scored[a]),
            (b.name, scored[b]),
            crossed=found[a, b],
            p=p.get((a, b)),
            margin=_margin(margin, scored[a], scored[b]),
            alpha=ALPHA / max(1, len(sure)),
            shared=shared[a, b],
        )
        for a, b in pairs
        if a.is_asked and b.is_asked
    ]


def _shared(rows: Mapping[_Row, Runs], sure: Mapping[tuple[_Row, _Row], Crossed]) -> Shared | None:
    """The seed variance that the rows share; None for a single pair, which shares with none."""
    if len(sure) < 2:
        return None
    members = dict.fromkeys(row for pair in sure for row in pair)
    variances = [float(np.var(rows[row].scores, ddof=1)) for row in members]
    return Shared.of(np.array([c.seed for c in sure.values()]), np.array(variances))


def _margin(margin: float, a: Runs, b: Runs) -> float:
    if a.task.main_metric not in LOWER_IS_BETTER:
        return margin
    span = scale(a.task)
    return margin * (span[1] if span else (a.mean + b.mean) / 2)


def _verdict(
    a: tuple[str, Runs],
    b: tuple[str, Runs],
    *,
    crossed: Crossed | None,
    p: float | None,
    margin: float,
    alpha: float,
    shared: Shared | None,
) -> Verdict:
    (name, one), (other_name, other) = a, b
    common = [seed for seed in one.by_seed if seed in other.by_seed]
    low, high, more = None, None, None
    if crossed is not None:
        common = [seed for seed in one.predicted if seed in other.predicted]
        low, high = (float(end) for end in crossed.interval())
    metric = one.task.main_metric
    each = [one.by_seed[seed].score - other.by_seed[seed].score for seed in common]
    word = _word(metric, common, (low, high), p, margin)
    if crossed is not None and word.startswith("unclear"):
        more = crossed.seeds_to_settle(margin, alpha, shared)
    return Verdict(
        task=one.task.name,
        sha256=one.task.sha256,
        metric=metric,
        a=name,
        b=other_name,
        seeds=common,
        difference=math.fsum(each) / len(each) if each else one.mean - other.mean,
        low=low,
        high=high,
        p=p,
        verdict=word,
        margin=margin,
        more_seeds=more,
    )


def _word(
    metric: str,
    seeds: list[int],
    interval: tuple[float | None, float | None],
    p: float | None,
    margin: float,
) -> str:
    low, high = interval
    if not seeds:
        return "unclear: no seed in common"
    if low is None or high is None:
        return "unclear: no predictions"
    if p is None:
        return f"unclear: {counted(len(seeds), 'seed')}"
    if within(low, high, margin):
        return "tie"
    if p <= ALPHA and (low > 0 or high < 0):
        return "better" if merit(metric, low) > merit(metric, 0) else "worse"
    return "unclear"
