"""Every method at four rates, from results/defaults: a table a model in docs/rates.md."""

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
    """What the protocol's cells say of one method on one model."""

    rate: float
    accuracy: float
    error: float
    speed: float  # of lora's
    unsteady: float  # the fastest of its cells on a task over the slowest, where that is most
    peak: float  # of lora's
    adapter: int


def protocol_tables() -> str:
    """For each model a row for each method all of whose cells are there, and what they are of."""
    return "\n".join(_of_model(folder) for folder in sorted(DEFAULTS.iterdir()))


def _of_model(folder: Path) -> str:
    cells: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in whole(folder):
        cells[record.method.name][record.task.name].append(record)
    of_lora = cells["lora"]
    n = {task: len(records) for task, records in of_lora.items()}
    complete = {
        name: measured(cells[name], of_lora)
        for name in METHODS
        if {task: len(records) for task, records in cells[name].items()} == n
    }
    head = ["method", "lr", "accuracy", "examples/s", "unsteady", "peak", "adapter"]
    table = markdown(head, (_row(name, row) for name, row in complete.items()))
    title = f"### {next(iter(of_lora.values()))[0].model.name}\n"
    return "\n".join([title, table, wrapped(_caption(of_lora, complete))])


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
    """What the rows are of, which are missing, and which the score doesn't tell from the best."""
    tasks = "; ".join(
        f"`{task}`, {one.task.n_train:,} examples to train on, {one.task.n_dev:,} to judge by, "
        f"{one.training['epochs']} epochs"
        for task, (one, *_) in sorted(cells.items())
    )
    one, *others = next(iter(cells.values()))
    missing = (name for name in METHODS if name not in rows)
    best = max(rows.values(), key=lambda row: row.accuracy)
    near = (name for name, row in rows.items() if row.accuracy >= best.accuracy - best.error)
    return (
        f"On {tasks}. {1 + len(others)} rates a method, seed {one.seed}, "
        f"{one.environment.processor}, {one.environment.threads} thread. "
        f"The head adds {one.n_trainable.head:,} trained parameters. "
        f"Missing or incomplete: {listed(missing)}. "
        f"Within one standard error of the best mean: {listed(near)}."
    )


def measured(of_method: Cells, of_lora: Cells) -> Measured:
    """What a method's cells say beside lora's on the same tasks, of as many rates each."""
    scores: dict[float, dict[str, Score]] = defaultdict(dict)
    for task, records in of_method.items():
        for record in records:
            accuracy = record.score["accuracy"] if record.score else 0.0
            scores[record.training["lr"]][task] = Score(accuracy, record.task.n_dev)
    rate = choose(scores)
    chosen = [r for records in of_method.values() for r in records if r.training["lr"] == rate]
    alike = [task for task in of_lora if _commits(of_method[task]) == _commits(of_lora[task])]
    speeds = {task: _speeds(of_method[task]) for task in alike}
    return Measured(
        rate,
        mean(scores[rate]),
        standard_error(scores[rate]),
        statistics.geometric_mean(max(speeds[t]) / max(_speeds(of_lora[t])) for t in alike),
        max(max(of_task) / min(of_task) for of_task in speeds.values()),
        statistics.geometric_mean(_peak(of_method[t]) / _peak(of_lora[t]) for t in alike),
        max(record.n_trainable.adapter for record in chosen),
    )


def _commits(records: list[Record]) -> set[str | None]:
    """Of peftlab: another one may be of another speed."""
    return {record.environment.commit for record in records}


def _speeds(records: list[Record]) -> list[float]:
    return [record.speed.examples_per_s for record in records]


def _peak(records: list[Record]) -> float:
    return statistics.median(record.memory.peak_mib for record in records)
