"""Every run for the page: its settings, its result, and the command that runs it again.

Times and speeds stand in the page's table. Runs share most of their other values, so each distinct
text or mapping is kept once, and a run has its index: five hundred runs take 100 KB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.records.record import Record
from peftlab.records.rows import task_key
from peftlab.report.columns import Column
from peftlab.report.curves import Curves, smooth, thin
from peftlab.report.scores import Table

DIGITS = 6
LOSSES = 40  # points of a run's own curve, which is drawn small


class Distinct:
    """Distinct values, each kept once; `place` gives the index of one."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """The index of the value, which is added if it is new."""
        key = json.dumps(value, sort_keys=True, default=str)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def runs(
    table: Table,
    records: Sequence[Record],
    commands: Mapping[str, str],
    curves: Mapping[str, Curves],
) -> dict[str, Any]:
    """`cells` by name, and the list of `shared` values, which a cell's `at` and `command` index."""
    by_cell = {record.cell: record for record in records}
    columns = {column.key: column for column in table.columns}
    shared = Distinct()
    cells = {}
    for cell, label in _cells(table):
        record = by_cell[cell]
        column = columns[task_key(record)]
        cells[cell] = _run(record, label, column, commands.get(cell), shared)
        if cell in curves:
            cells[cell] |= _curve(curves[cell], column.metric)
    return {"cells": cells, "shared": shared.values}


def _cells(table: Table) -> list[tuple[str, str]]:
    """Every cell's name with its row's label; failed ones last."""
    cells = [(row.label, cell) for row in table.rows for cell in row.cells if cell]
    done = [(run.cell, label) for label, cell in cells for run in cell.runs]
    return done + [(bad.cell, bad.row) for bad in table.failures]


def _run(
    record: Record, label: str, column: Column, command: str | None, shared: Distinct
) -> dict[str, Any]:
    shared_parts = {
        "method": {
            "name": record.method.name,
            **record.method.settings,
            "adapted": ", ".join(record.method.targets) or "no layer",
        },
        "training": {**record.training, "precision of the base": record.precision},
        "model": _without_missing(record.model.model_dump()),
        "environment": _environment(record),
    }
    seed_option = f"--seeds {record.seed} "
    return {
        "method": label,
        "task": column.label,
        "seed": record.seed,
        **_without_missing(
            {
                "score": record.score and _round(record.score),
                "hides": "; ".join(record.warnings) or None,
                "failed": record.failure and f"{record.failure.kind}: {record.failure.message}",
            }
        ),
        "at": {name: shared.place(value) for name, value in shared_parts.items()},
        # all but the seed is the same for a row's runs on a task
        "command": [shared.place(part) for part in command.split(seed_option)] if command else None,
    }


def _curve(curves: Curves, metric: str) -> dict[str, list[float | None]]:
    """The score of each epoch, and the smoothed loss at even steps, as far as they are known."""
    scores = [y for _, y in curves.score.get(metric, [])]
    window = len(curves.loss) // LOSSES | 1
    losses = [y for _, y in thin(smooth(curves.loss, window), LOSSES)]
    lines = {"epochs": scores, "losses": losses}
    return {name: [float(f"{y:.4g}") for y in ys] for name, ys in lines.items() if ys}


def _environment(record: Record) -> dict[str, Any]:
    fields = record.environment.model_dump()
    return _without_missing({**fields.pop("packages"), **fields})


def _without_missing(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _round(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The scores with `DIGITS` digits; None for NaN."""
    return {name: float(f"{x:.{DIGITS}g}") if x == x else None for name, x in scores.items()}
