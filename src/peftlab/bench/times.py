"""How long a cell will take, by a record of one that is like it: an earlier one, or a few steps.

train   tokens of all epochs / the record's tokens per second
eval    the record's, by tokens answered
else    the record's: loading, and what a method prepares
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.bench.cell import Cell
from peftlab.bench.execute import Order, Worker
from peftlab.bench.grid import Grid, task_part
from peftlab.bench.outcome import CellScorer
from peftlab.bench.short import short, short_cell
from peftlab.errors import RequestError
from peftlab.machine import gpu, processor
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.settings import Resolved
from peftlab.training import Encoded
from peftlab.training.meters import WARMING

# of a training, what its speed depends on beside the model, most first
COUNTING = ("fast", "graphs", "checkpointing", "batch_size", "accumulation", "batches", "parts")
STEPS = WARMING + 12  # that are measured, the first ones left out of the speed
ANSWERED = 256  # examples of dev


@dataclass(frozen=True)
class Time:
    """Seconds of a cell, and what they are taken from."""

    cell_s: float
    source: str


def records_of(folders: Iterable[Path]) -> list[Record]:
    """The done cells in these folders that ran on a machine like this one and have a speed."""
    found: list[Record] = []
    for folder in folders:
        try:
            found += Store(folder).records()
        except RequestError:  # no such folder, or nothing in it that can be read
            continue
    here, devices = processor(), {None, gpu()}  # a record of a CPU has no GPU
    return [
        record
        for record in found
        if record.is_done
        and record.speed is not None
        and record.speed.tokens_per_s
        and record.environment.processor == here
        and record.environment.gpu in devices
    ]


def by_records(
    cell: Cell, train: Encoded, dev: Encoded, weights: float | None, records: Sequence[Record]
) -> Time | None:
    """The time of a cell by the record nearest to it, if one has its method and threads.

    Args:
        cell: to be run.
        train: of its task, by lengths.
        dev: the same.
        weights: MiB of its model's weights, by which another model's speed is scaled, if known.
        records: of this machine.
    """
    able = [
        record
        for record in records
        if record.method.name == cell.method.name
        and record.environment.threads == cell.training.threads
        and record.training["device"] == cell.training.device
    ]
    if not able:
        return None
    record = max(reversed(able), key=lambda record: _likeness(record, cell))  # of equals the last
    if record.model.sha256 == cell.model.sha256:
        return Time(_seconds(cell, train, dev, record), f"{record.model.name}, {record.task.name}")
    held = record.memory and record.memory.by_part.get("weights")
    if not held or weights is None:
        return None
    seconds = _seconds(cell, train, dev, record, weights / held)
    return Time(seconds, f"{record.model.name}, {record.task.name}, by the size of the weights")


def measure_cells(
    grid: Grid, cells: Iterable[Cell], tell: Callable[[str], None] = lambda _: None
) -> dict[str, Record]:
    """The records of a few steps of each of the cells, by its name; nothing is kept of them.

    Args:
        grid: of the cells.
        cells: one of each row and task will do.
        tell: is told which one runs.
    """
    found: dict[str, Record] = {}
    with Worker() as worker, tempfile.TemporaryDirectory(prefix="peftlab-") as scratch:
        for cell in cells:
            tell(cell.title)
            task = short(grid.tasks[cell.task.name], STEPS * cell.training.batch_size, ANSWERED)
            file = Path(scratch) / f"{len(found)}.json"
            task.write(file)
            few = short_cell(cell, task_part(task))
            scorer = CellScorer(task)
            end = worker.run(Order(cell=few, task_file=file, adapter=None), scorer)
            found[cell.name] = scorer.outcome(few, end).record
    return found


def by_measured(cell: Cell, train: Encoded, dev: Encoded, record: Record) -> Time | None:
    """The time of a cell by a record of its first few steps; None if those failed."""
    if not record.is_done or record.speed is None or not record.speed.tokens_per_s:
        return None
    return Time(_seconds(cell, train, dev, record), f"{STEPS} steps, measured")


def _likeness(record: Record, cell: Cell) -> tuple[bool, ...]:
    theirs = {name: Resolved.model_fields[name].default for name in COUNTING} | record.training
    return (
        record.model.sha256 == cell.model.sha256,
        record.precision == cell.precision.base,
        *(theirs[name] == getattr(cell.training, name) for name in COUNTING),
        record.method.settings == cell.method.settings,
        record.task.sha256 == cell.task.sha256,
    )


def _seconds(cell: Cell, train: Encoded, dev: Encoded, record: Record, scale: float = 1.0) -> float:
    """What the cell takes if it does as much in a second as the record, or 1/`scale` of it."""
    speed = record.speed
    assert speed is not None
    assert speed.tokens_per_s
    assert speed.examples_per_s
    epochs = cell.training.epochs
    train_s: float = epochs * sum(train.lengths) / speed.tokens_per_s
    ranks = len(record.score_by_rank or {})  # answers to dev beside those of the epochs
    answers: float = (epochs + ranks) / (record.training["epochs"] + ranks)
    tokens: float = record.task.n_dev * speed.tokens_per_s / speed.examples_per_s
    eval_s: float = (record.eval_s or 0.0) * answers * sum(dev.lengths) / tokens
    other_s = (record.total_s or 0.0) - (record.train_s or 0.0) - (record.eval_s or 0.0)
    return scale * (train_s + eval_s) + max(0.0, other_s)
