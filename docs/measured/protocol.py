"""Every method at four rates, from results/defaults: a table for each model in docs/rates.md."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from defaults import Score, choose, mean, standard_error  # the protocol's own rule
from whole import whole

from measured.text import card, listed, markdown, number, wrapped
from peftlab.methods import METHODS
from peftlab.records.record import Record

DEFAULTS = Path(__file__).parents[2] / "results" / "defaults"
Cells = Mapping[str, list[Record]]  # by task


class Measured(NamedTuple):
    """The measurements of one method on one model, over the protocol's cells."""

    rate: float
    accuracy: float
    error: float
    speed: float  # over lora's
    unsteady: float  # its fastest cell over its slowest, on the task where this is largest
    peak: float  # over lora's
    adapter: int


def protocol_tables() -> str:
    """For each model a table of the methods whose cells are complete, and its caption."""
    return "\n".join(_model_table(folder) for folder in sorted(DEFAULTS.iterdir()))


def _model_table(folder: Path) -> str:
    cells: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in whole(folder):
        cells[record.method.name][record.task.name].append(record)
    lora = cells["lora"]
    n_cells = {task: len(records) for task, records in lora.items()}
    complete = {
        name: measure(cells[name], lora)
        for name in METHODS
        if {task: len(records) for task, records in cells[name].items()} == n_cells
    }
    columns = ["method", "lr", "accuracy", "examples/s", "unsteady", "peak", "adapter"]
    table = markdown(columns, (_row(name, row) for name, row in complete.items()))
    title = f"### {next(iter(lora.values()))[0].model.name}\n"
    return "\n".join([title, table, wrapped(_caption(lora, complete))])


def _row(name: str, row: Measured) -> list[str]:
    return [
        card(name),
        f"{row.rate:g}",
        f"{number(row.accuracy)} ± {number(row.error)}",
        f"{row.speed:.2f}",
        f"{row.unsteady:.1f}",
        f"{row.peak:.2f}",
        f"{row.adapter:,}",
    ]


def _caption(cells: Cells, rows: Mapping[str, Measured]) -> str:
    """The conditions of all rows, the missing methods, and those that score as well as the best."""
    tasks = "; ".join(
        f"`{task}`, {first.task.n_train:,} examples to train on, {first.task.n_dev:,} to judge by, "
        f"{first.training['epochs']} epochs"
        for task, (first, *_) in sorted(cells.items())
    )
    records = next(iter(cells.values()))
    first = records[0]
    missing = (name for name in METHODS if name not in rows)
    best = max(rows.values(), key=lambda row: row.accuracy)
    near = (name for name, row in rows.items() if row.accuracy >= best.accuracy - best.error)
    return (
        f"On {tasks}. {len(records)} rates a method, seed {first.seed}, "
        f"{first.environment.processor}, {first.environment.threads} thread. "
        f"The head adds {first.n_trainable.head:,} trained parameters. "
        f"Missing or incomplete: {listed(missing)}. "
        f"Within one standard error of the best mean: {listed(near)}."
    )


def measure(cells: Cells, lora: Cells) -> Measured:
    """The measurements of a method's cells beside lora's, on the same tasks at as many rates."""
    scores: dict[float, dict[str, Score]] = defaultdict(dict)
    for task, records in cells.items():
        for record in records:
            accuracy = record.score["accuracy"] if record.score else 0.0
            scores[record.training["lr"]][task] = Score(accuracy, record.task.n_dev)
    rate = choose(scores)
    chosen = [r for records in cells.values() for r in records if r.training["lr"] == rate]
    alike = [task for task in lora if _commits(cells[task]) == _commits(lora[task])]
    speeds = {task: _speeds(cells[task]) for task in alike}
    return Measured(
        rate,
        mean(scores[rate]),
        standard_error(scores[rate]),
        statistics.geometric_mean(max(speeds[t]) / max(_speeds(lora[t])) for t in alike),
        max(max(values) / min(values) for values in speeds.values()),
        statistics.geometric_mean(_peak(cells[t]) / _peak(lora[t]) for t in alike),
        max(record.n_trainable.adapter for record in chosen),
    )


def _commits(records: list[Record]) -> set[str | None]:
    """The commits of peftlab: speeds of two commits are not compared."""
    return {record.environment.commit for record in records}


def _speeds(records: list[Record]) -> list[float]:
    return [record.speed.examples_per_s for record in records]


def _peak(records: list[Record]) -> float:
    return statistics.median(record.memory.peak_mib for record in records)
