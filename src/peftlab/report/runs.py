"""Every run for the page: what was asked, what came out, and how to run it again.

Their times and speeds stand in the page's table. Runs share most of what else they say, so each
distinct text or mapping is kept once, and a run names its place: five hundred runs take 100 KB.
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
LOSSES = 40  # points of a run's own curve, which is drawn as wide as a hand


class Shared:
    """Values that are kept once; `place` is where one lies."""

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
    """`cells` by name, and `shared`, the values that their numbers in `at` are places of."""
    by_cell = {record.cell: record for record in records}
    named = {(one.task, one.metric, one.sha256): one for one in table.columns}
    shared = Shared()
    cells = {}
    for cell, label in _cells(table):
        record = by_cell[cell]
        column = named[task_key(record)]
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
    record: Record, label: str, column: Column, command: str | None, shared: Shared
) -> dict[str, Any]:
    told = {
        "method": {
            "name": record.method.name,
            **record.method.settings,
            "adapted": ", ".join(record.method.targets) or "no layer",
        },
        "training": {**record.training, "precision of the base": record.precision},
        "model": _given(record.model.model_dump()),
        "environment": _environment(record),
    }
    seeded = f"--seeds {record.seed} "
    return {
        "method": label,
        "task": column.label,
        "seed": record.seed,
        **_given(
            {
                "score": record.score and _rounded(record.score),
                "hides": "; ".join(record.warnings) or None,
                "failed": record.failure and f"{record.failure.kind}: {record.failure.message}",
            }
        ),
        "at": {name: shared.place(value) for name, value in told.items()},
        # all but the seed is the same for a row's runs on a task
        "command": [shared.place(part) for part in command.split(seeded)] if command else None,
    }


def _curve(curves: Curves, metric: str) -> dict[str, list[float | None]]:
    """The score of each epoch, and the loss over training, evenly and smoothed, where known."""
    scores = [y for _, y in curves.score.get(metric, [])]
    window = len(curves.loss) // LOSSES | 1
    losses = [y for _, y in thin(smooth(curves.loss, window), LOSSES)]
    found = {"epochs": scores, "losses": losses}
    return {name: [float(f"{y:.4g}") for y in ys] for name, ys in found.items() if ys}


def _environment(record: Record) -> dict[str, Any]:
    found = record.environment.model_dump()
    return _given({**found.pop("packages"), **found})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rounded(scores: Mapping[str, float]) -> dict[str, float | None]:
    """With as many digits as anyone reads; None for what is no number."""
    return {name: float(f"{x:.{DIGITS}g}") if x == x else None for name, x in scores.items()}
