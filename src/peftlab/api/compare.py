"""compare: run every cell of a suite that is not done yet, and return the records of all.

The request is made here, of Python's arguments and of the command line's options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape

from peftlab.api.live import Live
from peftlab.api.progress import callers_console, observer
from peftlab.bench.cell import Cell
from peftlab.bench.foresee import foresee, training_room
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.retention import Keep, check_keep, room_mib
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.speed import measure_speed
from peftlab.bench.suite import merged_request
from peftlab.bench.times import records_of
from peftlab.bench.tune import Remaining, remaining, tune_grid
from peftlab.errors import RequestError, expanded, expect_path, plain
from peftlab.methods import Method, is_built_in, register
from peftlab.methods import load_plugin as load_plugin
from peftlab.methods import parse_methods as parse_methods
from peftlab.naming import slug
from peftlab.records.lock import locked
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.settings import Training
from peftlab.tasks import Task, names


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
        seeds: every cell runs once for each seed; (0,) unless a suite file says otherwise.
        data: your own file instead of tasks, CSV, TSV, JSONL or Parquet; or a table with `path`
            and the four that follow.
        text: its text column, or two.
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
    rates, settings = split_rates(training)
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
        training=Training.of(settings, arguments_of(compare)),
    )
    resolved = resolve_request(request.suite, request.fields, out=out)
    _check_rounds(repeat_speed)
    return run(resolved, callers_console(quiet), quiet, keep=keep, repeat_speed=repeat_speed)


class Request(NamedTuple):
    """A request as Python's arguments give it: a suite file, and the fields that win over it."""

    suite: Path | None
    fields: dict[str, Any]


def request_of(*, suite: Any, out: Any, **fields: Any) -> Request:
    """The request of `compare`'s arguments; classes of methods that are new are registered.

    Raises:
        RequestError: if an argument that must be a path is something else.
    """
    paths = {"suite": suite, "data_dir": fields["data_dir"], "out": out, "model": fields["model"]}
    for name, path in paths.items():
        if path is not None:
            expect_path(name, path)
    if suite is None and fields["seeds"] is None:
        fields["seeds"] = (0,)
    for name in ("tasks", "methods", "seeds"):
        fields[name] = _as_list(fields[name])
    fields["model"] = None if fields["model"] is None else str(fields["model"])
    fields["data_dir"] = None if fields["data_dir"] is None else Path(fields["data_dir"])
    for method in fields["methods"] or []:
        if isinstance(method, Method) and not is_built_in(type(method)):
            register(type(method))
    return Request(None if suite is None else expanded(suite), fields)


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """The names of the parameters of `call`, without its `**training`."""
    parameters = inspect.signature(call).parameters.values()
    return [
        parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD
    ]


def every_task() -> list[str]:
    """The names that `--tasks all` stands for."""
    return names()


def _check_rounds(rounds: Any) -> None:
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        raise RequestError(f"repeat_speed must be a whole number from 0, got {rounds!r}")


def split_rates(training: Mapping[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
    """The learning rates, if several, and the other settings, among them a single rate."""
    settings = dict(training)
    if not isinstance(settings.get("lr"), list | tuple):
        return None, settings
    return list(settings.pop("lr")), settings


def _as_list(values: Any) -> list[Any] | None:
    """The values as a list; a single value, such as a string, becomes a list of one."""
    if values is None:
        return None
    is_single = isinstance(values, str | bytes | dict) or not isinstance(values, Iterable)
    return [plain(value) for value in ([values] if is_single else values)]


class ResolvedRequest(NamedTuple):
    """A checked request: its cells, and the folder that their records go to."""

    grid: Grid
    out: Path


def resolve_request(
    file: Path | None,
    fields: dict[str, Any],
    sets: Iterable[str] = (),
    out: str | Path | None = None,
) -> ResolvedRequest:
    """Check a request and resolve it to cells: a suite file, and the fields that win over it.

    Raises:
        RequestError: if anything in it is wrong.
    """
    grid = resolve(merged_request(file, fields, sets))
    folder = Path("runs") / slug(grid.suite.name) if out is None else expanded(out)
    return ResolvedRequest(grid, folder)


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


def tune_of(
    trials: Any, validation: float | None = None, space: list[str] | None = None
) -> dict[str, Any] | None:
    """The request's `tune`, of options or of an argument; None if nothing was given."""
    if isinstance(trials, dict):
        return trials
    given = {"trials": trials, "validation": validation, "space": space}
    return {name: value for name, value in given.items() if value is not None} or None


def data_of(data: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """The request's `data`: a file or a table, and the options about it, which win.

    Raises:
        RequestError: if a column or the file is not named.
    """
    given = {name: value for name, value in options.items() if value is not None}
    table = {**data, **given} if isinstance(data, dict) else {"path": data, **given}
    if isinstance(data, dict) and "path" not in table:
        raise RequestError(f"data must have a path, got {data!r}")
    known = ("path", *options)  # an unknown key is kept, to be refused later
    table = {key: value for key, value in table.items() if value is not None or key not in known}
    if "path" not in table:
        if described := [name for name in options if name in table]:
            raise RequestError(
                f"--{described[0]} describes your own data; give the file with --data FILE, "
                "also where a suite names one (in Python: data=FILE)"
            )
        return None
    if not {"text", "label"} <= table.keys():
        raise RequestError(
            "--data FILE needs --text COLUMN[,COLUMN] and --label COLUMN, also where a suite names "
            "them (in Python: data=FILE, text=, label=)"
        )
    for name in ("path", "dev"):
        if name in table:
            expect_path(f"data's {name}", table[name])
            table[name] = Path(table[name])
    if isinstance(table["text"], str):
        table["text"] = [column.strip() for column in table["text"].split(",")]
    elif isinstance(table["text"], tuple):
        table["text"] = list(table["text"])
    return table
