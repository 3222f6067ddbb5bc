"""compare: run every cell of a suite that is not done yet, and give back all its records.

What options give as words is made a request here too, as Python's arguments are.
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
from peftlab.errors import RequestError, expanded, expect_path
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
        methods: names such as "lora" or "lora[rank=16]", tables, or `Method` values, those of a
            class of your own too.
        seeds: one run of every cell a seed; (0,) unless a suite file says otherwise.
        data: your own file instead of tasks, CSV, TSV, JSONL or Parquet; or a table with `path`
            and the four that follow.
        text: its text column, or two.
        label: its label column.
        dev: a file to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main one, of all tasks, instead of each task's own.
        judge_on: dev, or train: a fifth of train, so that settings are chosen without dev.
        tune: how many trials to give every row on each task, so that rates are found and not
            assumed; or a table with `trials`, `validation` (the share of train that they are
            judged on) and `space` (settings' names). Needs the extra `tune`.
        out: the folder for records, curves and predictions; `runs/SUITE` if not given.
        keep: which cells' adapters to keep: all, the best seed's of each row, or none. A method
            that changes the whole model keeps its best seed's at most.
        repeat_speed: rounds of short cells, taking turns, that speed and memory are then read from.
        quiet: no progress.
        training: fields of `peftlab.settings.Training`, such as epochs or lr; a list of learning
            rates makes a row of every method at each.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
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
        training=Training.of(settings, arguments_of(compare)),
    )
    ready = planned(request.suite, request.asked, out=out)
    rounds = _rounds(repeat_speed)
    return run(ready, callers_console(quiet), quiet, keep=keep, repeat_speed=rounds)


class Request(NamedTuple):
    """A request as Python's arguments give it: a suite file, and what wins over it."""

    suite: Path | None
    asked: dict[str, Any]


def request_of(*, suite: Any, out: Any, **given: Any) -> Request:
    """The request of `compare`'s arguments; methods of classes that are new are known then.

    Raises:
        RequestError: if a path is none.
    """
    paths = {"suite": suite, "data_dir": given["data_dir"], "out": out, "model": given["model"]}
    for name, path in paths.items():
        if path is not None:
            expect_path(name, path)
    if suite is None and given["seeds"] is None:
        given["seeds"] = (0,)
    for name in ("tasks", "methods", "seeds"):
        given[name] = _listed(given[name])
    given["model"] = None if given["model"] is None else str(given["model"])
    given["data_dir"] = None if given["data_dir"] is None else Path(given["data_dir"])
    for method in given["methods"] or []:
        if isinstance(method, Method) and not is_built_in(type(method)):
            register(type(method))
    return Request(None if suite is None else expanded(suite), given)


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """The names that a call has for its own arguments, beside those of a training."""
    parameters = inspect.signature(call).parameters.values()
    return [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]


def every_task() -> list[str]:
    """The names that `--tasks all` stands for."""
    return names()


def _rounds(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise RequestError(f"repeat_speed must be a whole number from 0, got {given!r}")
    return given


def rates_apart(training: Mapping[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
    """Several learning rates, which become rows, and the other settings; one rate is a setting."""
    settings = dict(training)
    if not isinstance(settings.get("lr"), list | tuple):
        return None, settings
    return list(settings.pop("lr")), settings


def _listed(given: Any) -> list[Any] | None:
    """A list of what was given; one thing alone is a list of one."""
    if given is None:
        return None
    alone = isinstance(given, str | bytes | dict) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


class Planned(NamedTuple):
    """A request that was found right: its cells, and the folder that they will run into."""

    grid: Grid
    out: Path


def planned(
    file: Path | None,
    request: dict[str, Any],
    sets: Iterable[str] = (),
    out: str | Path | None = None,
) -> Planned:
    """Check a request, that of a suite file with what wins over it, and resolve it to cells.

    Raises:
        RequestError: if anything in it is wrong.
    """
    grid = resolve(merged_request(file, request, sets))
    folder = Path("runs") / slug(grid.suite.name) if out is None else expanded(out)
    return Planned(grid, folder)


def run(
    asked: Planned,
    console: Console,
    quiet: bool = False,
    rerun: bool = False,
    keep: Keep = "all",
    repeat_speed: int = 0,
    page: bool = False,
    command: ExitStack | None = None,
) -> list[Record]:
    """Run what is missing of a plan, showing progress; every cell's record.

    `page` keeps the folder's page current meanwhile. `command` is the whole that this is a part of,
    where it is one.
    """
    grid, out = asked
    check_keep(keep)
    say = foreseeing(grid, out, console)
    with ExitStack() as alone:
        whole = command or alone

        def progress() -> Observer:
            return Live(observer(console, quiet), out, whole, page)

        if grid.suite.tune is not None:
            before = remaining(grid, out)
            if not before.trials:
                Store(out).prepare()
            else:
                with Store(out).prepared(room_mib(grid.cells, keep)):
                    told = _foretold(before, say)  # or it does not fit, and is refused
                console.print(told, markup=False, highlight=False)
            whole.enter_context(locked(out))  # from the first trial to the last cell
            grid = tune_grid(grid, grid.suite.tune, out, progress())
            say = foreseeing(grid, out, console)
        records = run_grid(grid, out, progress(), rerun, keep, foresee=say)
        if repeat_speed:
            measure_speed(grid, repeat_speed, out, progress())
        return records


def _foretold(before: Remaining, say: Callable[[Sequence[Cell]], str]) -> str:
    """What the cells and the trials before them will cost."""
    n_trials = sum(one.n for of_row in before.trials.values() for one in of_row)
    return f"{say(before.cells)}; about {n_trials} shorter trainings of trials before them"


def foreseeing(grid: Grid, out: Path, console: Console) -> Callable[[Sequence[Cell]], str]:
    """What says, of cells of the grid that are to run, what they cost; shown while it counts.

    What is free is looked at now: a worker's libraries are no part of what a training takes.
    """
    room = training_room(grid.cells[0].training.device)

    def say(due: Sequence[Cell]) -> str:
        with console.status("counting what each method needs") as status:
            records = records_of(known_folders(out))
            return foresee(
                grid,
                due,
                records,
                room,
                lambda what: status.update(f"counting what {escape(what)} needs"),
            )

    return say


def known_folders(out: Path) -> list[Path]:
    """Where records may lie that tell how long a cell takes: the folders of runs/, `out` last."""
    others = [one for one in sorted(Path("runs").glob("[!.]*")) if one.resolve() != out.resolve()]
    return [*others, out]


def tune_of(
    trials: Any, validation: float | None = None, space: list[str] | None = None
) -> dict[str, Any] | None:
    """The request's `tune` of what a command line or a caller gave; None if nothing was given."""
    if isinstance(trials, dict):
        return trials
    given = {"trials": trials, "validation": validation, "space": space}
    return {name: value for name, value in given.items() if value is not None} or None


def data_of(data: Any, given: dict[str, Any]) -> dict[str, Any] | None:
    """The request's `data` of a file or a table, and what is given beside it, which wins.

    Raises:
        RequestError: if a column is not named, or there is no file.
    """
    beside = {name: value for name, value in given.items() if value is not None}
    table = {**data, **beside} if isinstance(data, dict) else {"path": data, **beside}
    if isinstance(data, dict) and "path" not in table:
        raise RequestError(f"data must have a path, got {data!r}")
    known = ("path", *given)
    table = {k: value for k, value in table.items() if value is not None or k not in known}
    if "path" not in table:
        if described := [name for name in given if name in table]:
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
    return table
