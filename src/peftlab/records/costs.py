"""What a row takes: parameters, memory and time; and which rows keep to limits of these."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel

from peftlab.errors import RequestError
from peftlab.records.conditions import conditions, ordered
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, known, mean
from peftlab.records.table import Column, Runs


class Cost(BaseModel, extra="forbid", frozen=True):
    """What a row takes; null where it was not measured.

    Attributes:
        trained: parameters, the head's among them; of the largest task.
        memory_mib: peak of the process, the highest of all runs and rounds: a round may not meet
            the widest batch.
        cell_s: seconds a cell, mean over runs, of the task where that is most.
        round_s: seconds an example in rounds that took turns, median over them, which a disturbed
            one does not move; null without rounds.

    Memory and time are of the conditions that most runs were measured under, and most rounds:
    others compare with none of these. Of a task that a row never ran on under them it has its own.
    """

    trained: int | None
    memory_mib: float | None
    cell_s: float | None
    round_s: float | None = None


def costs_of(columns: Mapping[TaskKey, Column]) -> dict[str, Cost]:
    """What each row's done runs took, by row."""
    own: dict[str, list[Runs]] = {}
    for column in columns.values():
        for row, runs in column.items():
            own.setdefault(row, []).append(runs)
    done = {row: [_done(runs.records) for runs in of_row] for row, of_row in own.items()}
    rounds = {row: [one for runs in of_row for one in runs.rounds] for row, of_row in own.items()}
    of_cells = _usual(itertools.chain(*of_row) for of_row in done.values())
    of_rounds = _usual(rounds.values())
    return {row: _cost([*map(of_cells, done[row])], of_rounds(rounds[row])) for row in own}


def _done(records: Sequence[Record]) -> list[Record]:
    return [one for one in records if one.is_done]


def _usual(rows: Iterable[Iterable[Record]]) -> Callable[[Sequence[Record]], Sequence[Record]]:
    """What picks, of some records, those measured under the conditions of most; or all of them."""
    under = conditions([list(row) for row in rows])
    first = next(iter(ordered(under, under.keys())), None)

    def pick(records: Sequence[Record]) -> Sequence[Record]:
        return [one for one in records if under[one.cell] == first] or records

    return pick


def _cost(by_task: Sequence[Sequence[Record]], rounds: Sequence[Record]) -> Cost:
    """What a row took, by its records of each task and of rounds."""
    cells = list(itertools.chain(*by_task))
    trained = [record.n_trainable.total for record in cells if record.n_trainable]
    memory = known(one.memory.peak_mib for one in (*cells, *rounds) if one.memory)
    speeds = known(one.speed.examples_per_s for one in rounds if one.speed)
    seconds = known(mean(known(one.total_s for one in of_task)) for of_task in by_task)
    return Cost(
        trained=max(trained, default=None),
        memory_mib=max(memory, default=None),
        cell_s=max(seconds, default=None),
        round_s=statistics.median([1 / speed for speed in speeds]) if speeds else None,
    )


Limit = tuple[float, str, Callable[[Cost], float | None]]  # most, unit, what a cell takes of it


def keeping_to(
    costs: Mapping[str, Cost], memory_mib: float | None, minutes: float | None
) -> list[str]:
    """The rows whose costs keep to the limits.

    Raises:
        RequestError: if none does; names the nearest.
    """
    limits: list[Limit] = []
    if memory_mib is not None:
        limits.append((memory_mib, "MiB", lambda one: one.memory_mib))
    if minutes is not None:
        limits.append((minutes, "minutes", _minutes))
    met = [row for row, one in costs.items() if _excess(one, limits) <= 1]
    if not met and memory_mib is not None and all(c.memory_mib is None for c in costs.values()):
        raise RequestError(
            "no row has measured memory, which only Linux and CUDA tell; leave out --memory"
        )
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
