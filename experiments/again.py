"""Do verdicts stay with other seeds? `python experiments/again.py FIRST SECOND OUT`, two folders.

Both comparisons are judged on the tasks and rows that both have, each by its own seeds alone and
corrected for the pairs of these rows. The verdicts go to OUT, since the predictions that they are
computed from hold the labels of dev and are not kept beside records.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from whole import whole

from peftlab.atomic import write
from peftlab.records.pairs import Verdict, verdict_between
from peftlab.records.record import Record
from peftlab.records.verdicts import Comparison, compare_rows

SURE = ("better", "worse")


class Stay(NamedTuple):
    """How many pairs of a task two comparisons tell apart, and whether they agree.

    Attributes:
        told: pairs that the first comparison tells apart.
        stay: of these, the pairs with the same verdict in the second.
        turned: of these, the pairs with the contrary verdict in the second.
        more: pairs that only the second tells apart.
    """

    told: int
    stay: int
    turned: int
    more: int


def stay(first: Comparison, second: Comparison) -> dict[str, Stay]:
    """For each task, how far the second comparison confirms the first, on the pairs of both."""
    tasks = dict.fromkeys(pair.task for pair in first.pairs)
    return {task: _stay(_pairs(first, task), _pairs(second, task)) for task in tasks}


def _pairs(comparison: Comparison, task: str) -> list[Verdict]:
    return [pair for pair in comparison.pairs if pair.task == task]


def _stay(first: Sequence[Verdict], second: Sequence[Verdict]) -> Stay:
    verdicts = [
        (pair.verdict, again.verdict)
        for pair in first
        if (again := verdict_between(second, pair.a, pair.b)) is not None
    ]
    sure = [(before, after) for before, after in verdicts if before in SURE]
    return Stay(
        told=len(sure),
        stay=sum(before == after for before, after in sure),
        turned=sum({before, after} == {*SURE} for before, after in sure),
        more=sum(before not in SURE and after in SURE for before, after in verdicts),
    )


def main(first: Path, second: Path, out: Path) -> None:
    folders = (first, second)
    records = [whole(folder) for folder in folders]
    shared = set.intersection(*({_row(record) for record in run} for run in records))
    comparisons = [
        compare_rows([record for record in run if _row(record) in shared], [folder])
        for folder, run in zip(folders, records, strict=True)
    ]
    for name, comparison in zip(("first", "second"), comparisons, strict=True):
        write(out / f"{name}.json", comparison.model_dump_json(indent=2) + "\n")
    for task, counts in stay(*comparisons).items():
        print(task, *(f"{name} {n}" for name, n in counts._asdict().items()))


def _row(record: Record) -> tuple[str, str]:
    return record.task.name, record.method.label


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
