"""Two folders of the same cells under two conditions: what the second condition costs or gains.

For each task and method: the difference second - first of the main metric after the last epoch,
paired by seed, with Student's 95 % interval of its mean; and the ratio of their training times.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from scipy.stats import ttest_1samp
from whole import whole

from peftlab.records.record import Record

Key = tuple[str, str, int]


class Paired(NamedTuple):
    """The difference of one task and method, over the seeds that both folders have."""

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
    """Every task and method with two seeds or more in both: one difference has no interval."""
    before, after = _read(first), _read(second)
    rows: dict[tuple[str, str], list[tuple[Record, Record]]] = defaultdict(list)
    for key in sorted(before.keys() & after.keys()):
        rows[key[:2]].append((before[key], after[key]))
    return [_paired(pairs) for pairs in rows.values() if len(pairs) > 1]


def _read(folder: Path) -> dict[Key, Record]:
    records = [record for record in whole(folder) if record.is_done]
    return {(record.task.name, record.method.name, record.seed): record for record in records}


def _paired(pairs: list[tuple[Record, Record]]) -> Paired:
    task, method = pairs[0][0].task, pairs[0][0].method.name
    metric = task.main_metric
    differences = [after.score[metric] - before.score[metric] for before, after in pairs]
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    mean = sum(differences) / len(differences)
    time = sum(after.train_s for _, after in pairs) / sum(before.train_s for before, _ in pairs)
    return Paired(task.name, method, len(pairs), mean, float(low), float(high), time)
