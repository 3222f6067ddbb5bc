"""Cells that are done already, judged by the metric that is asked for now.

A metric is no part of a cell's identity: training is the same whatever judges it. A record whose
main metric is another takes the one asked for, its best epoch from its curve, if that is there, and
whether it collapsed by the constant baseline's score; so do the task's other records in the folder,
since scores by two metrics stand in two columns, of which neither is the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable

from peftlab.bench.cell import Cell
from peftlab.bench.score_warnings import NO_BETTER, is_collapsed
from peftlab.records.record import Best, Record, TaskPart
from peftlab.records.rows import COLLAPSED, constant_of, merit
from peftlab.records.store import Store, rows_of
from peftlab.training import Diverged


def done_cells(store: Store, cells: Iterable[Cell]) -> dict[str, Record]:
    """The records of those of the cells that are done, by name."""
    found = {cell.name: done_cell(store, cell) for cell in cells}
    return {name: record for name, record in found.items() if record is not None}


def done_cell(store: Store, cell: Cell) -> Record | None:
    """The record of a cell that is done; one that lacks the metric is not."""
    record = store.read(cell.name)
    if record is None or not record.is_done:
        return None
    return _judged(store, record, cell.task.main_metric)


def has_ended(record: Record) -> bool:
    """Whether its training came to an end: done, or diverged, as it would once more."""
    failure = record.failure
    return failure is None or failure.kind == Diverged.__name__


def ended_trial(store: Store, cell: Cell) -> Record | None:
    """The record of a trial that need not run again; one that lacks the metric must."""
    record = store.read(cell.name)
    if record is not None and record.failure and has_ended(record):
        return record
    return done_cell(store, cell)


def judge_anew(store: Store, tasks: Iterable[TaskPart]) -> None:
    """Judge all records of these tasks by the metrics that are asked for now, where they can be."""
    metrics = {(task.name, task.sha256): task.main_metric for task in tasks}
    for cell in store.cells():
        if (record := store.read(cell)) is None:
            continue
        metric = metrics.get((record.task.name, record.task.sha256), record.task.main_metric)
        judged = _judged(store, record, metric)
        if judged is not None and judged != record:
            store.write_record(judged)


def _judged(store: Store, record: Record, metric: str) -> Record | None:
    if record.task.main_metric == metric:
        return record
    if not record.is_done:
        task = record.task.model_copy(update={"main_metric": metric})
        return record.model_copy(update={"task": task})
    if metric not in (record.score or {}):
        return None
    return record.model_copy(
        update={
            "task": record.task.model_copy(update={"main_metric": metric}),
            "best": _best(_epochs(store, record), metric),
            "warnings": _warnings(record, metric),
        }
    )


def _best(epochs: list[dict[str, float]], metric: str) -> Best | None:
    """The best epoch by `metric`; None without a curve that has it."""
    if not epochs or not all(metric in score for score in epochs):
        return None
    best = max(range(len(epochs)), key=lambda epoch: merit(metric, epochs[epoch][metric]))
    return Best(epoch=best + 1, score=epochs[best])


def _warnings(record: Record, metric: str) -> list[str]:
    """The record's, of which that of a collapse depends on the metric; as it is if none can say."""
    told = [warning for warning in record.warnings if not warning.startswith(COLLAPSED)]
    constant = constant_of(record.task)
    if metric not in constant:
        return record.warnings
    score = (record.score or {})[metric]
    if is_collapsed(record.task.kind, metric, told, score, constant[metric]):
        told.append(NO_BETTER)
    return told


def _epochs(store: Store, record: Record) -> list[dict[str, float]]:
    """The scores after each epoch, as its curve has them; none without a curve."""
    return [row["score"] for row in rows_of(store.curve(record.cell)) if "score" in row]
