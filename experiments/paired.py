"""Two folders of the same cells under two conditions: what the second condition costs or gains.

For each task and method: the difference second - first of the main metric after the last epoch,
paired by seed, with Student's 95 % interval of its mean; and the ratio of their training times.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from scipy.stats import ttest_1samp
from whole import whole

from peftlab.errors import RequestError
from peftlab.records.record import Record

Key = tuple[str, str, int]  # task, the row's label, seed


class Paired(NamedTuple):
    """The difference of one task and method over all seeds."""

    task: str
    method: str
    n_seeds: int
    mean: float
    low: float
    high: float
    time: float  # of the second over the first

    def __str__(self) -> str:
        return (
            f"{self.task:14} {self.method:6} {self.n_seeds} seeds  {self.mean:+.4f}  "
            f"[{self.low:+.4f}, {self.high:+.4f}]  time {self.time:.2f}"
        )


def paired(first: Path, second: Path) -> list[Paired]:
    """Every task and method, which both folders have with the same seeds, two or more.

    Raises:
        RequestError: if a cell is missing, failed or there twice, if there is one seed alone, or if
            two cells differ in more than one condition.
    """
    before, after = _read(first), _read(second)
    if odd := before.keys() ^ after.keys():
        raise RequestError(f"{first} and {second} do not have the same cells: {sorted(odd)}")
    rows: dict[tuple[str, str], list[tuple[Record, Record]]] = defaultdict(list)
    for key in sorted(before):
        rows[key[:2]].append((before[key], after[key]))
    changed = {name for pair in itertools.chain(*rows.values()) for name in _unlike(*pair)}
    if len(changed) > 1:
        raise RequestError(f"{first} and {second} differ in more than one: {sorted(changed)}")
    if alone := sorted(key for key, pairs in rows.items() if len(pairs) == 1):
        raise RequestError(f"one seed alone has no interval: {alone}; train at least two")
    return [_paired(pairs) for pairs in rows.values()]


def _read(folder: Path) -> dict[Key, Record]:
    records: dict[Key, Record] = {}
    for record in whole(folder):
        key = (record.task.name, record.method.label, record.seed)
        if key in records or not record.is_done:
            fault = "is there twice" if key in records else "failed"
            raise RequestError(f"{folder}: {record.cell} {fault}")
        records[key] = record
    return records


def _unlike(before: Record, after: Record) -> set[str]:
    """The names of what two cells differ in."""
    one, other = (_conditions(record) for record in (before, after))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _conditions(record: Record) -> dict[str, object]:
    environment = record.environment
    return record.training | {
        # a base asked for in int8 is held in seven bits where the processor has no VNNI
        "precision": record.precision.replace("int7", "int8"),
        "settings": record.method.settings,
        "processor": (environment.processor, environment.gpu, environment.threads),
    }


def _paired(pairs: list[tuple[Record, Record]]) -> Paired:
    task, method = pairs[0][0].task, pairs[0][0].method.label
    metric = task.main_metric
    differences = [after.score[metric] - before.score[metric] for before, after in pairs]
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    mean = sum(differences) / len(differences)
    time = sum(after.train_s for _, after in pairs) / sum(before.train_s for before, _ in pairs)
    return Paired(task.name, method, len(pairs), mean, float(low), float(high), time)
