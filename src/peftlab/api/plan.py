"""plan: the cost of a comparison, before any of it trains."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.api.compare import record_folders
from peftlab.api.request import ResolvedRequest, request_of, resolve_request
from peftlab.bench.cell import Cell
from peftlab.bench.cost import Forecast, Predictor
from peftlab.bench.foresee import surely_above, training_room
from peftlab.bench.grid import Grid
from peftlab.bench.times import Time, by_measured, by_records, measure_cells, records_of
from peftlab.bench.tokens import Tokens
from peftlab.bench.tune import Remaining, Trainings, remaining
from peftlab.errors import expect
from peftlab.methods import Method
from peftlab.records.record import Record
from peftlab.tasks import Task
from peftlab.training import Encoded


@dataclass(frozen=True)
class PlannedRow:
    """The cost of the cells of one method on one task.

    Attributes:
        cost: trained parameters, memory, the adapter's size on disk.
        due: how many of its cells have not run yet.
        cell_s: seconds of one cell; None if no record predicts them.
        time_from: the record or the measurement that predicts the seconds.
        measured_peak_mib: the peak of the measured steps, if any were.
        fits: False if `compare` would refuse the row, as its peak is surely above the free memory;
            None if either is unknown.
        trials: trainings that search for its settings before its cells run; 0 if there are none, or
            all have ended.
        trials_s: seconds of all trials; None if those of a cell are unknown.
    """

    cost: Forecast
    due: int
    cell_s: float | None
    time_from: str | None
    measured_peak_mib: float | None
    fits: bool | None
    trials: int
    trials_s: float | None

    @property
    def all_s(self) -> float | None:
        """Seconds of all cells of the row that are due, and of its trials."""
        if not self.due:
            return 0.0
        if self.cell_s is None or self.trials_s is None:
            return None
        return self.cell_s * self.due + self.trials_s


@dataclass(frozen=True)
class Plan:
    """The cost of a comparison.

    Attributes:
        suite: the name of the suite.
        model: the name of the model.
        cells: the number of cells.
        out: the folder in which some of them may have run already.
        rows: one for each method and task, in the order in which they run.
        free_mib: memory that a training can take beside the libraries; None if unknown.
    """

    suite: str
    model: str
    cells: int
    out: Path
    rows: list[PlannedRow]
    free_mib: float | None

    @property
    def all_s(self) -> float | None:
        """Seconds of all cells and trials that are due; None if those of a row are unknown."""
        seconds = [row.all_s for row in self.rows]
        return sum(seconds) if None not in seconds else None  # type: ignore[arg-type]

    @property
    def peak_mib(self) -> float | None:
        """The highest peak of the rows whose memory can be counted; None if there is none."""
        peaks = [row.cost.memory.peak_mib for row in self.rows if row.cost.memory]
        return max(peaks, default=None)

    @property
    def done(self) -> int:
        """How many cells have run already."""
        return self.cells - sum(row.due for row in self.rows)

    def document(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        rows = [
            {
                **asdict(row.cost) | {"n_trainable": row.cost.n_trainable.model_dump()},
                **{name: value for name, value in vars(row).items() if name != "cost"},
                "all_s": row.all_s,
            }
            for row in self.rows
        ]
        names = ("suite", "model", "cells", "done", "free_mib")
        summary = {name: getattr(self, name) for name in names}
        return {**summary, "all_s": self.all_s, "peak_mib": self.peak_mib, "rows": rows}


def plan(
    suite: str | Path | None = None,
    *,
    model: str | Path | None = None,
    tasks: str | Task | Sequence[str | Task] | None = None,
    methods: str | Method | Sequence[str | dict[str, Any] | Method] | None = None,
    seeds: int | Sequence[int] | None = None,
    data: str | Path | dict[str, Any] | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    dev: str | Path | None = None,
    kind: str | None = None,
    data_dir: str | Path | None = None,
    metric: str | None = None,
    judge_on: Literal["dev", "train"] | None = None,
    tune: int | dict[str, Any] | None = None,
    out: str | Path | None = None,
    measure: bool = False,
    **training: Any,
) -> Plan:
    """What `compare` will cost with these arguments: nothing is trained, and nothing written.

    Args:
        suite: a TOML file that says the same as the other arguments, which win over it.
        model: `minilm`, `mpnet`, a folder, or a hub name.
        tasks: names, or `Task` values.
        methods: names such as "lora" or "lora[rank=16]", tables, or `Method` values.
        seeds: every cell runs once for each seed; (0,), or [0, 1] where a suite file names none.
        data: your own file instead of tasks, or a table, as `peftlab.compare` takes it.
        text: its text column, or two: a list, or as in `--text` a string with a comma between.
        label: its label column.
        dev: a file to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main metric of all tasks, instead of each task's own.
        judge_on: dev; or train, which keeps a fifth of train apart.
        tune: how many trials every row gets on each task; they are counted in.
        out: the folder of `compare`. Cells that have run there are not counted; their records and
            those in runs/ predict how long a cell takes.
        measure: run a few steps of each method on each task, and predict times from those.
        training: fields of `peftlab.settings.Training`, such as epochs or batch_size.

    Raises:
        RequestError: if anything in the request is wrong.
    """
    expect("measure", measure, bool, "True or False")
    request = request_of(
        plan,
        suite=suite,
        model=model,
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        data=data,
        text=text,
        label=label,
        dev=dev,
        kind=kind,
        data_dir=data_dir,
        metric=metric,
        judge_on=judge_on,
        tune=tune,
        out=out,
        training=training,
    )
    return plan_request(resolve_request(request.suite, request.fields, out=out), measure)


def plan_request(
    resolved: ResolvedRequest, measure: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Plan:
    """The plan of a checked request; `tell` gets a line for each row that is counted or run."""
    grid = resolved.grid
    outstanding = remaining(grid, resolved.out)
    predictor = Predictor(grid)
    costs = _costs(grid, predictor, tell)
    cells = [cell for cell, _ in costs]
    measured: dict[str, Record] = {}
    if measure:
        measured = measure_cells(grid, cells, lambda title: tell(f"running a few steps of {title}"))
    records = [] if measure else records_of(record_folders(resolved.out))
    free_mib = training_room(cells[0].training.device)
    rows = []
    for cell, cost in costs:
        few_steps = measured.get(cell.name)
        time_of = _timer(cost, few_steps, records)
        tokens = predictor.lengths_of(cell)
        rows.append(_row(time_of, tokens, cell, cost, few_steps, free_mib, outstanding))
    return Plan(
        suite=grid.suite.name,
        model=grid.cells[0].model.name,
        cells=len(grid.cells),
        out=resolved.out,
        rows=rows,
        free_mib=free_mib,
    )


def _costs(
    grid: Grid, predictor: Predictor, tell: Callable[[str], None]
) -> list[tuple[Cell, Forecast]]:
    """The first cell of each row on each task, and the cost of such a cell."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.row, []).append(cell)
    costs = []
    for (task, label), cells in rows.items():
        tell(f"counting what {label} needs on {task}")
        costs.append((cells[0], predictor.cost(cells[0], len(cells))))
    return costs


Timer = Callable[[Cell, Tokens], Time | None]  # the time of a cell on them, None if unknown


def _timer(cost: Forecast, few_steps: Record | None, records: Sequence[Record]) -> Timer:
    """Predicts the time of a row's cells by its few steps, if they were run, or by the records."""
    weights = cost.memory.by_part["weights"] if cost.memory else None

    def time_of(cell: Cell, tokens: Tokens) -> Time | None:
        if few_steps is None:
            return by_records(cell, *tokens, weights, records)
        return by_measured(cell, *tokens, few_steps)

    return time_of


def _row(
    time_of: Timer,
    tokens: Tokens,
    cell: Cell,
    cost: Forecast,
    few_steps: Record | None,
    free_mib: float | None,
    outstanding: Remaining,
) -> PlannedRow:
    time = time_of(cell, tokens)
    memory = few_steps.memory if few_steps else None
    trials = outstanding.trials.get((cost.task, cost.label), [])
    return PlannedRow(
        cost=cost,
        due=outstanding.due(cost.task, cost.label),
        cell_s=time.cell_s if time else None,
        time_from=time.source if time else None,
        measured_peak_mib=memory.train_peak_mib if memory else None,
        fits=_fits(cost, free_mib),
        trials=sum(trainings.n for trainings in trials),
        trials_s=_trials_s(time_of, tokens.train, cell, trials),
    )


def _trials_s(
    time_of: Timer, train: Encoded, cell: Cell, trials: Sequence[Trainings]
) -> float | None:
    seconds = 0.0
    for n, epochs, share in trials:
        training = cell.training.model_copy(update={"epochs": epochs})
        time = time_of(cell.model_copy(update={"training": training}), _parts_of(train, share))
        if time is None:
            return None
        seconds += n * time.cell_s
    return seconds


def _parts_of(train: Encoded, share: float) -> Tokens:
    """Texts like the share of train that a trial trains on, and like the rest, which it answers."""
    rows = train.features["input_ids"]
    rows, n = random.Random(0).sample(rows, len(rows)), round(share * len(rows))
    learned, answered = (Encoded({"input_ids": part}, [], {}, 0) for part in (rows[:n], rows[n:]))
    return Tokens(learned, answered)


def _fits(cost: Forecast, free_mib: float | None) -> bool | None:
    if free_mib is None or cost.memory is None:
        return None
    return not surely_above(cost.memory.peak_mib, free_mib)
