"""What is said before a grid runs: its cells, their time, and whether they fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from peftlab.bench.cell import Cell
from peftlab.bench.cost import IMPORTS_MIB, Cost, Predictor, largest
from peftlab.bench.grid import Grid
from peftlab.bench.times import Time, by_records
from peftlab.errors import RequestError
from peftlab.machine import available_mib
from peftlab.naming import counted, duration
from peftlab.records.record import Record

MAX_SUGGESTIONS = 3  # rows that do not fit, for which settings that would are looked for
# of a predicted peak; of 90 the furthest above the measured was .09 (docs/plan.md)
PREDICTION_ERROR = 0.15


def foresee(
    grid: Grid,
    cells: Sequence[Cell],
    records: Sequence[Record],
    room: float | None,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """The cells that are to run in one line, such as "plan: 30 cells, about 12 minutes, ...".

    Args:
        grid: resolved.
        cells: of it, those to run; at least one.
        records: of this machine, which times are taken from.
        room: `training_room` as it was before there was a worker; None if it is not known.
        tell: is told what is looked at.

    Raises:
        RequestError: if a method would not fit into the memory that is free.
    """
    predictor = Predictor(grid)
    found = largest(predictor, cells, tell)
    check_fits(predictor, cells, found, room)
    weights = {cost.label: cost.memory.by_part["weights"] for cost in found if cost.memory}
    times = [
        by_records(cell, *predictor.lengths_of(cell), weights.get(cell.method.label), records)
        for cell in cells
    ]
    said = line(len(cells), times, found)
    return said if room is not None else f"{said}; how much is free this system does not tell"


def line(cells: int, times: Sequence[Time | None], found: Sequence[Cost]) -> str:
    """So many cells, how long they take, and what the largest of them holds."""
    known = [time.cell_s for time in times if time is not None]
    words = [counted(cells, "cell")]
    if len(known) == cells:
        words.append(f"about {duration(sum(known))}")
    elif known:
        words.append(f"about {duration(sum(known))} for {len(known)}, unknown for the others")
    else:
        words.append("time unknown (peftlab plan --measure tells)")
    peaks = [(cost.memory.peak_mib, cost.label) for cost in found if cost.memory]
    if peaks:
        peak, label = max(peaks)
        words.append(f"at most {peak:,.0f} MiB ({label})")
    unknown = [cost.label for cost in found if cost.memory is None]
    if unknown:
        words.append(f"memory of {', '.join(unknown)} unknown")
    return f"plan: {', '.join(words)}"


def check_fits(
    predictor: Predictor, cells: Sequence[Cell], found: Sequence[Cost], room: float | None
) -> None:
    """Raise `RequestError` if a row is `surely_above` the `room`, and say what would fit.

    Args:
        predictor: of the grid.
        cells: that are to run.
        found: what the rows cost, each on the task of its widest batch.
        room: `training_room`; None if it is not known, and then nothing is refused.
    """
    if room is None:
        return
    too_large = [c for c in found if c.memory and surely_above(c.memory.peak_mib, room)]
    if not too_large:
        return
    lines = []
    for cost in too_large:
        assert cost.memory is not None
        lines.append(f"  {cost.label} on {cost.task} needs {cost.memory.peak_mib:,.0f} MiB")
        if len(lines) <= 2 * MAX_SUGGESTIONS:
            cell = _cell_of(cost, cells)
            lines.append(f"    fits with {_or(list(_ways(predictor, cell, room)))}")
    rest = [cost.label for cost in found if cost not in too_large]
    lines.append(f"  what fits as it is: {', '.join(rest) or 'none of the methods'}")
    said = "\n".join(lines)
    raise RequestError(
        f"{len(too_large)} of {len(found)} methods would not fit into memory: {room:,.0f} MiB are "
        f"free beside the libraries; nothing was trained\n{said}"
    )


def training_room(device: str) -> float | None:
    """What a training can take on `device`: what is free beside a worker's libraries.

    None where it is not known.
    """
    free = available_mib(device)
    return free if free is None or device != "cpu" else free - IMPORTS_MIB


def surely_above(peak_mib: float, room: float) -> bool:
    """Whether a predicted peak is above the room even if it is too high by `PREDICTION_ERROR`."""
    return peak_mib * (1 - PREDICTION_ERROR) > room


def _cell_of(cost: Cost, cells: Sequence[Cell]) -> Cell:
    return next(cell for cell in cells if cell.row == (cost.task, cost.label))


def _ways(predictor: Predictor, cell: Cell, room: float) -> Iterator[str]:
    """What to ask for, so that the cell fits into `room` MiB."""
    asked = cell.training

    def fits(**changed: object) -> bool:
        other = cell.model_copy(update={"training": asked.model_copy(update=changed)})
        memory = predictor.cost(other).memory
        return memory is not None and memory.peak_mib <= room

    parts = 2 * asked.accumulation
    while parts <= asked.batch_size:
        if fits(accumulation=parts):
            yield f"--accumulation {parts} (the same batches, in parts)"
            yield f"--batch-size {asked.batch_size * asked.accumulation // parts}"
            break
        parts *= 2
    if not asked.checkpointing and fits(checkpointing=True):
        yield "--checkpointing (slower)"


def _or(ways: list[str]) -> str:
    return " or ".join(ways) or "no batch size: weights, gradients and optimizer alone are too many"
