"""compare: run every cell of a suite that is not done yet, and return the records of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape

from peftlab.api.live import Live
from peftlab.api.progress import callers_console, observer
from peftlab.api.request import ResolvedRequest, request_of, resolve_request
from peftlab.bench.cell import Cell
from peftlab.bench.foresee import foresee, training_room
from peftlab.bench.grid import Grid
from peftlab.bench.retention import Keep, check_keep, room_mib
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.speed import measure_speed
from peftlab.bench.times import records_of
from peftlab.bench.tune import Remaining, remaining, tune_grid
from peftlab.errors import RequestError
from peftlab.methods import Method
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.tasks import Task


def compare(
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
    keep: Keep = "all",
    repeat_speed: int = 0,
    quiet: bool = False,
    **training: Any,
) -> list[Record]:
    """Train and measure every method on every task with every seed; done cells are not run again.

    Args:
        suite: a TOML file that says the same as the other arguments, which win over it.
        model: `minilm`, `mpnet`, a folder, or a hub name.
        tasks: names, or `Task` values.
        methods: names such as "lora" or "lora[rank=16]", tables, or `Method` values, also of a
            class of your own.
        seeds: every cell runs once for each seed; (0,), or [0, 1] where a suite file names none.
        data: your own file instead of tasks, CSV, TSV, JSONL or Parquet; or a table with `path`
            and the four that follow.
        text: its text column, or two: a list, or as in `--text` a string with a comma between.
        label: its label column.
        dev: a file to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main metric of all tasks, instead of each task's own.
        judge_on: dev; or train, which keeps a fifth of train apart, so that settings are chosen
            without dev.
        tune: how many trials every row gets on each task, so that rates are found and not
            assumed; or a table with `trials`, `validation` (the share of train that they are
            judged on) and `space` (names of settings). Needs the extra `tune`.
        out: the folder for records, curves and predictions; `runs/SUITE` if not given.
        keep: whose adapters to keep: all, best (the best seed of each row) or none. A method that
            changes the whole model keeps that of its best seed at most.
        repeat_speed: rounds of short runs in turns, from which speed and memory are then read.
        quiet: no progress.
        training: fields of `peftlab.settings.Training`, such as epochs or lr; a list of learning
            rates makes a row of every method at each rate.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
    """
    request = request_of(
        compare,
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
    resolved = resolve_request(request.suite, request.fields, out=out)
    _check_rounds(repeat_speed)
    return run(resolved, callers_console(quiet), quiet, keep=keep, repeat_speed=repeat_speed)


def _check_rounds(rounds: Any) -> None:
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        raise RequestError(f"repeat_speed must be a whole number from 0, got {rounds!r}")


def run(
    resolved: ResolvedRequest,
    console: Console,
    quiet: bool = False,
    rerun: bool = False,
    keep: Keep = "all",
    repeat_speed: int = 0,
    page: bool = False,
    command: ExitStack | None = None,
) -> list[Record]:
    """Run the cells that are not done, showing progress; returns the record of every cell.

    `page` keeps the folder's page current meanwhile. `command` is the context of the whole command,
    if this is one part of several.
    """
    grid, out = resolved
    check_keep(keep)
    forecast = forecaster(grid, out, console)
    with ExitStack() as own:
        context = command or own

        def progress() -> Observer:
            return Live(observer(console, quiet), out, context, page)

        if grid.suite.tune is not None:
            outstanding = remaining(grid, out)
            if not outstanding.trials:
                Store(out).prepare()
            else:
                with Store(out).prepared(room_mib(grid.cells, keep)):
                    # refuses what does not fit into memory
                    cost = _describe_cost(outstanding, forecast)
                console.print(cost, markup=False, highlight=False)
            context.enter_context(locked(out))  # from the first trial to the last cell
            grid = tune_grid(grid, grid.suite.tune, out, progress())
            forecast = forecaster(grid, out, console)
        records = run_grid(grid, out, progress(), rerun, keep, foresee=forecast)
        if repeat_speed:
            measure_speed(grid, repeat_speed, out, progress())
        return records


def _describe_cost(outstanding: Remaining, forecast: Callable[[Sequence[Cell]], str]) -> str:
    """The cost of the cells that have not run yet, and the number of the trials before them."""
    n_trials = sum(trainings.n for of_row in outstanding.trials.values() for trainings in of_row)
    return (
        f"{forecast(outstanding.cells)}; about {n_trials} shorter trainings of trials before them"
    )


def forecaster(grid: Grid, out: Path, console: Console) -> Callable[[Sequence[Cell]], str]:
    """A function that describes the cost of cells of the grid, showing progress on the console.

    Free memory is measured here, before a worker's libraries take some: they are no part of what a
    training takes.
    """
    room = training_room(grid.cells[0].training.device)

    def forecast(due: Sequence[Cell]) -> str:
        with console.status("counting what each method needs") as status:
            records = records_of(record_folders(out))

            def show_label(label: str) -> None:
                status.update(f"counting what {escape(label)} needs")

            return foresee(grid, due, records, room, show_label)

    return forecast


def record_folders(out: Path) -> list[Path]:
    """The folders whose records may tell how long a cell takes: those in runs/, and `out` last."""
    folders = sorted(Path("runs").glob("[!.]*"))
    return [*(folder for folder in folders if folder.resolve() != out.resolve()), out]
