"""Records -> the table: tasks across, methods down. Plain values, no formatting.

Only seeds are averaged, and only within one task: there is no mean score over tasks. Speed, memory
and time are averaged only where they were measured alike. A failed cell is counted and listed and
enters no mean; what was not measured is None.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peftlab.records.conditions import Conditions, conditions, ordered
from peftlab.records.record import Record
from peftlab.records.rows import (
    RowKey,
    TaskKey,
    by_task,
    finite_values,
    group,
    is_collapsed,
    key_without_rate,
    labels,
    rounds_by_row,
    rounds_taken,
    speed_key,
    task_key,
)
from peftlab.report.columns import Column, columns, finite
from peftlab.report.costs import (
    CellCost,
    RowCost,
    cell_costs,
    row_costs,
)
from peftlab.report.spread import Span, Spread

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One done cell: scores are the main metric, of the last and of the best epoch."""

    seed: int
    cell: str
    under: int  # the index of its conditions in the table's
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
class TableCell:
    """A method on a task, over seeds. `n_failed` seeds failed and are in no other number here.

    `warnings` say what the score hides, each with the number of seeds that it holds for.
    """

    runs: tuple[Run, ...]
    n_failed: int
    adapter: int | None  # trained parameters
    head: int | None
    last: Spread
    best: Spread
    warnings: dict[str, int]
    costs: tuple[CellCost, ...]
    by_rank: dict[str, Spread]  # the last epoch's score with only the first ranks in use (DyLoRA)

    @property
    def n_trained(self) -> int | None:
        """The parameters of adapter and head; None where they were not counted."""
        return None if self.adapter is None or self.head is None else self.adapter + self.head


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A method as it was asked for. `cells` is aligned with the table's columns.

    `label` is unique in the table, `plain` is the label that was asked for. Rows of one `curve`
    differ in their learning rates alone. `n_tasks` of the columns have a done cell. `tuned` says
    how trials found settings, if they did. `default_rate` is true of the method's default rate.
    """

    label: str
    plain: str
    curve: str
    method: str
    model: str
    precision: str
    settings: dict[str, Any]
    training: dict[str, Any]
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    default_rate: bool
    tuned: dict[str, Any]
    cells: tuple[TableCell | None, ...]
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
    rows: tuple[TableRow, ...]
    conditions: tuple[Conditions, ...]  # first those of most cells that costs are read from
    failures: tuple[FailedCell, ...]
    n_cells: int
    n_collapsed: int
    n_rounds: int  # of short cells in turns, for speed and memory; 0: these are from the cells
    busy: float | None  # the largest share of a core that others took before one of the rounds
    out_of_turn: tuple[str, ...]  # rows that had no turn in the rounds of most

    @property
    def n_seeds(self) -> int | None:
        """The number of seeds of most scores; others have a note. None if there is no score."""
        counts = [cell.last.n for row in self.rows for cell in row.cells if cell and cell.last.n]
        return statistics.mode(counts) if counts else None

    @property
    def out_of_rounds(self) -> tuple[str, ...]:
        """The tasks without rounds, where other tasks have some."""
        in_turns = [
            any(cost.in_turns for cell in cells if cell for cost in cell.costs)
            for cells in zip(*(row.cells for row in self.rows), strict=True)
        ]
        columns = zip(self.columns, in_turns, strict=True)
        return tuple(column.label for column, has in columns if any(in_turns) and not has)

    @property
    def n_tasks(self) -> int:
        """The most tasks that a row has a done cell on."""
        return max((row.n_tasks for row in self.rows), default=0)

    @property
    def n_done(self) -> int:
        """The cells that finished."""
        return self.n_cells - len(self.failures)

    def as_data(self) -> dict[str, Any]:
        """The table as JSON-ready data at full precision."""
        data = dataclasses.asdict(self)
        for row in data["rows"]:
            for name in ("plain", "curve"):  # for figures alone
                del row[name]
        return {"schema_version": SCHEMA_VERSION, **data}


def table(records: Iterable[Record], rounds: Iterable[Record] = ()) -> Table:
    """Group, average over seeds and count failures. Pure; the records' order is the rows' order.

    Speed and memory of a cell are those of its `rounds` (`--repeat-speed`), where it has some.
    """
    records = _latest(records)
    rounds_of = rounds_by_row(records, rounds)
    tasks: dict[TaskKey, list[Record]] = {}
    for record in records:
        tasks.setdefault(task_key(record), []).append(record)
    column_of = columns(tasks, by_task(records))
    rows = group(records)
    names = labels(rows)
    by_cell = conditions([*rows.values(), *rounds_of.values()])
    measured = {
        source.cell for record in records for source in rounds_of.get(speed_key(record), [record])
    }
    all_conditions = ordered(by_cell, measured)
    conditions_of = {cell: all_conditions.index(value) for cell, value in by_cell.items()}
    failures = [
        _failure(names[key], column_of[task_key(record)].label, record)
        for key, members in rows.items()
        for record in members
        if not record.is_done
    ]
    row_turns = {
        names[key]: rounds_taken(r for m in members for r in rounds_of.get(speed_key(m), ()))
        for key, members in rows.items()
        if any(member.is_done for member in members)
    }
    turns = [record for of_row in rounds_of.values() for record in of_row]
    return Table(
        columns=tuple(column_of.values()),
        rows=tuple(
            _row(names[key], key, members, column_of, conditions_of, rounds_of)
            for key, members in rows.items()
        ),
        conditions=all_conditions,
        failures=tuple(failures),
        n_cells=sum(map(len, rows.values())),
        n_collapsed=sum(is_collapsed(record) for members in rows.values() for record in members),
        n_rounds=len({record.seed for record in turns}),
        busy=max(finite_values(r.speed.others_share for r in turns if r.speed), default=None),
        out_of_turn=tuple(_out_of_turn(row_turns)),
    )


def _out_of_turn(row_turns: Mapping[str, set[str | None]]) -> list[str]:
    """The rows that share no round with most of the rows that had a turn."""
    counts = Counter(frozenset(rounds) for rounds in row_turns.values() if rounds)
    if not counts:
        return []
    usual = counts.most_common(1)[0][0]
    return [row for row, rounds in row_turns.items() if not rounds & usual]


def _latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each cell: a cell counted twice would pass for two seeds."""
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


def _row(
    label: str,
    key: RowKey,
    members: list[Record],
    column_of: Mapping[TaskKey, Column],
    conditions_of: Mapping[str, int],
    rounds_of: Mapping[str, list[Record]],
) -> TableRow:
    first = members[0]
    by_column = [[m for m in members if task_key(m) == task] for task in column_of]
    cells = tuple(_cell(runs, conditions_of, rounds_of) if runs else None for runs in by_column)
    done = [cell for cell in cells if cell and cell.runs]
    counts = [record.n_trainable for record in members if record.n_trainable]
    seconds = finite_values(run.total_s for cell in done for run in cell.runs)
    adapter = Span.of(count.adapter for count in counts)
    # a tuned row has defaults on a task where all its trials failed
    some_or_all = all if first.method.tuned else any
    return TableRow(
        label=label,
        plain=key[0],
        curve=key_without_rate(key, head_alone=adapter.high == 0),
        method=first.method.name,
        model=first.model.name,
        precision=first.precision,
        settings=_settings_by_task(members, column_of, lambda record: record.method.settings),
        training=_settings_by_task(members, column_of, lambda record: record.training),
        targets=tuple(first.method.targets),
        notes=tuple(dict.fromkeys(note for m in members for note in m.method.notes)),
        default_rate=some_or_all(m.method.rate_from == "default" for m in members),
        tuned=first.method.tuned,
        cells=cells,
        n_tasks=len(done),
        adapter=adapter,
        head=Span.of(count.head for count in counts),
        total=Span.of(count.total for count in counts),
        costs=row_costs(cell.costs for cell in done),
        all_cells_s=sum(seconds) if seconds else None,
    )


def _settings_by_task(
    members: list[Record],
    column_of: Mapping[TaskKey, Column],
    values: Callable[[Record], Mapping[str, Any]],
) -> dict[str, Any]:
    """A row's settings; one that trials found is a text with its value on each task of several."""
    settings = dict(values(members[0]))
    for name in settings.keys() & set(members[0].method.tuned.get("space", ())):
        on = {column_of[task_key(record)].label: values(record)[name] for record in members}
        if len(on) > 1:
            settings[name] = ", ".join(f"{value:g} on {task}" for task, value in on.items())
    return settings


def _cell(
    members: list[Record],
    conditions_of: Mapping[str, int],
    rounds_of: Mapping[str, list[Record]],
) -> TableCell:
    done = sorted((m for m in members if m.is_done), key=lambda m: m.seed)
    runs = tuple(_run(member, conditions_of[member.cell]) for member in done)
    ranks = dict.fromkeys(rank for m in done for rank in m.score_by_rank or {})
    metric = members[0].task.main_metric
    trained = next((m.n_trainable for m in done if m.n_trainable), None)
    return TableCell(
        runs=runs,
        n_failed=len(members) - len(done),
        adapter=trained.adapter if trained else None,
        head=trained.head if trained else None,
        last=Spread.of(run.last for run in runs),
        best=Spread.of(run.best for run in runs),
        warnings=dict(Counter(warning for m in done for warning in dict.fromkeys(m.warnings))),
        costs=cell_costs(done, conditions_of, rounds_of.get(speed_key(members[0]), [])),
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
