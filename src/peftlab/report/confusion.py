"""Confusion matrices: dev examples by true and predicted class, from predictions/CELL.jsonl."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from peftlab.records.predictions import read
from peftlab.report.columns import Column
from peftlab.report.scores import Table, TableCell

MOST_CLASSES = 20  # a wider table can't be read, and makes the page large


@dataclasses.dataclass(frozen=True)
class Confusion:
    """One method on one task: `counts[true][predicted]` dev examples, summed over `n_seeds`."""

    method: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    n_seeds: int

    def share(self, true: int, predicted: int) -> float:
        """The share of the examples of class `true` taken for `predicted`; 0 if there are none."""
        total = sum(self.counts[true])
        return self.counts[true][predicted] / total if total else 0.0


def confusions(table: Table, folder: Path) -> list[tuple[Column, list[Confusion]]]:
    """The matrices of every task with classes, as far as `folder` holds predictions."""
    tasks = []
    for index, column in enumerate(table.columns):
        if column.kind != "classes" or len(column.labels) > MOST_CLASSES:
            continue
        cells = [(row.label, row.cells[index]) for row in table.rows]
        counted = [_confusion(label, cell, column, folder) for label, cell in cells if cell]
        if matrices := [matrix for matrix in counted if matrix]:
            tasks.append((column, matrices))
    return tasks


def _confusion(method: str, cell: TableCell, column: Column, folder: Path) -> Confusion | None:
    seeds = [read(folder / f"{run.cell}.jsonl", column.n_dev) for run in cell.runs]
    counts = Counter((int(one.label), int(one.prediction)) for of_seed in seeds for one in of_seed)
    if not counts:
        return None
    n_classes = len(column.labels) or 1 + max(max(pair) for pair in counts)
    if n_classes > MOST_CLASSES:
        return None
    classes = range(n_classes)
    return Confusion(
        method=method,
        labels=column.labels or tuple(map(str, classes)),  # early records have no names
        counts=tuple(tuple(counts[true, predicted] for predicted in classes) for true in classes),
        n_seeds=sum(bool(seed) for seed in seeds),
    )
