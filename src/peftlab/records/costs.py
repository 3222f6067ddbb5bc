"""What a row takes: parameters, memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from pydantic import BaseModel, ConfigDict

from peftlab.records.conditions import conditions, ordered
from peftlab.records.rows import TaskKey, known, mean
from peftlab.records.table import Column, Runs


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
