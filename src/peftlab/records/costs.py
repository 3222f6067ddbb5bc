"""The costs of a row, in parameters, memory and time, and the rows whose costs meet limits."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from peftlab.errors import RequestError
from peftlab.records.conditions import conditions, ordered
from peftlab.records.question import Question
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, finite_values, mean
from peftlab.records.table import RunsByRow, row_names, runs_of


class Cost(BaseModel, extra="forbid", frozen=True):
    """The costs of a row; null where they were not measured.

    Attributes:
        trained: number of trained parameters, the head's included; of the task where it is largest.
        memory_mib: peak of the process, the highest of all runs and rounds: a round may not meet
            the widest batch.
        cell_s: seconds a cell, mean over runs; of the task where it is longest.
        round_s: seconds an example in rounds that took turns, the median over rounds, which a
            disturbed one does not move; mean over tasks; null without rounds.

    Memory and time are of the runs, and of the rounds, under the conditions that most of them were
    measured under: those under others are not comparable. A row that never ran on a task, or in
    rounds, under these has the costs of all its runs there.
    """

    trained: int | None
    memory_mib: float | None
    cell_s: float | None
    round_s: float | None = None


def costs_of(columns: Mapping[TaskKey, RunsByRow]) -> dict[str, Cost]:
    """The costs of each row's done runs, by row."""
    table = {row: runs_of(columns, row) for row in row_names(columns)}
    cells = {
        row: [[record for record in runs.records if record.is_done] for runs in by_task]
        for row, by_task in table.items()
    }
    rounds = {row: [runs.rounds for runs in by_task] for row, by_task in table.items()}
    pick_cells, pick_rounds = (
        _usual_conditions(itertools.chain(*by_task) for by_task in measured.values())
        for measured in (cells, rounds)
    )
    return {
        row: _cost(list(map(pick_cells, cells[row])), list(map(pick_rounds, rounds[row])))
        for row in table
    }


def _usual_conditions(
    rows: Iterable[Iterable[Record]],
) -> Callable[[Sequence[Record]], Sequence[Record]]:
    """A function that picks, of some of these records, those under the most frequent conditions.

    Where none of them is, it returns them all.
    """
    by_cell = conditions([list(row) for row in rows])
    usual = next(iter(ordered(by_cell, by_cell.keys())), None)

    def pick(records: Sequence[Record]) -> Sequence[Record]:
        return [record for record in records if by_cell[record.cell] == usual] or records

    return pick


def _cost(by_task: Sequence[Sequence[Record]], rounds: Sequence[Sequence[Record]]) -> Cost:
    """The costs of a row by its records of each task, and those of rounds."""
    cells, of_rounds = (list(itertools.chain(*records)) for records in (by_task, rounds))
    trained = [record.n_trainable.total for record in cells if record.n_trainable]
    memory = finite_values(
        record.memory.peak_mib for record in (*cells, *of_rounds) if record.memory
    )
    seconds = finite_values(
        mean(finite_values(record.total_s for record in records)) for records in by_task
    )
    return Cost(
        trained=max(trained, default=None),
        memory_mib=max(memory, default=None),
        cell_s=max(seconds, default=None),
        round_s=mean(finite_values(map(_median_s, rounds))),
    )


def _median_s(rounds: Iterable[Record]) -> float | None:
    """The median of the rounds' seconds an example; None without rounds."""
    speeds = finite_values(record.speed.examples_per_s for record in rounds if record.speed)
    return statistics.median([1 / speed for speed in speeds]) if speeds else None


class _Limit(NamedTuple):
    most: float
    unit: str
    read: Callable[[Cost], float | None]  # the amount that a cell takes


def rows_within(costs: Mapping[str, Cost], question: Question) -> list[str]:
    """The rows whose costs keep to the question's limits.

    Raises:
        RequestError: if no row does; names the nearest.
    """
    limits: list[_Limit] = []
    memory_mib, minutes = question.memory_mib, question.minutes
    if memory_mib is not None:
        limits.append(_Limit(memory_mib, "MiB", lambda cost: cost.memory_mib))
    if minutes is not None:
        limits.append(_Limit(minutes, "minutes", _minutes))
    rows = [row for row, cost in costs.items() if _excess(cost, limits) <= 1]
    if rows:
        return rows
    if memory_mib is not None and all(cost.memory_mib is None for cost in costs.values()):
        raise RequestError(
            "no row has measured memory, which only Linux and CUDA tell; leave out --memory"
        )
    nearest = min(costs, key=lambda row: _excess(costs[row], limits))
    allowed = " and ".join(f"{limit.most:g} {limit.unit}" for limit in limits)
    taken = " and ".join(_amount(limit.read(costs[nearest]), limit.unit) for limit in limits)
    raise RequestError(
        f"no row keeps to {allowed} a cell; the nearest is {nearest!r} with {taken}: "
        "allow more, or compare cheaper methods"
    )


def _minutes(cost: Cost) -> float | None:
    return None if cost.cell_s is None else cost.cell_s / 60


def _amount(value: float | None, unit: str) -> str:
    return f"no measured {unit}" if value is None else f"{value:.4g} {unit}"


def _excess(cost: Cost, limits: Sequence[_Limit]) -> float:
    """The largest ratio of a cost to its limit; infinite where it was not measured."""
    costs = [(limit.read(cost), limit.most) for limit in limits]
    return max((math.inf if value is None else value / most for value, most in costs), default=0.0)
