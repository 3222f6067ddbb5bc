"""What each row answered to each dev example of a task, packed for the page.

Numbers and classes; the examples' texts, which may be private, only if somebody asks for them.
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
from peftlab.report.scores import Cell, Table

FIRST = ord("0")  # the character of class 0
MOST_CLASSES = 75  # whose characters end at z; more are numbers
MOST_BYTES = 250_000  # of all tasks together: the page stays under 3 MB; texts come on top


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of one task, by one seed of each row: a character or a number for each example.

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
    """The answers of each task with two rows that can be compared; and the tasks that don't fit.

    `sentences` are the texts that are asked for, by the sha256 of their task's data.
    """
    found: list[Answers] = []
    left_out: list[str] = []
    room = MOST_BYTES
    for index, column in enumerate(table.columns):
        cells = {row.label: cell for row in table.rows if (cell := row.cells[index]) and cell.runs}
        one = _answers(column, cells, folder, sentences.get(column.sha256, ()))
        size = len(json.dumps([one.labels, one.by_row])) if one else 0
        if size > room:
            left_out.append(column.label)
        elif one:
            found.append(one)
            room -= size
    return found, left_out


def _answers(
    column: Column, cells: dict[str, Cell], folder: Path, texts: Sequence[str]
) -> Answers | None:
    """By the lowest of the seeds that most rows have."""
    seeds = Counter(run.seed for cell in cells.values() for run in cell.runs)
    seed = min(seeds, key=lambda one: (-seeds[one], one), default=None)
    names = {
        label: run.cell for label, cell in cells.items() for run in cell.runs if run.seed == seed
    }
    given = {label: read(folder / f"{cell}.jsonl", column.n_dev) for label, cell in names.items()}
    labels = next(([label for label, *_ in pairs] for pairs in given.values() if pairs), [])
    places = _places(labels)
    by_row = {
        row: _packed([answer for _, answer, _ in pairs], column, places)
        for row, pairs in given.items()
        if pairs and [label for label, *_ in pairs] == labels
    }
    if seed is None or len(by_row) < 2:
        return None
    return Answers(column.label, column.kind, seed, _packed(labels, column, places), by_row, texts)


def _places(labels: Sequence[float]) -> int:
    """The decimals that hold a thousandth of the labels' spread: 2015.2 is not 2014.9."""
    spread = statistics.pstdev(labels) if labels else 0.0
    return 3 - math.floor(math.log10(spread)) if spread else 3


def _packed(values: list[float], column: Column, places: int) -> str | list[float]:
    if column.kind == "classes" and len(column.labels) <= MOST_CLASSES:
        return "".join(chr(FIRST + int(value)) for value in values)
    return [round(value, places) for value in values]
