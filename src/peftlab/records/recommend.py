"""Which row to take: the cheapest that on no task is behind the best or worse than another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pydantic import BaseModel

from peftlab.errors import RequestError, unknown
from peftlab.records.costs import Cost, costs_of, keeping_to
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.pairs import Verdict, Verdicts, against, better_than
from peftlab.records.rows import TaskKey, collapsed, merit, rate_from_dev, task_label, turns
from peftlab.records.table import Column, Runs, best_row, scale

Prefer = Literal["score", "memory", "speed", "size"]
Why = Literal["tasks", "limits", "runs", "failed", "collapsed"]  # a row is left out


class Ahead(BaseModel, extra="forbid", frozen=True):
    """A row of a better mean that was not chosen from.

    Attributes:
        mean: of the main metric on the task.
        why: it has no score on some task, exceeds a limit, has too few seeds where others have
            enough, or has failed or collapsed runs where others have none.
        n_done: its runs with a score, on all tasks.
        n_seeds: those on the task where they are fewest.
        n_failed: its failed runs.
        n_collapsed: its runs that are no better than a constant answer, where others' are.
        is_better: whether it is shown to be better than the recommended row.
    """

    row: str
    mean: float
    why: Why
    n_done: int
    n_seeds: int = 0  # some records of comparisons do not say
    n_failed: int
    n_collapsed: int = 0  # some records of comparisons do not say
    is_better: bool = False  # likewise
    cost: Cost


class AgainstBest(BaseModel, extra="forbid", frozen=True):
    """The recommended row on one task.

    Attributes:
        best: the row of the highest mean there (of an error the lowest).
        verdict: of the recommended row against it; null where it is the best itself.
        rival: where it is the best itself, the row that may be better by the most; null if there is
            none, and where it is not. What follows is against the best, or else against this one.
        rival_verdict: of the recommended row against its rival.
        is_behind: whether its own interval puts it below the best, whatever the verdict.
        worse_at_most: by how much it may be worse, in the metric's unit: the interval's end; null
            if it is not known.
        margin: what counts as a tie there, in that unit.
        more_seeds: how many would settle it; null if it is settled, or if none would.
        ahead: the rows that were not chosen from and have a better mean than the best of the rest.
    """

    task: str
    metric: str
    best: str
    verdict: str | None
    rival: str | None = None  # some records of comparisons do not say
    rival_verdict: str | None = None  # likewise
    is_behind: bool
    worse_at_most: float | None
    margin: float | None = None
    more_seeds: int | None
    ahead: list[Ahead] = []

    @property
    def word(self) -> str:
        """The verdict against the best, or of the best itself against its rival; or nothing."""
        return self.verdict or self.rival_verdict or ""


class Recommendation(BaseModel, extra="forbid", frozen=True):
    """The row to take, what it costs, and what is not known of it.

    Attributes:
        memory_mib: the limit that it keeps to; null if none was asked for.
        minutes: likewise.
        n_done: its runs with a score, on all tasks.
        n_failed: its failed runs.
        n_collapsed: of the former, no better than a constant answer.
        collapsed_on: the tasks on which every run of every row collapsed.
        rate_from_dev: whether rows differ from it in the learning rate alone, so that dev, which
            judges it, has chosen its rate.
    """

    row: str
    prefer: str
    cost: Cost
    tasks: list[AgainstBest]
    memory_mib: float | None = None
    minutes: float | None = None
    n_done: int = 0
    n_failed: int = 0
    n_collapsed: int = 0
    collapsed_on: list[str] = []
    rate_from_dev: bool = False


def recommend(
    columns: Mapping[TaskKey, Column],
    pairs: Verdicts,
    prefer: str = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
) -> Recommendation | None:
    """The row to take; None if no row has a score on every task.

    Each step keeps some of the rows that the one before it kept:

    1. a score on every task, and within the limits
    2. three seeds on every task, or as many as any row has: one lucky seed must not beat the mean
       of five
    3. no failed run, if some row has none
    4. no collapsed run, if some row has none: its interval is too wide to show any row better
    5. on no task behind the best (`Verdict.is_behind`, which is not corrected for the number of
       rows) or worse than another; if no row is left, those to which that happens on the fewest
       tasks
    6. the first by `prefer`, then the smallest, then the one of the best mean of scaled scores

    Args:
        columns: of `table.columns`.
        pairs: of `pairs.verdicts`.
        prefer: score (the mean of scaled scores), memory, speed or size. Speed is that of rounds
            where all rows had their turns in the same, else of a cell.
        memory_mib: highest peak of a run; a row that was not measured does not meet it.
        minutes: longest mean of a cell, likewise.

    Raises:
        RequestError: nothing meets the limits; names what is nearest. Or `prefer` is unknown, or a
            limit is not above 0.
    """
    _check(prefer, memory_mib, minutes)
    costs = costs_of(columns)
    out = _left_out(columns, costs, memory_mib, minutes)
    rows = [row for row in costs if row not in out]
    if not rows:
        return None
    met = {task: {row: column[row] for row in rows} for task, column in columns.items()}
    row = _first(_soundest(met, pairs), met, costs, prefer)
    tasks = []
    for task, column in met.items():
        best = str(best_row(column))
        ahead = _ahead(columns, task, best, out, costs, better_than(row, pairs[task]))
        verdict = against(pairs[task], row, best) or _rival(row, list(column), pairs[task])
        tasks.append(_against_best(task_label(task, met), task[1], best, verdict, ahead))
    own = _runs_of(columns, row)
    return Recommendation(
        row=row,
        prefer=prefer,
        cost=costs[row],
        tasks=tasks,
        memory_mib=memory_mib,
        minutes=minutes,
        n_done=_n_done(own),
        n_failed=_n_failed(own),
        n_collapsed=sum(collapsed(one) for runs in own for one in runs.records),
        collapsed_on=[
            task_label(task, columns) for task, column in columns.items() if _all_collapsed(column)
        ],
        rate_from_dev=any(_rate_from_dev(row, column) for column in columns.values()),
    )


def _check(prefer: str, memory_mib: float | None, minutes: float | None) -> None:
    if prefer not in get_args(Prefer):
        raise unknown("preference", prefer, get_args(Prefer))
    for name, limit in (("memory_mib", memory_mib), ("minutes", minutes)):
        if limit is not None and not limit > 0:
            raise RequestError(f"{name} must be above 0, got {limit}; leave it out for no limit")


def _soundest(met: Mapping[TaskKey, Column], pairs: Verdicts) -> list[str]:
    """The rows that on the fewest tasks are behind the best of them or worse than any of them."""
    n_worse: Counter[str] = Counter()
    for task, column in met.items():
        best = str(best_row(column))
        for row in column:
            verdict = against(pairs[task], row, best)
            is_behind = verdict is not None and verdict.is_behind
            n_worse[row] += is_behind or bool(better_than(row, pairs[task]) & column.keys())
    return [row for row, count in n_worse.items() if count == min(n_worse.values())]


def _first(
    rows: Sequence[str], met: Mapping[TaskKey, Column], costs: Mapping[str, Cost], prefer: str
) -> str:
    """The first of them by the preference, then by size, then by score."""
    every = next(iter(met.values()))
    had = [turns(one for runs in _runs_of(met, row) for one in runs.rounds) for row in every]
    in_turns = bool(had[0]) and all(own == had[0] for own in had)
    return min(
        rows,
        key=lambda row: (
            _order(prefer, row, costs[row], in_turns, met),
            _size(costs[row]),
            -_sum_of_scores(row, met),
        ),
    )


def _rival(row: str, others: Sequence[str], pairs: Sequence[Verdict]) -> Verdict | None:
    """Against the row that may be better by the most, which need not have the next best mean."""
    found = [one for other in others if (one := against(pairs, row, other)) is not None]
    return max(
        found, key=lambda one: math.inf if one.deficit is None else one.deficit, default=None
    )


def _against_best(
    task: str, metric: str, best: str, verdict: Verdict | None, ahead: list[Ahead]
) -> AgainstBest:
    """`verdict` is that against the best, or of the best itself against its rival."""
    is_best = verdict is None or verdict.b != best
    word = verdict.verdict if verdict else None
    return AgainstBest(
        task=task,
        metric=metric,
        best=best,
        verdict=None if is_best else word,
        rival=verdict.b if verdict and is_best else None,
        rival_verdict=word if is_best else None,
        is_behind=verdict.is_behind if verdict and not is_best else False,
        worse_at_most=verdict.worst if verdict else 0.0,
        margin=verdict.margin if verdict else None,
        more_seeds=verdict.more_seeds if verdict else None,
        ahead=ahead,
    )


def _ahead(
    columns: Mapping[TaskKey, Column],
    task: TaskKey,
    best: str,
    out: Mapping[str, Why],
    costs: Mapping[str, Cost],
    better: set[str],
) -> list[Ahead]:
    """The rows that were left out and have a better mean on the task than `best`.

    `better` are those that are shown to be better than the row to take.
    """
    column, metric = columns[task], task[1]
    return [
        Ahead(
            row=row,
            mean=column[row].mean,
            why=why,
            n_done=_n_done(_runs_of(columns, row)),
            n_seeds=min(len(runs.by_seed) for runs in _runs_of(columns, row)),
            n_failed=_n_failed(_runs_of(columns, row)),
            n_collapsed=_n_collapsed(columns, row),
            is_better=row in better,
            cost=costs[row],
        )
        for row, why in out.items()
        if row in column
        and column[row].by_seed
        and merit(metric, column[row].mean) > merit(metric, column[best].mean)
    ]


def _runs_of(columns: Mapping[TaskKey, Column], row: str) -> list[Runs]:
    return [column[row] for column in columns.values() if row in column]


def _n_done(own: Sequence[Runs]) -> int:
    return sum(len(runs.by_seed) for runs in own)


def _n_failed(own: Sequence[Runs]) -> int:
    return sum(not one.is_done for runs in own for one in runs.records)


def _n_collapsed(columns: Mapping[TaskKey, Column], row: str) -> int:
    """The row's collapsed runs, of tasks on which not all runs of all rows are."""
    told = [column for column in columns.values() if row in column and not _all_collapsed(column)]
    return sum(collapsed(one) for column in told for one in column[row].records)


def _all_collapsed(column: Column) -> bool:
    done = [one for runs in column.values() for one in runs.records if one.is_done]
    return bool(done) and all(map(collapsed, done))


def _rate_from_dev(row: str, column: Column) -> bool:
    others = (runs.records[0] for name, runs in column.items() if name != row)
    return rate_from_dev(column[row].records[0], others)


def _complete(columns: Mapping[TaskKey, Column]) -> list[str]:
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return [row for row in rows if all(row in c and c[row].by_seed for c in columns.values())]


def _left_out(
    columns: Mapping[TaskKey, Column],
    costs: Mapping[str, Cost],
    memory_mib: float | None,
    minutes: float | None,
) -> dict[str, Why]:
    """By row that the one to take is not chosen from: why not."""
    complete = _complete(columns)
    met = keeping_to({row: costs[row] for row in complete}, memory_mib, minutes) if complete else []
    own = {row: _runs_of(columns, row) for row in met}
    whole = _with_enough_seeds(columns, met)
    sound = [row for row in whole if not _n_failed(own[row])] or whole
    steady = [row for row in sound if not _n_collapsed(columns, row)] or sound
    steps: dict[Why, list[str]] = {
        "tasks": complete,
        "limits": met,
        "runs": whole,
        "failed": sound,
        "collapsed": steady,
    }
    return {
        row: next(why for why, kept in steps.items() if row not in kept)
        for row in costs
        if row not in steady
    }


def _with_enough_seeds(columns: Mapping[TaskKey, Column], rows: Sequence[str]) -> list[str]:
    """Those with `MIN_SEEDS` seeds on every task, or as many as any of them has there.

    Where no row has that on all tasks, those that have it on the most.
    """
    n_enough = dict.fromkeys(rows, 0)
    for column in columns.values():
        n_seeds = {row: len(column[row].by_seed) for row in rows}
        enough = min(MIN_SEEDS, max(n_seeds.values(), default=0))
        for row in rows:
            n_enough[row] += n_seeds[row] >= enough
    return [row for row in rows if n_enough[row] == max(n_enough.values())]


def _order(
    prefer: str, row: str, cost: Cost, in_turns: bool, columns: Mapping[TaskKey, Column]
) -> float:
    if prefer == "score":
        return -_sum_of_scores(row, columns)
    speed = cost.round_s if in_turns else cost.cell_s
    value = {"memory": cost.memory_mib, "speed": speed, "size": cost.trained}[prefer]
    return math.inf if value is None else value


def _size(cost: Cost) -> float:
    return math.inf if cost.trained is None else cost.trained


def _sum_of_scores(row: str, columns: Mapping[TaskKey, Column]) -> float:
    total = 0.0
    for column in columns.values():
        zero, span = scale(column[row].task) or (0.0, 1.0)  # an error without baseline: as it is
        total += (merit(column[row].task.main_metric, column[row].mean) - zero) / span
    return total
