"""Find the cells that are done already, and judge them by the metric that is asked for now.

A metric is no part of a cell's identity: it does not change the training. A record with another
main metric gets the one asked for; its best epoch then comes from its curve, if that is there, and
the constant baseline's score says whether it collapsed. The task's other records in the folder are
changed too, since scores by two metrics stand in two columns, of which neither is the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable

from peftlab.bench.cell import Cell
from peftlab.bench.outcome import best_epoch
from peftlab.bench.score_warnings import NO_BETTER, is_collapsed
from peftlab.records.record import Best, Record, TaskPart
from peftlab.records.rows import COLLAPSED, constant_of
from peftlab.records.store import Store, rows_of
from peftlab.training import Diverged


def done_cells(
    store: Store, cells: Iterable[Cell], keeps_adapters: bool = False
) -> dict[str, Record]:
    """The records of those cells that are done, by the cells' names; see `done_cell`."""
    records = {cell.name: done_cell(store, cell, keeps_adapters) for cell in cells}
    return {name: record for name, record in records.items() if record is not None}


def done_cell(store: Store, cell: Cell, keeps_adapters: bool = False) -> Record | None:
    """The record of a cell, or None if it is not done or lacks the score by the cell's metric.

    With `keeps_adapters` also if its adapter could not be written, as on a full disk, but its last
    checkpoint could: from there it is made in a minute.
    """
    record = store.read(cell.name)
    if record is None or not record.is_done:
        return None
    if keeps_adapters and store.lost_adapter(cell.name):
        return None
    return _rejudged(store, record, cell.task.main_metric)


def has_ended(record: Record) -> bool:
    """Whether its training ended by itself: it is done, or diverged, as it would again."""
    failure = record.failure
    return failure is None or failure.kind == Diverged.__name__


def ended_trial(store: Store, cell: Cell, keeps_adapters: bool = False) -> Record | None:
    """The record of a trial that has ended, or None if it must run; see `done_cell`."""
    record = store.read(cell.name)
    if record is not None and record.failure and has_ended(record):
        return record
    return done_cell(store, cell, keeps_adapters)


def judge_anew(store: Store, tasks: Iterable[TaskPart]) -> None:
    """Judge all records of these tasks by the tasks' metrics, where they have those scores."""
    metrics = {(task.name, task.sha256): task.main_metric for task in tasks}
    for cell in store.cells():
        if (record := store.read(cell)) is None:
            continue
        metric = metrics.get((record.task.name, record.task.sha256), record.task.main_metric)
        rejudged = _rejudged(store, record, metric)
        if rejudged is not None and rejudged != record:
            store.write_record(rejudged)


def _rejudged(store: Store, record: Record, metric: str) -> Record | None:
    """The record with `metric` as its main one; None if it is done and lacks that score."""
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
            "best": _best(_epoch_scores(store, record), metric),
            "warnings": _warnings(record, metric),
        }
    )


def _best(scores: list[dict[str, float]], metric: str) -> Best | None:
    """The best epoch by `metric`, given each epoch's scores; None without a curve that has it."""
    if not scores or not all(metric in score for score in scores):
        return None
    return best_epoch(scores, metric)


def _warnings(record: Record, metric: str) -> list[str]:
    """The record's warnings; that of a collapse is decided anew by `metric`.

    They are unchanged if the constant baseline has no score by `metric`.
    """
    constant = constant_of(record.task)
    if metric not in constant:
        return record.warnings
    warnings = [warning for warning in record.warnings if not warning.startswith(COLLAPSED)]
    score = (record.score or {})[metric]
    if is_collapsed(record.task.kind, metric, warnings, score, constant[metric]):
        warnings.append(NO_BETTER)
    return warnings


def _epoch_scores(store: Store, record: Record) -> list[dict[str, float]]:
    """The scores after each epoch from the record's curve; empty without a curve."""
    return [row["score"] for row in rows_of(store.curve(record.cell)) if "score" in row]
