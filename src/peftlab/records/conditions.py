"""Conditions that speed and memory depend on: only runs under the same ones may be compared."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from peftlab.records.record import Record
from peftlab.records.rows import finite_values

# which a method's layers and the precision of its base decide, where all are built
KERNELS_OF_METHODS = {"gelu.cpp", "products.cpp", "low_rank.cpp", "gain.cpp"}
SAME_LEVEL_RATIO = 1.1  # mean numbers of parts this close differ by the drawing of batches alone


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of a run: what speed and memory depend on beside the cell's own settings.

    `spin_count` is empty with one thread, which waits for no other. Where the runs of a row agree
    on it, `quantiser` is None, and `kernels` leaves out those that depend on the method; `parts` is
    None where the row's seeds on a task agree.
    """

    processor: str
    gpu: str | None
    threads: int
    spin_count: str | None
    torch: str | None
    peftlab: str | None
    kernels: str | None
    quantiser: str | None
    parts: float | None


def conditions(rows: Iterable[Sequence[Record]]) -> dict[str, Conditions]:
    """The conditions of every done cell, by its name. `rows` are the records of each row."""
    by_cell: dict[str, Conditions] = {}
    for row in rows:
        done = [record for record in row if record.is_done]
        quantisers = {record.environment.quantiser for record in done}
        kernels = {record.environment.kernels for record in done}
        levels = _part_levels(done)
        for record in done:
            environment = record.environment
            by_cell[record.cell] = Conditions(
                processor=environment.processor,
                gpu=environment.gpu,
                threads=environment.threads,
                spin_count=environment.spin_count if environment.threads > 1 else "",
                torch=environment.packages.get("torch"),
                peftlab=environment.packages.get("peftlab"),
                kernels=environment.kernels
                if len(kernels) > 1
                else _of_all_methods(environment.kernels),
                quantiser=environment.quantiser if len(quantisers) > 1 else None,
                parts=levels.get(record.cell),
            )
    return by_cell


def _of_all_methods(kernels: str | None) -> str | None:
    if kernels is None:
        return None
    names = [name for name in kernels.split(", ") if name not in KERNELS_OF_METHODS]
    return ", ".join(names) or "torch"


def ordered(by_cell: Mapping[str, Conditions], cells: Set[str]) -> tuple[Conditions, ...]:
    """Every set of conditions once, the one that most of `cells` ran under first."""
    counts = Counter(ran_under for cell, ran_under in by_cell.items() if cell in cells)
    by_frequency = [ran_under for ran_under, _ in counts.most_common()]
    return tuple(dict.fromkeys([*by_frequency, *by_cell.values()]))


def _part_levels(row: Iterable[Record]) -> dict[str, float]:
    """The level of each cell's mean number of parts, on tasks whose seeds are not all on one.

    A level is named by its lowest number.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in row:
        by_task[record.task.sha256].append(record)
    level_of: dict[str, float] = {}
    for records in by_task.values():
        levels: list[float] = []
        for parts in sorted(finite_values(record.parts for record in records)):
            if not levels or parts > SAME_LEVEL_RATIO * levels[-1]:
                levels.append(parts)
        if len(levels) + any(record.parts is None for record in records) > 1:
            for record in records:
                if record.parts is not None:
                    level_of[record.cell] = max(x for x in levels if x <= record.parts)
    return level_of
