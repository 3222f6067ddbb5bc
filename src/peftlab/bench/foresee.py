"""The line on a grid before it runs: its cells, their time, and whether they fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from peftlab.bench.cell import Cell
from peftlab.bench.cost import IMPORTS_MIB, Forecast, Predictor, largest
from peftlab.bench.grid import Grid
from peftlab.bench.times import Time, by_records
from peftlab.errors import RequestError
from peftlab.machine import available_mib
from peftlab.naming import counted, duration
from peftlab.records.record import Record

MAX_SUGGESTIONS = 3  # rows that do not fit and for which settings that would fit are searched
# by which share a predicted peak may be too high; of 90 none was by more than .09 (docs/plan.md)
PREDICTION_ERROR = 0.15
NO_REMEDY = "no batch size: weights, gradients and optimizer alone are too many"


def foresee(
    grid: Grid,
    cells: Sequence[Cell],
    records: Sequence[Record],
    room: float | None,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """One line on the cells that are to run, such as "plan: 30 cells, about 12 minutes, ...".

    Args:
        grid: the resolved grid.
        cells: those of its cells that are to run; at least one.
        records: records of this machine, which times are taken from.
        room: `training_room` before the worker was started; None if it is not known.
        tell: is told the label of each method that is counted.

    Raises:
        RequestError: if a method would not fit into the memory that is free.
    """
    predictor = Predictor(grid)
    costs = largest(predictor, cells, tell)
    check_fits(predictor, cells, costs, room)
    weights = {cost.label: cost.memory.by_part["weights"] for cost in costs if cost.memory}
    times = [
        by_records(cell, *predictor.lengths_of(cell), weights.get(cell.method.label), records)
        for cell in cells
    ]
    plan = describe_plan(len(cells), times, costs)
    return plan if room is not None else f"{plan}; how much is free this system does not tell"


def describe_plan(n_cells: int, times: Sequence[Time | None], costs: Sequence[Forecast]) -> str:
    """The number of cells, how long they take, and the memory that the largest of them needs."""
    seconds = [time.cell_s for time in times if time is not None]
    parts = [counted(n_cells, "cell")]
    if len(seconds) == n_cells:
        parts.append(f"about {duration(sum(seconds))}")
    elif seconds:
        parts.append(f"about {duration(sum(seconds))} for {len(seconds)}, unknown for the others")
    else:
        parts.append("time unknown (peftlab plan --measure tells)")
    peaks = [(cost.memory.peak_mib, cost.label) for cost in costs if cost.memory]
    if peaks:
        peak, label = max(peaks)
        parts.append(f"at most {peak:,.0f} MiB ({label})")
    uncounted = [cost.label for cost in costs if cost.memory is None]
    if uncounted:
        parts.append(f"memory of {', '.join(uncounted)} unknown")
    return f"plan: {', '.join(parts)}"


def check_fits(
    predictor: Predictor, cells: Sequence[Cell], costs: Sequence[Forecast], room: float | None
) -> None:
    """Raise `RequestError` if a row is `surely_above` the `room`, and say what would fit.

    Args:
        predictor: of the grid.
        cells: those that are to run.
        costs: the cost of each row on the task with its widest batch.
        room: `training_room`; None if it is not known, and then nothing is refused.
    """
    if room is None:
        return
    too_large = [cost for cost in costs if cost.memory and surely_above(cost.memory.peak_mib, room)]
    if not too_large:
        return
    lines = []
    for number, cost in enumerate(too_large):
        assert cost.memory is not None
        lines.append(f"  {cost.label} on {cost.task} needs {cost.memory.peak_mib:,.0f} MiB")
        if number < MAX_SUGGESTIONS:
            cell = next(cell for cell in cells if cell.row == (cost.task, cost.label))
            remedies = " or ".join(_remedies(predictor, cell, room))
            lines.append(f"    fits with {remedies or NO_REMEDY}")
    fitting = [cost.label for cost in costs if cost not in too_large]
    lines.append(f"  what fits as it is: {', '.join(fitting) or 'none of the methods'}")
    details = "\n".join(lines)
    raise RequestError(
        f"{len(too_large)} of {len(costs)} methods would not fit into memory: {room:,.0f} MiB are "
        f"free beside the libraries; nothing was trained\n{details}"
    )


def training_room(device: str) -> float | None:
    """MiB that a training can take on `device`: the free memory less a worker's libraries.

    None where it is not known.
    """
    free = available_mib(device)
    return free if free is None or device != "cpu" else free - IMPORTS_MIB


def surely_above(peak_mib: float, room: float) -> bool:
    """Whether a predicted peak is above the room even if it is too high by `PREDICTION_ERROR`."""
    return peak_mib * (1 - PREDICTION_ERROR) > room


def _remedies(predictor: Predictor, cell: Cell, room: float) -> Iterator[str]:
    """Options with which the cell fits into `room` MiB."""
    training = cell.training

    def fits(**changes: object) -> bool:
        changed = cell.model_copy(update={"training": training.model_copy(update=changes)})
        memory = predictor.cost(changed).memory
        return memory is not None and memory.peak_mib <= room

    n_parts = 2 * training.accumulation
    while n_parts <= training.batch_size:
        if fits(accumulation=n_parts):
            yield f"--accumulation {n_parts} (the same batches, in parts)"
            yield f"--batch-size {training.batch_size * training.accumulation // n_parts}"
            break
        n_parts *= 2
    if not training.checkpointing and fits(checkpointing=True):
        yield "--checkpointing (slower)"
