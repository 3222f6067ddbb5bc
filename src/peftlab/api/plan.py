"""plan: what a comparison will cost, before any of it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peftlab.api.compare import (
    Planned,
    arguments_of,
    data_of,
    known_folders,
    planned,
    rates_apart,
    request_of,
    tune_of,
)
from peftlab.bench.cell import Cell
from peftlab.bench.cost import Cost, Predictor
from peftlab.bench.foresee import surely_above, training_room
from peftlab.bench.grid import Grid
from peftlab.bench.times import Time, by_measured, by_records, measure_cells, records_of
from peftlab.bench.tune import Remaining, Trainings, remaining
from peftlab.methods import Method
from peftlab.records.record import Record
from peftlab.settings import Training
from peftlab.tasks import Task


@dataclass(frozen=True)
class Row:
    """What the cells of one method on one task will take.

    Attributes:
        cost: trained parameters, memory, the adapter's size on disk.
        due: how many of its cells have not run yet.
        cell_s: seconds of one cell; None where no record tells.
        time_from: what the seconds are taken from.
        measured_peak_mib: the peak of the steps that were measured, if any were.
        fits: False if `compare` would refuse it, since its peak is surely above what is free; None
            where either is not known.
        trials: trainings that look for its settings, before its cells run; 0 if none do or all have
            ended.
        trials_s: seconds of all of them; None where a cell's are not known.
    """

    cost: Cost
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
    """What a comparison will cost.

    Attributes:
        suite: its name.
        model: its name.
        cells: how many there are.
        out: the folder in which some of them may have run already.
        rows: one a method and task, in the order in which they run.
        free_mib: memory that a training can take beside the libraries; None where not known.
    """

    suite: str
    model: str
    cells: int
    out: Path
    rows: list[Row]
    free_mib: float | None

    @property
    def all_s(self) -> float | None:
        """Seconds of all that is due, None if those of a row are not known."""
        seconds = [row.all_s for row in self.rows]
        return sum(seconds) if None not in seconds else None  # type: ignore[arg-type]

    @property
    def peak_mib(self) -> float | None:
        """Of the cell that holds the most, as far as that can be counted."""
        peaks = [row.cost.memory.peak_mib for row in self.rows if row.cost.memory]
        return max(peaks, default=None)

    @property
    def done(self) -> int:
        """How many cells have run already."""
        return self.cells - sum(row.due for row in self.rows)

    def document(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        rows = [
            {
                **asdict(row.cost) | {"n_trainable": row.cost.n_trainable.model_dump()},
                **{name: value for name, value in vars(row).items() if name != "cost"},
                "all_s": row.all_s,
            }
            for row in self.rows
        ]
        told = ("suite", "model", "cells", "done", "free_mib")
        about = {name: getattr(self, name) for name in told}
        return {**about, "all_s": self.all_s, "peak_mib": self.peak_mib, "rows": rows}


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
        seeds: one run of every cell a seed; (0,) unless a suite file says otherwise.
        data: your own file instead of tasks, or a table, as `peftlab.compare` takes it.
        text: its text column, or two.
        label: its label column.
        dev: a file to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main one, of all tasks, instead of each task's own.
        judge_on: dev, or train: a fifth of train.
        tune: how many trials every row gets on each task; they are counted in.
        out: the folder of `compare`; what has run there is not counted, and tells, beside the
            records of runs/, how long a cell takes.
        measure: run a few steps of each method on each task, and predict times by those.
        training: fields of `peftlab.settings.Training`, such as epochs or batch_size.

    Raises:
        RequestError: if anything in the request is wrong.
    """
    rates, settings = rates_apart(training)
    request = request_of(
        suite=suite,
        model=model,
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        data=data_of(data, {"text": text, "label": label, "dev": dev, "kind": kind}),
        data_dir=data_dir,
        metric=metric,
        judge_on=judge_on,
        out=out,
        tune=tune_of(tune),
        rates=rates,
        training=Training.of(settings, arguments_of(plan)),
    )
    return plan_of(planned(request.suite, request.asked, out=out), measure)


def plan_of(
    asked: Planned, measure: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Plan:
    """The plan of a request that was found right; `tell` is told what is looked at."""
    grid = asked.grid
    predictor = Predictor(grid)
    costs = _costs(grid, predictor, tell)
    first = [cell for cell, _ in costs]
    few: dict[str, Record] = {}
    if measure:
        few = measure_cells(grid, first, lambda title: tell(f"running a few steps of {title}"))
    records = [] if measure else records_of(known_folders(asked.out))
    free = training_room(first[0].training.device)
    ahead = remaining(grid, asked.out)
    rows = []
    for cell, cost in costs:
        steps = few.get(cell.name)
        time_of = _timer(predictor, cost, steps, records)
        rows.append(_row(time_of, cell, cost, steps, free, ahead))
    return Plan(
        suite=grid.suite.name,
        model=grid.cells[0].model.name,
        cells=len(grid.cells),
        out=asked.out,
        rows=rows,
        free_mib=free,
    )


def _costs(
    grid: Grid, predictor: Predictor, tell: Callable[[str], None]
) -> list[tuple[Cell, Cost]]:
    """Of each row on each task its first cell, and what one of them costs."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.row, []).append(cell)
    costs = []
    for (task, label), cells in rows.items():
        tell(f"counting what {label} needs on {task}")
        costs.append((cells[0], predictor.cost(cells[0], len(cells))))
    return costs


Timer = Callable[[Cell], Time | None]


def _timer(
    predictor: Predictor, cost: Cost, few: Record | None, records: Sequence[Record]
) -> Timer:
    """What tells the time of a row's cells: its few steps if they were run, or the records."""
    weights = cost.memory.by_part["weights"] if cost.memory else None

    def time_of(cell: Cell) -> Time | None:
        train, dev = predictor.lengths_of(cell)
        if few is None:
            return by_records(cell, train, dev, weights, records)
        return by_measured(cell, train, dev, few)

    return time_of


def _row(
    time_of: Timer,
    cell: Cell,
    cost: Cost,
    few: Record | None,
    free: float | None,
    ahead: Remaining,
) -> Row:
    time = time_of(cell)
    trials = ahead.trials.get((cost.task, cost.label), [])
    return Row(
        cost=cost,
        due=ahead.due(cost.task, cost.label),
        cell_s=time.cell_s if time else None,
        time_from=time.source if time else None,
        measured_peak_mib=few.memory.train_peak_mib if few and few.memory else None,
        fits=_fits(cost, free),
        trials=sum(one.n for one in trials),
        trials_s=_trials_s(time_of, cell, trials),
    )


def _trials_s(time_of: Timer, cell: Cell, trials: Sequence[Trainings]) -> float | None:
    seconds = 0.0
    for n, epochs, share in trials:
        training = cell.training.model_copy(update={"epochs": epochs})
        time = time_of(cell.model_copy(update={"training": training}))
        if time is None:
            return None
        seconds += n * share * time.cell_s
    return seconds


def _fits(cost: Cost, room: float | None) -> bool | None:
    if room is None or cost.memory is None:
        return None
    return not surely_above(cost.memory.peak_mib, room)
