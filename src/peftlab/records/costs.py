"""What a row takes: parameters, memory and time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set

from pydantic import BaseModel, ConfigDict

from peftlab.records.conditions import conditions, ordered
from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, known, mean
from peftlab.records.table import Column, Runs


class Cost(BaseModel):
    """What a row takes; null where it was not measured.

    Attributes:
        trained: parameters, the head's among them; of the largest task.
        memory_mib: peak of the process, the highest of all runs and rounds: a round may not meet
            the widest batch.
        cell_s: seconds a cell, mean over runs, of the task where that is most.
        round_s: seconds an example in rounds that took turns, mean over them; null without rounds.

    Memory and time are of the conditions that most runs were measured under, and most rounds:
    others compare with none of these. A row that was never measured under them has its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    cells = {row: list(itertools.chain(*of_row)) for row, of_row in done.items()}
    rounds = {row: [one for runs in of_row for one in runs.rounds] for row, of_row in own.items()}
    alike, alike_in_turns = _alike(cells.values()), _alike(rounds.values())
    return {
        row: _cost(
            cells[row],
            [_of(runs, alike) if _of(cells[row], alike) else runs for runs in done[row]],
            _of(rounds[row], alike_in_turns) or rounds[row],
        )
        for row in own
    }


def _done(records: Sequence[Record]) -> list[Record]:
    return [one for one in records if one.status == "done"]


def _alike(rows: Iterable[Sequence[Record]]) -> set[str]:
    """The cells that were measured under the conditions of most."""
    under = conditions(rows)
    usual = next(iter(ordered(under, under.keys())), None)
    return {cell for cell, one in under.items() if one == usual}


def _of(records: Sequence[Record], cells: Set[str]) -> list[Record]:
    return [one for one in records if one.cell in cells]


def _cost(
    done: Sequence[Record], by_task: Sequence[Sequence[Record]], rounds: Sequence[Record]
) -> Cost:
    """What a row took; memory and time of those records, of each task and of rounds, that count."""
    trained = [record.n_trainable.total for record in done if record.n_trainable]
    measured = (*itertools.chain(*by_task), *rounds)
    memory = known(one.memory.peak_mib for one in measured if one.memory)
    speeds = known(one.speed.examples_per_s for one in rounds if one.speed)
    seconds = known(mean(known(one.total_s for one in of_task)) for of_task in by_task)
    return Cost(
        trained=max(trained, default=None),
        memory_mib=max(memory, default=None),
        cell_s=max(seconds, default=None),
        round_s=mean([1 / speed for speed in speeds]),
    )
