"""The contents of results/reproduction: PART/TASK with records, trials, verdicts and losses."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

from reproduction import RESULTS
from whole import whole

from peftlab.bench.recipe import recipe
from peftlab.records.own import OwnScore
from peftlab.records.pairs import Verdict, verdict_between
from peftlab.records.record import Record
from peftlab.records.verdicts import Comparison

DOCS = Path(__file__).parents[1]
REPORT = recipe("founding-report")
NAMES = {"cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B"}
FULL = "full"
PROTOCOL = (FULL, "lora")  # the rows that are trained by the report's protocol, on CoLA
NOT_YET = "not run yet"
Row = tuple[str, str]  # a task's name, and the label of a row on it


def folders(part: str) -> list[Path]:
    """The part's folders, one for each task, in table 1's order."""
    return [folder for task in NAMES if (folder := RESULTS / part / task).exists()]


@functools.cache
def cells(part: str) -> dict[Row, list[Record]]:
    """The records of every row on every task, sorted by seed."""
    records: dict[Row, list[Record]] = defaultdict(list)
    for folder in folders(part):
        for record in sorted(whole(folder), key=lambda record: record.seed):
            records[record.task.name, record.method.label].append(record)
    return dict(records)


@functools.cache
def _comparisons(part: str) -> list[Comparison]:
    files = [folder / "verdicts.json" for folder in folders(part)]
    return [Comparison.model_validate_json(file.read_text(encoding="utf-8")) for file in files]


def owns(part: str) -> dict[Row, OwnScore]:
    """Every row's own score, with its interval."""
    scores = (score for comparison in _comparisons(part) for score in comparison.own)
    return {(score.task, score.row): score for score in scores}


def between(part: str, task: str, row: str, other: str) -> Verdict | None:
    """The verdict of a row against another one; None for a row against itself."""
    return verdict_between(pairs_on(part, task), row, other)


def pairs_on(part: str, task: str) -> list[Verdict]:
    """All verdicts of a task."""
    pairs = (pair for comparison in _comparisons(part) for pair in comparison.pairs)
    return [pair for pair in pairs if pair.task == task]


def table_rows() -> dict[str, list[str]]:
    """The rows of table 1 on each task that has run, in the table's order."""
    done = cells("fair")
    rows_of = {
        task: [row for row in REPORT.published.scores if (task, row) in done] for task in NAMES
    }
    return {task: rows for task, rows in rows_of.items() if rows}
