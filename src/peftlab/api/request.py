"""The request of every verb, made of Python's arguments or of the command line's options.

    request_of        the arguments as a suite file and the fields that win over it
    resolve_request   such a file and fields, checked: cells, and the folder for their records

Whatever is wrong in a request is a RequestError before anything is trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.bench.grid import Grid, resolve
from peftlab.bench.suite import merged_request
from peftlab.errors import RequestError, expanded, expect_path, plain
from peftlab.methods import Method, is_built_in, register
from peftlab.methods import load_plugin as load_plugin
from peftlab.methods import parse_methods as parse_methods
from peftlab.naming import columns, slug
from peftlab.settings import Training
from peftlab.tasks import names


class Request(NamedTuple):
    """A request as Python's arguments give it: a suite file, and the fields that win over it."""

    suite: Path | None
    fields: dict[str, Any]


def request_of(
    call: Callable[..., Any],
    *,
    suite: Any = None,
    model: Any,
    tasks: Any,
    methods: Any,
    seeds: Any,
    data: Any,
    text: Any,
    label: Any,
    dev: Any,
    kind: Any,
    data_dir: Any,
    metric: Any,
    judge_on: Any = None,
    tune: Any = None,
    out: Any,
    training: Mapping[str, Any],
) -> Request:
    """The request of the arguments of `call`: `compare`, `plan` or `fit`.

    Registers new classes of methods. `training` has what the call takes beside its own arguments.

    Raises:
        RequestError: if an argument that must be a path is something else, or if data, tune or a
            setting is wrong.
    """
    paths = {"suite": suite, "data_dir": data_dir, "out": out, "model": model}
    for name, path in paths.items():
        if path is not None:
            expect_path(name, path)
    rates, settings = _split_rates(training)
    all_methods = _as_list(methods)
    for method in all_methods or []:
        if isinstance(method, Method) and not is_built_in(type(method)):
            register(type(method))
    fields = {
        "model": None if model is None else str(model),
        "tasks": _as_list(tasks),
        "methods": all_methods,
        "seeds": _as_list((0,) if suite is None and seeds is None else seeds),
        "data": data_of(data, {"text": text, "label": label, "dev": dev, "kind": kind}),
        "data_dir": None if data_dir is None else Path(data_dir),
        "metric": metric,
        "judge_on": judge_on,
        "tune": tune_of(tune),
        "rates": rates,
        "training": Training.of(settings, arguments_of(call)),
    }
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


def _split_rates(training: Mapping[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
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
        table["text"] = columns(table["text"])
    elif isinstance(table["text"], tuple):
        table["text"] = list(table["text"])
    return table


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
