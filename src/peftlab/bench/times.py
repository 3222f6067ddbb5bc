"""How long a cell will take, from the record of a similar one: an earlier cell, or a few steps.

train   tokens of all epochs / the record's tokens per second
eval    the record's seconds, scaled by the number of tokens answered
other   the record's seconds: loading, and the preparation of a method
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.bench.cell import Cell, Order
from peftlab.bench.execute import Worker
from peftlab.bench.grid import Grid, task_part
from peftlab.bench.outcome import CellScorer
from peftlab.bench.short import short, short_cell
from peftlab.errors import RequestError
from peftlab.machine import gpu, processor
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.settings import Resolved
from peftlab.tasks.metrics import score
from peftlab.training import Encoded
from peftlab.training.meters import WARMUP_STEPS

# the settings that speed depends on beside the model, the most important first
SETTINGS = ("fast", "graphs", "checkpointing", "batch_size", "accumulation", "batches", "parts")
STEPS = WARMUP_STEPS + 12  # run to measure a cell; the first ones don't count for its speed
N_DEV = 256  # examples of dev that a measured cell answers


@dataclass(frozen=True)
class Time:
    """Predicted seconds of a cell, and what they are taken from."""

    cell_s: float
    source: str


def records_of(folders: Iterable[Path]) -> list[Record]:
    """The records of done cells in these folders that have a speed, on a machine like this one."""
    records: list[Record] = []
    for folder in folders:
        try:
            records += Store(folder).records()
        except RequestError:  # no such folder, or nothing in it that can be read
            continue
    this_processor, gpus = processor(), {None, gpu()}  # a cell that ran on a CPU has no GPU
    return [
        record
        for record in records
        if record.is_done
        and record.speed is not None
        and record.speed.tokens_per_s
        and record.environment.processor == this_processor
        and record.environment.gpu in gpus
    ]


def by_records(
    cell: Cell, train: Encoded, dev: Encoded, weights: float | None, records: Sequence[Record]
) -> Time | None:
    """The time of a cell by the most similar record with its method, threads and device, if any.

    Args:
        cell: the cell to be run.
        train: the lengths of its task's train.
        dev: the lengths of its dev.
        weights: MiB of its model's weights, by which another model's speed is scaled, if known.
        records: records of this machine.
    """
    candidates = [
        record
        for record in records
        if record.method.name == cell.method.name
        and record.environment.threads == cell.training.threads
        and record.training["device"] == cell.training.device
    ]
    if not candidates:
        return None
    # of equally similar records the last
    record = max(reversed(candidates), key=lambda record: _similarity(record, cell))
    source = f"{record.model.name}, {record.task.name}"
    if record.model.sha256 == cell.model.sha256:
        return Time(_seconds(cell, train, dev, record), source)
    record_weights = record.memory and record.memory.by_part.get("weights")
    if not record_weights or weights is None:
        return None
    seconds = _seconds(cell, train, dev, record, weights / record_weights)
    return Time(seconds, f"{source}, by the size of the weights")


def measure_cells(
    grid: Grid, cells: Iterable[Cell], tell: Callable[[str], None] = lambda _: None
) -> dict[str, Record]:
    """The records of a few steps of each cell, by the cell's name; nothing is written to disk.

    Args:
        grid: the grid of the cells.
        cells: the cells; one of each row and task will do.
        tell: is told the title of each cell that runs.
    """
    records: dict[str, Record] = {}
    with Worker() as worker, tempfile.TemporaryDirectory(prefix="peftlab-") as scratch:
        for cell in cells:
            tell(cell.title)
            task = short(grid.tasks[cell.task.name], STEPS * cell.training.batch_size, N_DEV)
            file = Path(scratch) / f"{len(records)}.json"
            task.write(file)
            # the first scoring loads scikit-learn, which is no time of the cell's
            score(task.metrics, task.dev.labels, task.dev.labels)
            measured = short_cell(cell, task_part(task))
            scorer = CellScorer(task)
            result = worker.run(Order(cell=measured, task_file=file), scorer)
            records[cell.name] = scorer.outcome(measured, result).record
    return records


def by_measured(cell: Cell, train: Encoded, dev: Encoded, record: Record) -> Time | None:
    """The time of a cell by a record of its first few steps; None if those failed."""
    if not record.is_done or record.speed is None or not record.speed.tokens_per_s:
        return None
    return Time(_seconds(cell, train, dev, record), f"{STEPS} steps, measured")


def _similarity(record: Record, cell: Cell) -> tuple[bool, ...]:
    """What the record's cell and `cell` have in common, the most important first."""
    defaults = {name: Resolved.model_fields[name].default for name in SETTINGS}
    settings = defaults | record.training  # a record may be older than a setting
    return (
        record.model.sha256 == cell.model.sha256,
        record.precision == cell.precision.base,
        *(settings[name] == getattr(cell.training, name) for name in SETTINGS),
        record.method.settings == cell.method.settings,
        record.task.sha256 == cell.task.sha256,
    )


def _seconds(cell: Cell, train: Encoded, dev: Encoded, record: Record, scale: float = 1.0) -> float:
    """The cell's seconds if it is as fast as the record's cell, or `scale` times slower."""
    speed = record.speed
    assert speed is not None
    assert speed.tokens_per_s
    assert speed.examples_per_s
    epochs = cell.training.epochs
    train_s: float = epochs * sum(train.lengths) / speed.tokens_per_s
    n_ranks = len(record.score_by_rank or {})  # dev is answered at each, beside once an epoch
    evaluation_ratio: float = (epochs + n_ranks) / (record.training["epochs"] + n_ranks)
    record_dev_tokens: float = record.task.n_dev * speed.tokens_per_s / speed.examples_per_s
    dev_ratio = sum(dev.lengths) / record_dev_tokens
    eval_s: float = (record.eval_s or 0.0) * evaluation_ratio * dev_ratio
    other_s = (record.total_s or 0.0) - (record.train_s or 0.0) - (record.eval_s or 0.0)
    return scale * (train_s + eval_s) + max(0.0, other_s)
