"""Do verdicts stay with other seeds? `python experiments/again.py FIRST SECOND OUT`, two folders.

Of the tasks and rows that both comparisons have, the verdicts of each by its own seeds alone,
corrected for the pairs of these rows. Both go to OUT, since the predictions that they are found
from, which hold the labels of dev, are not kept beside records.
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
    """Of a task's pairs that the first comparison tells apart: how many, and what became of them.

    Attributes:
        told: how many they are.
        stay: of them, those of which the second says the same.
        turned: those of which it says the contrary.
        more: pairs that the second alone tells apart.
    """

    told: int
    stay: int
    turned: int
    more: int


def stay(first: Comparison, second: Comparison) -> dict[str, Stay]:
    """What becomes of each task's verdicts; the pairs are those of both."""
    tasks = dict.fromkeys(pair.task for pair in first.pairs)
    return {task: _stay(_of(first, task), _of(second, task)) for task in tasks}


def _of(comparison: Comparison, task: str) -> list[Verdict]:
    return [pair for pair in comparison.pairs if pair.task == task]


def _stay(first: Sequence[Verdict], second: Sequence[Verdict]) -> Stay:
    both = [
        (one.verdict, again.verdict)
        for one in first
        if (again := verdict_between(second, one.a, one.b)) is not None
    ]
    told = [pair for pair in both if pair[0] in SURE]
    return Stay(
        told=len(told),
        stay=sum(before == after for before, after in told),
        turned=sum({*pair} == {*SURE} for pair in told),
        more=sum(before not in SURE and after in SURE for before, after in both),
    )


def main(first: Path, second: Path, out: Path) -> None:
    records = {folder: whole(folder) for folder in (first, second)}
    kept = set.intersection(*({_row(record) for record in some} for some in records.values()))
    found = [
        compare_rows([record for record in some if _row(record) in kept], [folder])
        for folder, some in records.items()
    ]
    for name, comparison in zip(("first", "second"), found, strict=True):
        write(out / f"{name}.json", comparison.model_dump_json(indent=2) + "\n")
    for task, of_task in stay(*found).items():
        print(task, *(f"{name} {n}" for name, n in of_task._asdict().items()))


def _row(record: Record) -> tuple[str, str]:
    return record.task.name, record.method.label


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
