"""The answers of each row to each dev example of a task, packed for the page.

Numbers and classes; the examples' texts, which may be private, are included only on request.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from peftlab.records.predictions import read
from peftlab.report.columns import Column
from peftlab.report.scores import Table, TableCell

FIRST = ord("0")  # the character of class 0
MOST_CLASSES = 75  # the last has the character z; a task with more has numbers
MOST_BYTES = 250_000  # of all tasks together: the page stays under 3 MB; texts come on top


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to one task by one seed of each row: a character or a number an example.

    `texts` of the examples are empty where they were not asked for.
    """

    task: str
    kind: str
    seed: int
    labels: str | list[float]
    by_row: dict[str, str | list[float]]
    texts: Sequence[str]


def answers(
    table: Table, folder: Path, sentences: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[list[Answers], list[str]]:
    """The answers to each task with two rows that can be compared; and the tasks that don't fit.

    `sentences` are the texts that were asked for, by the sha256 of their task's data.
    """
    included: list[Answers] = []
    left_out: list[str] = []
    room = MOST_BYTES
    for index, column in enumerate(table.columns):
        cells = {row.label: cell for row in table.rows if (cell := row.cells[index]) and cell.runs}
        task = _answers(column, cells, folder, sentences.get(column.sha256, ()))
        size = len(json.dumps([task.labels, task.by_row])) if task else 0
        if size > room:
            left_out.append(column.label)
        elif task:
            included.append(task)
            room -= size
    return included, left_out


def _answers(
    column: Column, cells: dict[str, TableCell], folder: Path, texts: Sequence[str]
) -> Answers | None:
    """The answers by the lowest of the seeds that most rows have; None for fewer than two rows."""
    counts = Counter(run.seed for cell in cells.values() for run in cell.runs)
    seed = min(counts, key=lambda seed: (-counts[seed], seed), default=None)
    predictions = {
        row: read(folder / f"{run.cell}.jsonl", column.n_dev)
        for row, cell in cells.items()
        for run in cell.runs
        if run.seed == seed
    }
    labels = next(([one.label for one in lines] for lines in predictions.values() if lines), [])
    decimals = _decimals(labels)
    by_row = {
        row: _pack([one.prediction for one in lines], column, decimals)
        for row, lines in predictions.items()
        if lines and [one.label for one in lines] == labels
    }
    if seed is None or len(by_row) < 2:
        return None
    return Answers(column.label, column.kind, seed, _pack(labels, column, decimals), by_row, texts)


def _decimals(labels: Sequence[float]) -> int:
    """The decimals that hold a thousandth of the labels' spread: 2015.2 is not 2014.9."""
    spread = statistics.pstdev(labels) if labels else 0.0
    return 3 - math.floor(math.log10(spread)) if spread else 3


def _pack(values: list[float], column: Column, decimals: int) -> str | list[float]:
    if column.kind == "classes" and len(column.labels) <= MOST_CLASSES:
        return "".join(chr(FIRST + int(value)) for value in values)
    return [round(value, decimals) for value in values]
