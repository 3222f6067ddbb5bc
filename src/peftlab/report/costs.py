"""Costs: speed, memory and time, averaged only over runs that were measured alike.

A score does not depend on how long OpenMP's threads spin, but a speed does. So a cell has one
cost for each set of conditions that its runs were measured in, and each cost says which.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from peftlab.records.conditions import Conditions
from peftlab.records.record import Record
from peftlab.records.rows import finite_values, mean
from peftlab.report.spread import Spread


@dataclasses.dataclass(frozen=True)
class CellCost:
    """A cell's cost over the seeds that were measured under the table's `conditions[under]`."""

    under: int
    examples_per_s: Spread
    peak_mib: Spread
    train_peak_mib: Spread
    total_s: Spread
    by_part_mib: dict[str, float | None]  # mean over seeds
    in_turns: bool  # speed and memory are from rounds, not from the cell's own runs


@dataclasses.dataclass(frozen=True)
class RowCost:
    """A row's cost under one set of conditions: means over `n_tasks` tasks, memory the highest."""

    under: int
    n_tasks: int
    examples_per_s: float | None
    peak_mib: float | None
    cell_s: float | None


def describe_differences(all_conditions: Sequence[Conditions]) -> list[str]:
    """For each of the conditions, its values in the fields on which they disagree.

    >>> default = Conditions("x", None, 2, "20000", "2.9", "1.0", None, None, None)
    >>> describe_differences([default, dataclasses.replace(default, spin_count="5000")])
    ['spin count 20000', 'spin count 5000']
    """
    names = [field.name for field in dataclasses.fields(Conditions)]
    differing = [name for name in names if len({getattr(c, name) for c in all_conditions}) > 1]
    described = [[_describe(name, getattr(c, name)) for name in differing] for c in all_conditions]
    return [", ".join(word for word in words if word) or "all other runs" for words in described]


def _describe(name: str, value: object) -> str:
    if value == "" or (name in {"quantiser", "parts"} and value is None):
        return ""
    if value is None:
        return "no GPU" if name == "gpu" else f"{name.replace('_', ' ')} not recorded"
    forms = {
        "threads": f"{value} thread{'s' * (value != 1)}",
        "spin_count": f"spin count {value}",
        "torch": f"torch {value}",
        "peftlab": f"peftlab {value}",
        "kernels": f"kernels: {value}",
        "quantiser": f"quantised by {value}",
    }
    if name == "parts":
        return f"batches in {value:.1f} parts"
    return forms.get(name, str(value))


def cell_costs(
    done: Sequence[Record], conditions_of: Mapping[str, int], rounds: Sequence[Record] = ()
) -> tuple[CellCost, ...]:
    """The costs of one cell; `conditions_of` has the number of each record's conditions.

    With `rounds`, short cells of the same row in turns, speed and memory are from these.
    """
    measured: dict[int, list[Record]] = defaultdict(list)
    for record in rounds or done:
        measured[conditions_of[record.cell]].append(record)
    whole: dict[int, list[Record]] = defaultdict(list)
    for record in done:
        whole[conditions_of[record.cell]].append(record)
    return tuple(
        _cost(under, measured[under], whole[under] or done, bool(rounds))
        for under in sorted(measured)
    )


def _cost(under: int, records: list[Record], whole: Sequence[Record], in_turns: bool) -> CellCost:
    """Speed and memory of `records`; the time of a cell from `whole`, which has no rounds."""
    speeds = [record.speed.examples_per_s for record in records if record.speed]
    memories = [record.memory for record in records if record.memory]
    parts = dict.fromkeys(part for memory in memories for part in memory.by_part)
    return CellCost(
        under=under,
        examples_per_s=Spread.of(speeds),
        peak_mib=Spread.of(memory.peak_mib for memory in memories),
        train_peak_mib=Spread.of(memory.train_peak_mib for memory in memories),
        total_s=Spread.of(record.total_s for record in whole),
        by_part_mib={
            part: mean(finite_values(m.by_part.get(part) for m in memories)) for part in parts
        },
        in_turns=in_turns,
    )


AnyCost = TypeVar("AnyCost", CellCost, RowCost)


def main_cost(costs: Sequence[AnyCost]) -> AnyCost | None:
    """The cost under the conditions of most cells; costs under others do not compare with it.

    None where nothing was measured under these conditions.
    """
    return next((cost for cost in costs if cost.under == 0), None)


def row_costs(cells: Iterable[Sequence[CellCost]]) -> tuple[RowCost, ...]:
    """The costs of one row, from those of its cells."""
    by_conditions: dict[int, list[CellCost]] = defaultdict(list)
    for costs in cells:
        for cost in costs:
            by_conditions[cost.under].append(cost)
    return tuple(_row_cost(under, by_conditions[under]) for under in sorted(by_conditions))


def _row_cost(under: int, costs: list[CellCost]) -> RowCost:
    return RowCost(
        under=under,
        n_tasks=len(costs),
        examples_per_s=mean(finite_values(cost.examples_per_s.mean for cost in costs)),
        peak_mib=max(finite_values(cost.peak_mib.mean for cost in costs), default=None),
        cell_s=mean(finite_values(cost.total_s.mean for cost in costs)),
    )
