"""LoRA beside full fine-tuning, from results/batches: a table of docs/which.md."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import ttest_1samp
from whole import whole

from measured.text import markdown, number, score
from peftlab.records.record import Record

BATCHES = Path(__file__).parents[2] / "results" / "batches" / "random"


def seeds_table() -> str:
    """Task by task, paired by seed: the records of experiments/batches.toml."""
    pairs: dict[str, list[tuple[Record, Record]]] = defaultdict(list)
    records = {(r.task.name, r.seed, r.method.name): r for r in whole(BATCHES)}
    for task, seed in sorted({key[:2] for key in records}):
        pairs[task].append((records[task, seed, "full"], records[task, seed, "lora"]))
    columns = ["task", "metric", "judged by", "full", "lora", "lora − full, 95 %"]
    columns += ["examples/s", "peak"]
    return markdown(columns, map(_row, pairs.values()))


def _row(pairs: list[tuple[Record, Record]]) -> list[str]:
    task = pairs[0][0].task
    full, lora = zip(*pairs, strict=True)
    differences = [b.score[task.main_metric] - a.score[task.main_metric] for a, b in pairs]
    low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    speed = statistics.median(b.speed.examples_per_s / a.speed.examples_per_s for a, b in pairs)
    peak = statistics.median(b.memory.peak_mib / a.memory.peak_mib for a, b in pairs)
    return [
        f"`{task.name}`",
        task.main_metric,
        f"{task.n_dev:,}",
        score(full),
        score(lora),
        f"[{number(low, signed=True)}, {number(high, signed=True)}]",
        f"{speed:.2f}",
        f"{peak:.2f}",
    ]
