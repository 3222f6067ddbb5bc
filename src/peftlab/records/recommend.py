"""Which row to take: the cheapest that is not behind the best one on any task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from peftlab.errors import RequestError, unknown
from peftlab.records.conditions import conditions, ordered
from peftlab.records.pairs import Verdict, Verdicts, against
from peftlab.records.rows import TaskKey, known, mean, merit
from peftlab.records.table import Column, Runs, best_row, scale

Prefer = Literal["score", "memory", "speed", "size"]


class Cost(BaseModel):
    """What a row takes; null where it was not measured.

    Attributes:
        trained: parameters, the head's among them; of the largest task.
        memory_mib: peak of the process, the highest of all runs and rounds: a round may not meet
            the widest batch.
        cell_s: seconds a cell, mean over runs.
        round_s: seconds an example in rounds that took turns, mean over them; null without rounds.

    Memory and time are of the conditions that most runs were measured under: others compare with
    none of these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trained: int | None
    memory_mib: float | None
    cell_s: float | None
    round_s: float | None = None


class AgainstBest(BaseModel):
    """The recommended row on one task.

    Attributes:
        best: the row of the highest mean there (of an error the lowest).
        verdict: of the recommended row against it; null where it is the best itself.
        is_behind: whether its own interval puts it below the best, whatever the verdict.
        worse_at_most: by how much it may be worse, in the metric's unit: the interval's end; 0 for
            the best itself, null if it is not known.
        more_seeds: how many would settle it; null if it is settled, or if none would.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    metric: str
    best: str
    verdict: str | None
    is_behind: bool
    worse_at_most: float | None
    more_seeds: int | None


class Recommendation(BaseModel):
    """The row to take, what it costs, and what is not known of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    prefer: str
    cost: Cost
    tasks: list[AgainstBest]


def recommend(
    columns: Mapping[TaskKey, Column],
    pairs: Verdicts,
    prefer: str = "size",
    memory_mib: float | None = None,
    minutes: float | None = None,
) -> Recommendation | None:
    """The row to take; None if no row has a score on every task.

    Of the rows within the limits, those that lie behind the best such row on some task are out
    (`Verdict.is_behind`: a choice for quality, as it is not corrected for their number). If that
    leaves none, those behind on the fewest tasks stay. Of the rest the one that is first by
    `prefer`; then by size, then the first in the table.

    Args:
        columns: of `table.columns`.
        pairs: of `pairs.verdicts`.
        prefer: score (the mean of scaled scores), memory, speed or size. Speed is that of rounds
            where all rows have some, else of a cell.
        memory_mib: highest peak of a run; a row that was not measured does not meet it.
        minutes: longest mean of a cell, likewise.

    Raises:
        RequestError: nothing meets the limits; names what is nearest. Or `prefer` is unknown, or a
            limit is not above 0.
    """
    if prefer not in get_args(Prefer):
        raise unknown("preference", prefer, get_args(Prefer))
    for name, limit in (("memory_mib", memory_mib), ("minutes", minutes)):
        if limit is not None and not limit > 0:
            raise RequestError(f"{name} must be above 0, got {limit}; leave it out for no limit")
    every = costs_of(columns)
    costs = {row: every[row] for row in _complete(columns)}
    if not costs:
        return None
    met = _within(costs, memory_mib, minutes)
    allowed = {task: {row: column[row] for row in met} for task, column in columns.items()}
    best = {task: str(best_row(column)) for task, column in allowed.items()}
    shown = {row: {task: against(pairs[task], row, best[task]) for task in best} for row in met}
    n_worse = {row: sum(v is not None and v.is_behind for v in shown[row].values()) for row in met}
    in_turns = all(costs[row].round_s is not None for row in met)
    row = min(
        (row for row in met if n_worse[row] == min(n_worse.values())),
        key=lambda row: (_order(prefer, row, costs[row], in_turns, allowed), _size(costs[row])),
    )
    tasks = [_against_best(task, best[task], verdict) for task, verdict in shown[row].items()]
    return Recommendation(row=row, prefer=prefer, cost=costs[row], tasks=tasks)


def _against_best(task: TaskKey, best: str, verdict: Verdict | None) -> AgainstBest:
    return AgainstBest(
        task=task[0],
        metric=task[1],
        best=best,
        verdict=verdict.verdict if verdict else None,
        is_behind=verdict.is_behind if verdict else False,
        worse_at_most=verdict.worst if verdict else 0.0,
        more_seeds=verdict.more_seeds if verdict else None,
    )


def costs_of(columns: Mapping[TaskKey, Column]) -> dict[str, Cost]:
    """What each row's done runs took, by row."""
    own: dict[str, list[Runs]] = {}
    for column in columns.values():
        for row, runs in column.items():
            own.setdefault(row, []).append(runs)
    every = [runs for of_row in own.values() for runs in of_row]
    cells = [[one for runs in of_row for one in runs.records] for of_row in own.values()]
    under = conditions([*cells, *(runs.rounds for runs in every)])
    usual = next(iter(ordered(under)), None)
    alike = {cell for cell, one in under.items() if one == usual}
    return {row: _cost(of_row, alike) for row, of_row in own.items()}


def _cost(own: Sequence[Runs], alike: Set[str]) -> Cost:
    """What a row took; memory and time of the cells of `alike`, which were measured so."""
    done = [one for runs in own for one in runs.records if one.status == "done"]
    trained = [record.n_trainable.total for record in done if record.n_trainable]
    cells = [one for one in done if one.cell in alike]
    rounds = [one for runs in own for one in runs.rounds if one.cell in alike]
    memory = known(one.memory.peak_mib for one in (*cells, *rounds) if one.memory)
    speeds = known(one.speed.examples_per_s for one in rounds if one.speed)
    return Cost(
        trained=max(trained, default=None),
        memory_mib=max(memory, default=None),
        cell_s=mean(known(record.total_s for record in cells)),
        round_s=mean([1 / speed for speed in speeds]),
    )


def _complete(columns: Mapping[TaskKey, Column]) -> list[str]:
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return [row for row in rows if all(row in c and c[row].by_seed for c in columns.values())]


Limit = tuple[float, str, Callable[[Cost], float | None]]  # most, unit, what a cell takes of it


def _within(
    costs: Mapping[str, Cost], memory_mib: float | None, minutes: float | None
) -> list[str]:
    limits: list[Limit] = []
    if memory_mib is not None:
        limits.append((memory_mib, "MiB", lambda one: one.memory_mib))
    if minutes is not None:
        limits.append((minutes, "minutes", _minutes))
    met = [row for row, one in costs.items() if _excess(one, limits) <= 1]
    if not met:
        nearest = min(costs, key=lambda row: _excess(costs[row], limits))
        asked = " and ".join(f"{most:g} {unit}" for most, unit, _ in limits)
        takes = " and ".join(_words(unit, taken(costs[nearest])) for _, unit, taken in limits)
        raise RequestError(
            f"no row keeps to {asked} a cell; the nearest is {nearest!r} with {takes}: "
            "allow more, or compare cheaper methods"
        )
    return met


def _minutes(one: Cost) -> float | None:
    return None if one.cell_s is None else one.cell_s / 60


def _words(unit: str, value: float | None) -> str:
    return f"no measured {unit}" if value is None else f"{value:.4g} {unit}"


def _excess(one: Cost, limits: Sequence[Limit]) -> float:
    """The largest ratio of what it takes to what it may take."""
    taken = [(most, of(one)) for most, _, of in limits]
    return max((math.inf if value is None else value / most for most, value in taken), default=0.0)


def _order(
    prefer: str, row: str, cost: Cost, in_turns: bool, columns: Mapping[TaskKey, Column]
) -> float:
    if prefer == "score":
        return -_mean_score(row, columns)
    speed = cost.round_s if in_turns else cost.cell_s
    value = {"memory": cost.memory_mib, "speed": speed, "size": cost.trained}[prefer]
    return math.inf if value is None else value


def _size(cost: Cost) -> float:
    return math.inf if cost.trained is None else cost.trained


def _mean_score(row: str, columns: Mapping[TaskKey, Column]) -> float:
    total = 0.0
    for column in columns.values():
        zero, span = scale(column[row].task) or (0.0, 1.0)  # an error without baseline: as it is
        total += (merit(column[row].task.main_metric, column[row].mean) - zero) / span
    return total
