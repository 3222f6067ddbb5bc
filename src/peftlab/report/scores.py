"""Records -> the table: tasks across, methods down. Plain values, no formatting.

Only seeds are averaged, and only within one task: there is no mean score over tasks. Speed, memory
and time are averaged only where they were measured alike. A failed cell is counted and listed and
enters no mean; what was not measured is None.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from peftlab.records.record import Record
from peftlab.records.rows import TaskKey, group, known, labels, task_fields, task_key
from peftlab.report.columns import Column, columns, finite
from peftlab.report.costs import (
    Conditions,
    Cost,
    RowCost,
    cell_costs,
    conditions,
    ordered,
    row_costs,
)
from peftlab.report.spread import Span, Spread

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One done cell: scores are the main metric, of the last and of the best epoch."""

    seed: int
    cell: str
    under: int  # the table's conditions that it was measured in
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
    """A method on a task, over seeds. `n_failed` seeds failed and are in no number here.

    `warnings` counts the seeds that each holds for: what the score hides.
    """

    runs: tuple[Run, ...]
    n_failed: int
    last: Spread
    best: Spread
    warnings: dict[str, int]
    costs: tuple[Cost, ...]
    by_rank: dict[str, Spread]  # the last epoch's score with only the first ranks in use (DyLoRA)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method as it was asked for. `cells` is aligned with the table's columns.

    `n_tasks` of the columns have a done cell. `default_rate` says that some learning rate is the
    method's default.
    """

    label: str
    method: str
    model: str
    precision: str
    settings: dict[str, Any]
    training: dict[str, Any]
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    default_rate: bool
    cells: tuple[Cell | None, ...]
    n_tasks: int
    adapter: Span
    head: Span
    total: Span
    costs: tuple[RowCost, ...]
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
    conditions: tuple[Conditions, ...]  # that of most cells first
    failures: tuple[FailedCell, ...]
    n_cells: int
    n_collapsed: int

    @property
    def n_seeds(self) -> int | None:
        """The seeds behind most scores; a score of another number says its own. None: no score."""
        counts = [cell.last.n for row in self.rows for cell in row.cells if cell and cell.last.n]
        return statistics.mode(counts) if counts else None

    @property
    def n_done(self) -> int:
        """The cells that finished."""
        return self.n_cells - len(self.failures)

    def as_data(self) -> dict[str, Any]:
        """The table as JSON-ready data at full precision."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def table(records: Iterable[Record]) -> Table:
    """Group, average over seeds and count failures. Pure; the records' order is the rows' order."""
    records = _latest(records)
    tasks: dict[TaskKey, list[Record]] = {}
    for record in records:
        tasks.setdefault(task_key(record), []).append(record)
    across = columns(tasks, task_fields(records))
    rows = group(records)
    names = labels(rows)
    alike = conditions(rows.values())
    all_conditions = ordered(alike)
    under = {cell: all_conditions.index(one) for cell, one in alike.items()}
    failures = [
        _failure(names[key], across[task_key(record)].label, record)
        for key, members in rows.items()
        for record in members
        if record.status == "failed"
    ]
    return Table(
        columns=tuple(across.values()),
        rows=tuple(_row(names[key], members, list(tasks), under) for key, members in rows.items()),
        conditions=all_conditions,
        failures=tuple(failures),
        n_cells=len(records),
        n_collapsed=sum(any(map(collapsed, record.warnings)) for record in records),
    )


def collapsed(warning: str) -> bool:
    """Whether a record's warning says that the run scores no more than one constant answer."""
    return warning.startswith("collapsed")


def _latest(records: Iterable[Record]) -> list[Record]:
    """One record a cell, the last one given: a cell counted twice would pass for two seeds."""
    return list({record.cell: record for record in records}.values())


def _failure(row: str, task: str, record: Record) -> FailedCell:
    failure = record.failure
    return FailedCell(
        row,
        task,
        record.seed,
        record.cell,
        failure.kind if failure else "unknown",
        failure.message if failure else "no reason was recorded",
    )


def _row(label: str, members: list[Record], tasks: list[TaskKey], under: Mapping[str, int]) -> Row:
    first = members[0]
    by_task = [[m for m in members if task_key(m) == key] for key in tasks]
    cells = tuple(_cell(found, under) if found else None for found in by_task)
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
        default_rate=any(m.method.rate_from == "default" for m in members),
        cells=cells,
        n_tasks=len(done),
        adapter=Span.of(count.adapter for count in counts),
        head=Span.of(count.head for count in counts),
        total=Span.of(count.total for count in counts),
        costs=row_costs(cell.costs for cell in done),
        all_cells_s=sum(seconds) if seconds else None,
    )


def _cell(members: list[Record], under: Mapping[str, int]) -> Cell:
    done = sorted((m for m in members if m.status == "done"), key=lambda m: m.seed)
    runs = tuple(_run(member, under[member.cell]) for member in done)
    ranks = dict.fromkeys(rank for m in done for rank in m.score_by_rank or {})
    metric = members[0].task.main_metric
    return Cell(
        runs=runs,
        n_failed=len(members) - len(done),
        last=Spread.of(run.last for run in runs),
        best=Spread.of(run.best for run in runs),
        warnings=dict(Counter(warning for m in done for warning in dict.fromkeys(m.warnings))),
        costs=cell_costs(done, under),
        by_rank={
            rank: Spread.of((m.score_by_rank or {}).get(rank, {}).get(metric) for m in done)
            for rank in ranks
        },
    )


def _run(record: Record, under: int) -> Run:
    metric = record.task.main_metric
    speed, memory, best = record.speed, record.memory, record.best
    return Run(
        seed=record.seed,
        cell=record.cell,
        under=under,
        last=finite((record.score or {}).get(metric)),
        best=finite(best.score.get(metric)) if best else None,
        best_epoch=best.epoch if best else None,
        examples_per_s=finite(speed.examples_per_s) if speed else None,
        tokens_per_s=finite(speed.tokens_per_s) if speed else None,
        step_ms_p50=finite(speed.step_ms_p50) if speed else None,
        step_ms_p95=finite(speed.step_ms_p95) if speed else None,
        peak_mib=finite(memory.peak_mib) if memory else None,
        train_peak_mib=finite(memory.train_peak_mib) if memory else None,
        prepare_s=finite(record.prepare_s),
        train_s=finite(record.train_s),
        eval_s=finite(record.eval_s),
        total_s=finite(record.total_s),
    )
