"""Records -> the table: tasks across, methods down. Plain values, no formatting.

Only seeds are averaged, and only within one task: there is no mean score over tasks. A failed cell
is counted and listed and enters no mean; what was not measured is None.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

from peftlab.bench.record import Record
from peftlab.bench.stats import known, mean, sample_sd
from peftlab.report.rows import TaskKey, group, labels, task_fields, task_key

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds: mean, sample standard deviation (None below two), how many."""

    mean: float | None
    sd: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread:
        found = known(values)
        return Spread(mean(found), sample_sd(found), len(found))


@dataclasses.dataclass(frozen=True)
class Span:
    """Smallest and largest of a number; they differ only where tasks or seeds differ in it."""

    low: int | None
    high: int | None

    @staticmethod
    def of(values: Iterable[int | None]) -> Span:
        found = [value for value in values if value is not None]
        return Span(min(found, default=None), max(found, default=None))


@dataclasses.dataclass(frozen=True)
class Column:
    """One task. `training` holds the training fields that the task decides for all methods."""

    label: str
    task: str
    kind: str
    metric: str
    source: str
    synthetic: bool
    n_train: int
    n_dev: int
    n_truncated: int | None
    training: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One done cell: scores are the main metric, of the last and of the best epoch."""

    seed: int
    cell: str
    last: float | None
    best: float | None
    best_epoch: int | None
    examples_per_s: float | None
    tokens_per_s: float | None
    step_ms_p50: float | None
    step_ms_p95: float | None
    peak_mib: float | None
    train_peak_mib: float | None
    prepare_s: float | None
    train_s: float | None
    eval_s: float | None
    total_s: float | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method on a task, over seeds. `n_failed` seeds failed and are in no number here."""

    runs: tuple[Run, ...]
    n_failed: int
    last: Spread
    best: Spread
    examples_per_s: Spread
    peak_mib: Spread
    train_peak_mib: Spread
    total_s: Spread
    by_part_mib: dict[str, float | None]  # mean over seeds
    by_rank: dict[str, Spread]  # the last epoch's score with only the first ranks in use (DyLoRA)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method as it was asked for. `cells` is aligned with the table's columns.

    `examples_per_s` and `cell_s` are means over the row's tasks, `peak_mib` the highest
    over them: what must fit. `n_tasks` of the columns have a done cell.
    """

    label: str
    method: str
    model: str
    precision: str
    settings: dict[str, Any]
    training: dict[str, Any]
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[Cell | None, ...]
    n_tasks: int
    adapter: Span
    head: Span
    total: Span
    examples_per_s: float | None
    peak_mib: float | None
    train_peak_mib: float | None
    cell_s: float | None
    all_cells_s: float | None


@dataclasses.dataclass(frozen=True)
class FailedCell:
    row: str
    task: str
    seed: int
    cell: str
    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    failures: tuple[FailedCell, ...]
    n_cells: int

    @property
    def n_seeds(self) -> int | None:
        """The seeds behind most scores; a score of another number says its own. None: no score."""
        counts = [cell.last.n for row in self.rows for cell in row.cells if cell and cell.last.n]
        return statistics.mode(counts) if counts else None

    def as_data(self) -> dict[str, Any]:
        """The table as JSON-ready data at full precision."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def table(records: Iterable[Record]) -> Table:
    """Group, average over seeds and count failures. Pure; the records' order is the rows' order."""
    records = _latest(records)
    tasks: dict[TaskKey, list[Record]] = {}
    for record in records:
        tasks.setdefault(task_key(record), []).append(record)
    columns = _columns(tasks, task_fields(records))
    rows = group(records)
    names = labels(rows)
    failures = [
        FailedCell(
            names[key],
            columns[task_key(record)].label,
            record.seed,
            record.cell,
            record.failure.kind if record.failure else "unknown",
            record.failure.message if record.failure else "no reason was recorded",
        )
        for key, members in rows.items()
        for record in members
        if record.status == "failed"
    ]
    return Table(
        columns=tuple(columns.values()),
        rows=tuple(_row(names[key], members, list(tasks)) for key, members in rows.items()),
        failures=tuple(failures),
        n_cells=len(records),
    )


def _latest(records: Iterable[Record]) -> list[Record]:
    """One record a cell, the last one given: a cell counted twice would pass for two seeds."""
    return list({record.cell: record for record in records}.values())


def _columns(tasks: dict[TaskKey, list[Record]], decided: set[str]) -> dict[TaskKey, Column]:
    names = [name for name, _, _ in tasks]
    fields = sorted(field.removeprefix("training.") for field in decided)
    columns = {}
    for key, members in tasks.items():
        task = members[0].task
        truncated = (member.task.n_truncated for member in members)
        columns[key] = Column(
            label=task.name if names.count(task.name) == 1 else f"{task.name} ({key[2][:8]})",
            task=task.name,
            kind=task.kind,
            metric=task.main_metric,
            source=task.source,
            synthetic=task.source.startswith("synthetic"),
            n_train=task.n_train,
            n_dev=task.n_dev,
            n_truncated=next((n for n in truncated if n is not None), None),
            training={field: members[0].training.get(field) for field in fields},
        )
    return columns


def _row(label: str, members: list[Record], tasks: list[TaskKey]) -> Row:
    first = members[0]
    by_task = [[m for m in members if task_key(m) == key] for key in tasks]
    cells = tuple(_cell(found) if found else None for found in by_task)
    done = [cell for cell in cells if cell and cell.runs]
    counts = [record.n_trainable for record in members if record.n_trainable]
    seconds = known(run.total_s for cell in done for run in cell.runs)
    return Row(
        label=label,
        method=first.method.name,
        model=first.model.name,
        precision=first.precision,
        settings=first.method.settings,
        training=first.training,
        targets=tuple(first.method.targets),
        notes=tuple(dict.fromkeys(note for m in members for note in m.method.notes)),
        cells=cells,
        n_tasks=len(done),
        adapter=Span.of(count.adapter for count in counts),
        head=Span.of(count.head for count in counts),
        total=Span.of(count.total for count in counts),
        examples_per_s=mean(known(cell.examples_per_s.mean for cell in done)),
        peak_mib=max(known(cell.peak_mib.mean for cell in done), default=None),
        train_peak_mib=max(known(cell.train_peak_mib.mean for cell in done), default=None),
        cell_s=mean(known(cell.total_s.mean for cell in done)),
        all_cells_s=sum(seconds) if seconds else None,
    )


def _cell(members: list[Record]) -> Cell:
    done = sorted((m for m in members if m.status == "done"), key=lambda m: m.seed)
    runs = tuple(_run(member) for member in done)
    parts = dict.fromkeys(part for m in done if m.memory for part in m.memory.by_part)
    ranks = dict.fromkeys(rank for m in done for rank in m.score_by_rank or {})
    metric = members[0].task.main_metric
    return Cell(
        runs=runs,
        n_failed=len(members) - len(done),
        last=Spread.of(run.last for run in runs),
        best=Spread.of(run.best for run in runs),
        examples_per_s=Spread.of(run.examples_per_s for run in runs),
        peak_mib=Spread.of(run.peak_mib for run in runs),
        train_peak_mib=Spread.of(run.train_peak_mib for run in runs),
        total_s=Spread.of(run.total_s for run in runs),
        by_part_mib={
            part: mean(known(m.memory.by_part.get(part) for m in done if m.memory))
            for part in parts
        },
        by_rank={
            rank: Spread.of((m.score_by_rank or {}).get(rank, {}).get(metric) for m in done)
            for rank in ranks
        },
    )


def _run(record: Record) -> Run:
    metric = record.task.main_metric
    speed, memory, best = record.speed, record.memory, record.best
    return Run(
        seed=record.seed,
        cell=record.cell,
        last=_finite((record.score or {}).get(metric)),
        best=_finite(best.score.get(metric)) if best else None,
        best_epoch=best.epoch if best else None,
        examples_per_s=_finite(speed.examples_per_s) if speed else None,
        tokens_per_s=_finite(speed.tokens_per_s) if speed else None,
        step_ms_p50=_finite(speed.step_ms_p50) if speed else None,
        step_ms_p95=_finite(speed.step_ms_p95) if speed else None,
        peak_mib=_finite(memory.peak_mib) if memory else None,
        train_peak_mib=_finite(memory.train_peak_mib) if memory else None,
        prepare_s=_finite(record.prepare_s),
        train_s=_finite(record.train_s),
        eval_s=_finite(record.eval_s),
        total_s=_finite(record.total_s),
    )


def _finite(value: float | None) -> float | None:
    """A correlation with a constant is NaN: no score, so no number."""
    return value if value is not None and math.isfinite(value) else None
