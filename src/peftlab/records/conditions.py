"""What speed and memory depend on beside what was asked: only runs of like conditions compare."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from peftlab.records.record import Record
from peftlab.records.rows import known

ALIKE = 1.1  # mean numbers of parts whose ratio is below this differ by the drawing of batches


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What speed and memory depend on beside what was asked.

    `spin_count` is empty of one thread, which waits for no other; `quantiser` is None where a
    method's runs agree on it, `parts` where a cell's runs do.
    """

    processor: str
    gpu: str | None
    threads: int
    spin_count: str | None
    torch: str | None
    kernels: str | None
    quantiser: str | None
    parts: float | None


def conditions(rows: Iterable[Sequence[Record]]) -> dict[str, Conditions]:
    """The conditions of every done cell, by its name. `rows` are the records of each row."""
    found: dict[str, Conditions] = {}
    for row in rows:
        done = [record for record in row if record.is_done]
        quantisers = {record.environment.quantiser for record in done}
        parts = _levels_by_task(done)
        for record in done:
            environment = record.environment
            found[record.cell] = Conditions(
                processor=environment.processor,
                gpu=environment.gpu,
                threads=environment.threads,
                spin_count=environment.spin_count if environment.threads > 1 else "",
                torch=environment.packages.get("torch"),
                kernels=environment.kernels,
                quantiser=environment.quantiser if len(quantisers) > 1 else None,
                parts=parts.get(record.cell),
            )
    return found


def ordered(found: Mapping[str, Conditions], read: Set[str]) -> tuple[Conditions, ...]:
    """Every set of conditions once, that of most of the cells in `read` first."""
    counts = Counter(one for cell, one in found.items() if cell in read)
    return tuple(dict.fromkeys([*(one for one, _ in counts.most_common()), *found.values()]))


def _levels_by_task(row: Iterable[Record]) -> dict[str, float]:
    """The level of parts of each cell in a task whose seeds do not agree on it."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in row:
        by_task[record.task.sha256].append(record)
    levels: dict[str, float] = {}
    for records in by_task.values():
        steps: list[float] = []
        for value in sorted(known(record.parts for record in records)):
            if not steps or value > ALIKE * steps[-1]:
                steps.append(value)
        if len(steps) + any(record.parts is None for record in records) > 1:
            for record in records:
                if record.parts is not None:
                    levels[record.cell] = max(one for one in steps if one <= record.parts)
    return levels
