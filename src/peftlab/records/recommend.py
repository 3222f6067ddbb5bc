"""The row to take: the cheapest that on no task is behind the best or worse than another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from peftlab.records.costs import Cost, costs_of, rows_within
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.pairs import Verdict, Verdicts, better_than, verdict_between
from peftlab.records.question import DEFAULT_QUESTION, Question
from peftlab.records.record import Record
from peftlab.records.rows import (
    TaskKey,
    is_collapsed,
    merit,
    rate_from_dev,
    rounds_taken,
    task_label,
)
from peftlab.records.table import Runs, RunsByRow, best_row, row_names, runs_of, scale

Why = Literal["tasks", "limits", "runs", "failed", "collapsed"]  # reasons to exclude a row


class Ahead(BaseModel, extra="forbid", frozen=True):
    """A row that was excluded from the choice though its mean on the task is better.

    Attributes:
        mean: of the main metric on the task.
        why: it has no score on some task, exceeds a limit, has too few seeds where others have
            enough, or has failed or collapsed runs where others have none.
        n_done: number of its runs with a score, on all tasks.
        n_seeds: number of its seeds on the task where they are fewest.
        n_failed: number of its failed runs.
        n_collapsed: number of its runs that are no better than a constant answer, on tasks where
            some runs are better.
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


class TaskStanding(BaseModel, extra="forbid", frozen=True):
    """The recommended row on one task.

    Attributes:
        best: the row of the highest mean there (of an error the lowest), of those to choose from.
        verdict: of the recommended row against the best; null where it is the best itself.
        rival: where it is the best itself, the row that may be better than it by the most; null if
            there is none, and where it is not. The fields below are against the best, or else
            against the rival.
        rival_verdict: of the recommended row against its rival.
        is_behind: whether the interval of this pair alone puts it below the best, whatever the
            verdict.
        worse_at_most: by how much it may be worse, in the metric's unit: the interval's end; null
            if it is not known.
        covers_seeds: whether other seeds are in that.
        margin: differences within ± margin count as a tie, in that unit.
        more_seeds: how many would settle the pair; null if it is settled, or if none would.
        ahead: the rows that were excluded from the choice and have a better mean than `best`.
    """

    task: str
    metric: str
    best: str
    verdict: str | None
    rival: str | None = None  # some records of comparisons do not say
    rival_verdict: str | None = None  # likewise
    is_behind: bool
    worse_at_most: float | None
    covers_seeds: bool | None = None  # some records of comparisons do not say
    margin: float | None = None
    more_seeds: int | None
    ahead: list[Ahead] = []

    @property
    def word(self) -> str:
        """The verdict against the best, or of the best itself against its rival; or empty."""
        return self.verdict or self.rival_verdict or ""


class Recommendation(BaseModel, extra="forbid", frozen=True):
    """The row to take, its costs, and the reservations about it.

    Attributes:
        memory_mib: the limit that it keeps to; null if none was set.
        minutes: likewise.
        n_done: number of its runs with a score, on all tasks.
        n_failed: number of its failed runs.
        n_collapsed: how many of these are no better than a constant answer, on the tasks where some
            runs are better.
        collapsed_on: the tasks on which every run of every row collapsed.
        rate_from_dev: whether rows differ from it in the learning rate alone, so that dev, which
            judges it, has chosen its rate.
    """

    row: str
    prefer: str
    cost: Cost
    tasks: list[TaskStanding]
    memory_mib: float | None = None
    minutes: float | None = None
    n_done: int = 0
    n_failed: int = 0
    n_collapsed: int = 0
    collapsed_on: list[str] = []
    rate_from_dev: bool = False


def recommend(
    columns: Mapping[TaskKey, RunsByRow],
    pairs: Verdicts,
    question: Question = DEFAULT_QUESTION,
    unrequested: Sequence[Record] = (),
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
        question: what is preferred, and within what limits.
        unrequested: of rows that are not to be taken, but that may show where a rate comes from.

    Raises:
        RequestError: no row meets the limits; names the nearest.
    """
    costs = costs_of(columns)
    excluded = _exclusion_reasons(columns, costs, question)
    rows = [row for row in costs if row not in excluded]
    if not rows:
        return None
    eligible = {task: {row: column[row] for row in rows} for task, column in columns.items()}
    row = _first(_soundest(eligible, pairs), eligible, costs, question.prefer)
    tasks = []
    for task, column in eligible.items():
        best = str(best_row(column))
        ahead = _ahead(columns, task, best, excluded, costs, better_than(row, pairs[task]))
        verdict = verdict_between(pairs[task], row, best) or _rival(row, list(column), pairs[task])
        tasks.append(_against_best(task_label(task, eligible), task[1], best, verdict, ahead))
    runs = runs_of(columns, row)
    return Recommendation(
        row=row,
        prefer=question.prefer,
        cost=costs[row],
        tasks=tasks,
        memory_mib=question.memory_mib,
        minutes=question.minutes,
        n_done=_n_done(runs),
        n_failed=_n_failed(runs),
        n_collapsed=_n_collapsed(columns, row),
        collapsed_on=[
            task_label(task, columns) for task, column in columns.items() if _all_collapsed(column)
        ],
        rate_from_dev=any(_rate_from_dev(row, column, unrequested) for column in columns.values()),
    )


def _soundest(eligible: Mapping[TaskKey, RunsByRow], pairs: Verdicts) -> list[str]:
    """The rows that on the fewest tasks are behind the best of them or worse than any of them."""
    n_worse: Counter[str] = Counter()
    for task, column in eligible.items():
        highest = column[str(best_row(column))].mean
        best = [row for row in column if column[row].mean == highest]
        for row in column:
            verdicts_on_row = [verdict_between(pairs[task], row, other) for other in best]
            is_behind = any(verdict and verdict.is_behind for verdict in verdicts_on_row)
            n_worse[row] += is_behind or bool(better_than(row, pairs[task]) & column.keys())
    return [row for row, count in n_worse.items() if count == min(n_worse.values())]


def _first(
    rows: Sequence[str],
    eligible: Mapping[TaskKey, RunsByRow],
    costs: Mapping[str, Cost],
    prefer: str,
) -> str:
    """The first of `rows` by the preference, then by size, then by score."""
    turns_of_rows = [
        rounds_taken(record for runs in runs_of(eligible, row) for record in runs.rounds)
        for row in row_names(eligible)
    ]
    first = turns_of_rows[0]
    took_same_turns = bool(first) and all(of_row == first for of_row in turns_of_rows)
    return min(
        rows,
        key=lambda row: (
            _sort_value(prefer, row, costs[row], took_same_turns, eligible),
            _or_infinity(costs[row].trained),
            -_sum_of_scores(row, eligible),
        ),
    )


def _rival(row: str, others: Sequence[str], pairs: Sequence[Verdict]) -> Verdict | None:
    """Against the row that may be better by the most, which need not have the next best mean."""
    verdicts = [
        pair for other in others if (pair := verdict_between(pairs, row, other)) is not None
    ]
    return max(verdicts, key=lambda verdict: _or_infinity(verdict.deficit), default=None)


def _against_best(
    task: str, metric: str, best: str, verdict: Verdict | None, ahead: list[Ahead]
) -> TaskStanding:
    """`verdict` is the row's against the best, or of the best itself against its rival."""
    is_best = verdict is None or verdict.b != best
    word = verdict.verdict if verdict else None
    return TaskStanding(
        task=task,
        metric=metric,
        best=best,
        verdict=None if is_best else word,
        rival=verdict.b if verdict and is_best else None,
        rival_verdict=word if is_best else None,
        is_behind=verdict.is_behind if verdict and not is_best else False,
        worse_at_most=verdict.worst if verdict else 0.0,
        covers_seeds=verdict.covers_seeds if verdict else None,
        margin=verdict.margin if verdict else None,
        more_seeds=verdict.more_seeds if verdict else None,
        ahead=ahead,
    )


def _ahead(
    columns: Mapping[TaskKey, RunsByRow],
    task: TaskKey,
    best: str,
    excluded: Mapping[str, Why],
    costs: Mapping[str, Cost],
    better: set[str],
) -> list[Ahead]:
    """The excluded rows that have a better mean on the task than `best`.

    `better` are the rows that are shown to be better than the row to take.
    """
    column, metric = columns[task], task[1]
    return [
        Ahead(
            row=row,
            mean=column[row].mean,
            why=why,
            n_done=_n_done(runs_of(columns, row)),
            n_seeds=min(len(runs.by_seed) for runs in runs_of(columns, row)),
            n_failed=_n_failed(runs_of(columns, row)),
            n_collapsed=_n_collapsed(columns, row),
            is_better=row in better,
            cost=costs[row],
        )
        for row, why in excluded.items()
        if row in column
        and column[row].by_seed
        and merit(metric, column[row].mean) > merit(metric, column[best].mean)
    ]


def _n_done(by_task: Sequence[Runs]) -> int:
    return sum(len(runs.by_seed) for runs in by_task)


def _n_failed(by_task: Sequence[Runs]) -> int:
    return sum(not record.is_done for runs in by_task for record in runs.records)


def _n_collapsed(columns: Mapping[TaskKey, RunsByRow], row: str) -> int:
    """The row's collapsed runs, without the tasks on which all runs of all rows collapsed."""
    learnable = {task: column for task, column in columns.items() if not _all_collapsed(column)}
    return sum(is_collapsed(record) for runs in runs_of(learnable, row) for record in runs.records)


def _all_collapsed(column: RunsByRow) -> bool:
    done = [record for runs in column.values() for record in runs.records if record.is_done]
    return bool(done) and all(map(is_collapsed, done))


def _rate_from_dev(row: str, column: RunsByRow, unrequested: Sequence[Record]) -> bool:
    others = (runs.records[0] for name, runs in column.items() if name != row)
    return rate_from_dev(column[row].records[0], [*others, *unrequested])


def _with_all_tasks(columns: Mapping[TaskKey, RunsByRow]) -> list[str]:
    """The rows that have a score on every task."""
    return [
        row
        for row in row_names(columns)
        if all(row in column and column[row].by_seed for column in columns.values())
    ]


def _exclusion_reasons(
    columns: Mapping[TaskKey, RunsByRow],
    costs: Mapping[str, Cost],
    question: Question,
) -> dict[str, Why]:
    """The rows that the first four steps of `recommend` exclude, each with the reason."""
    complete = _with_all_tasks(columns)
    complete_costs = {row: costs[row] for row in complete}
    affordable = rows_within(complete_costs, question) if complete else []
    sufficient = _with_enough_seeds(columns, affordable)
    sound = [row for row in sufficient if not _n_failed(runs_of(columns, row))] or sufficient
    steady = [row for row in sound if not _n_collapsed(columns, row)] or sound
    steps: dict[Why, list[str]] = {
        "tasks": complete,
        "limits": affordable,
        "runs": sufficient,
        "failed": sound,
        "collapsed": steady,
    }
    return {
        row: next(why for why, kept in steps.items() if row not in kept)
        for row in costs
        if row not in steady
    }


def _with_enough_seeds(columns: Mapping[TaskKey, RunsByRow], rows: Sequence[str]) -> list[str]:
    """The rows with `MIN_SEEDS` seeds on every task, or as many as any of them has there.

    Where no row has that many on all tasks, the rows that have them on the most tasks.
    """
    n_enough = dict.fromkeys(rows, 0)
    for column in columns.values():
        n_seeds = {row: len(column[row].by_seed) for row in rows}
        enough = min(MIN_SEEDS, max(n_seeds.values(), default=0))
        for row in rows:
            n_enough[row] += n_seeds[row] >= enough
    return [row for row in rows if n_enough[row] == max(n_enough.values())]


def _sort_value(
    prefer: str, row: str, cost: Cost, took_same_turns: bool, columns: Mapping[TaskKey, RunsByRow]
) -> float:
    """A number by which the row is ordered: the lowest is preferred."""
    if prefer == "score":
        return -_sum_of_scores(row, columns)
    seconds = cost.round_s if took_same_turns else cost.cell_s
    return _or_infinity({"memory": cost.memory_mib, "speed": seconds, "size": cost.trained}[prefer])


def _or_infinity(value: float | None) -> float:
    """The value, or infinity if it is not known."""
    return math.inf if value is None else value


def _sum_of_scores(row: str, columns: Mapping[TaskKey, RunsByRow]) -> float:
    """The sum of scaled means over the tasks, by which rows are ordered as by their mean."""
    total = 0.0
    for column in columns.values():
        zero, span = scale(column[row].task) or (0.0, 1.0)  # without a scale: the error itself
        total += (merit(column[row].task.main_metric, column[row].mean) - zero) / span
    return total
