"""The options that commands share, and the request that they make."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer
from pydantic.fields import FieldInfo

from peftlab.cli.stop import stopped
from peftlab.errors import RequestError
from peftlab.naming import words
from peftlab.settings import Training

Option = typer.Option
Text = str | None


Device = Annotated[Text, Option(help=Training.model_fields["device"].description)]
Fast = Annotated[
    bool | None,
    Option("--fast/--no-fast", help=Training.model_fields["fast"].description),
]
Quiet = Annotated[bool, Option("--quiet", help="No progress.")]
Json = Annotated[bool, Option("--json", help="One JSON document on stdout.")]
SuiteFile = Annotated[Path | None, typer.Argument(help="A suite file (TOML); options win over it.")]
DataDir = Annotated[
    Path | None, Option(envvar="PEFTLAB_DATA_DIR", help="The folder with GLUE's own files.")
]
Grid = dict[str, Any]  # the part of a request that says which cells there are

LONGEST_SEED = 10  # digits


class Asked(NamedTuple):
    """A request as far as options have made it, and the assignments of `--set`."""

    request: dict[str, Any]
    sets: list[str]


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of `_shared`, whose result it takes as `asked`, in its place."""
    *shared, _ = _parameters(_shared)
    # what is decided later if nobody asks comes first, the rates and epochs among it
    settings = sorted(Training.model_fields.items(), key=lambda item: item[1].default is not None)
    shared += [_option(name, field) for name, field in settings]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        from rich.console import Console

        typed = {option.name: arguments.pop(option.name) for option in shared}
        quiet = bool(arguments.get("quiet"))
        with Console(stderr=True, quiet=quiet).status("starting"):  # torch takes seconds
            asked = _shared(**typed)
        command(**arguments, asked=asked)

    return _in_place_of("asked", run, command, shared)


def with_grid(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of `_grid`, whose result it takes as `grid`, in its place."""
    options = _parameters(_grid)

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        grid = _grid(**{option.name: arguments.pop(option.name) for option in options})
        command(**arguments, grid=grid)

    return _in_place_of("grid", run, command, options)


def with_debug(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with `--debug`, which shows where an error came from; stopped, it says by what."""

    @functools.wraps(command)
    def run(debug: bool, **arguments: Any) -> None:
        try:
            command(**arguments)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as stop:
            raise stopped(stop) from None
        except Exception:
            if debug or "--debug" in sys.argv:  # before the command, too
                traceback.print_exc()
            raise

    return _with(
        run,
        command,
        _keyword("debug", False, bool, Option("--debug", help="Show an error's traceback.")),
    )


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with `--plugin`, whose methods are known before it begins."""

    @functools.wraps(command)
    def run(plugin: list[Path] | None, **arguments: Any) -> None:
        if plugin:
            from peftlab.api.compare import load_plugin

            for file in plugin:
                load_plugin(file)
        command(**arguments)

    help_ = "A Python file that registers methods of your own; may be repeated."
    option = Option("--plugin", help=help_)
    return _with(run, command, _keyword("plugin", None, list[Path] | None, option))


def _with(
    run: Callable[..., None], command: Callable[..., None], option: inspect.Parameter
) -> Callable[..., None]:
    return _signed(run, [*_parameters(command), option])


def _in_place_of(
    name: str,
    run: Callable[..., None],
    command: Callable[..., None],
    options: list[inspect.Parameter],
) -> Callable[..., None]:
    replaced = ([own] if own.name != name else options for own in _parameters(command))
    return _signed(run, list(itertools.chain.from_iterable(replaced)))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _signed(run: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """`run` as typer shall see it: called with these parameters, all by their names."""
    named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
    return run


def _keyword(name: str, default: Any, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _shared(
    model: Annotated[Text, Option(help="minilm, mpnet, a folder, or a hub name.")] = None,
    data_dir: DataDir = None,
    data: Annotated[
        Path | None, Option(help="Your own data: CSV, TSV, JSONL or Parquet; or hub:OWNER/NAME.")
    ] = None,
    text: Annotated[Text, Option(help="Its text column, or two with a comma between.")] = None,
    label: Annotated[Text, Option(help="Its label column.")] = None,
    dev: Annotated[
        Path | None, Option(help="A file to evaluate on; without it a fifth is kept apart.")
    ] = None,
    kind: Annotated[Text, Option(help="auto, classes or regression.")] = None,
    metric: Annotated[
        Text,
        Option(
            help="The main metric: accuracy, f1, macro_f1 or matthews; "
            "pearson, spearman, rmse or mae for a regression. Default: the task's."
        ),
    ] = None,
    judge_on: Annotated[
        Text, Option(help="dev, or train: a fifth of train, to choose settings without dev.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option("--set", help="METHOD.FIELD=VALUE or training.FIELD=VALUE; may be repeated."),
    ] = None,
    **training: Any,
) -> Asked:
    """What compare and train ask alike; `training` has an option for each of its settings."""
    from peftlab.api.compare import data_of

    beside = {"text": split(text, "--text"), "label": label, "dev": dev, "kind": kind}
    given = {name: value for name, value in training.items() if value is not None}
    rates = rates_of(given.pop("lr", None))
    if len(rates) == 1:
        given["lr"] = rates[0]
    request = {
        "model": model,
        "data_dir": data_dir,
        "data": data_of(data, beside),
        "metric": metric,
        "judge_on": judge_on,
        "training": Training.of(given),
        "rates": rates if len(rates) > 1 else None,
    }
    return Asked(request, set_ or [])


def _grid(
    tasks: Annotated[Text, Option(help="Names with commas between, or all.")] = None,
    methods: Annotated[
        Text, Option(help="Names with commas between, or all; lora[rank=16,lr=1e-3] is a variant.")
    ] = None,
    seeds: Annotated[
        Text, Option(help="Numbers with commas between; default 0,1. A verdict takes three.")
    ] = None,
    tune: Annotated[
        int | None,
        Option(help="Trials of every method on each task, to find rates; else defaults."),
    ] = None,
    validation: Annotated[
        float | None, Option(help="Share of train that trials are judged on; default 0.1.")
    ] = None,
    tune_space: Annotated[
        Text, Option(help="Settings to find, with commas between; default lr,head_lr.")
    ] = None,
) -> Grid:
    """What compare and plan ask alike beside what train asks, too."""
    from peftlab.api import compare

    return {
        "tasks": compare.every_task() if tasks == "all" else split(tasks, "--tasks"),
        "methods": methods_of(methods),
        "seeds": seeds_of(seeds),
        "tune": compare.tune_of(tune, validation, split(tune_space, "--tune-space")),
    }


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a setting: its help is the field's, and what it allows is checked there."""
    if name == "lr":
        help_ = (
            "Learning rate; where methods are compared, several with commas between make a row "
            "each. Default: the method's."
        )
        return _keyword(name, None, Text, Option("--lr", help=help_))
    word = name.replace("_", "-")
    kinds = _kinds(field.annotation)
    kind: Any = next((one for one in (bool, int, float) if one in kinds), str)
    flags = f"--{word}/--no-{word}" if kind is bool else f"--{word}"
    return _keyword(name, None, kind | None, Option(flags, help=field.description))


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation names, such as those of `Annotated[float, ...] | None`."""
    inner = get_args(annotation)
    return {annotation}.union(*map(_kinds, inner)) if inner else {annotation}


def methods_of(text: str | None) -> list[dict[str, Any]] | None:
    """Methods with commas between, or all."""
    from peftlab.api.compare import parse_methods

    return None if text is None else parse_methods(text)


def rates_of(text: str | None) -> list[float]:
    """Numbers with commas between; none of no text."""
    try:
        return [float(word) for word in split(text, "--lr") or []]
    except ValueError:
        raise RequestError(
            f"--lr takes a number, or several with commas between, such as 1e-4,4e-4; got {text!r}"
        ) from None


def seeds_of(text: str | None) -> list[int] | None:
    """Whole numbers with commas between."""
    given = split(text, "--seeds")
    if given is None:
        return None
    wrong = [word for word in given if not word.isdecimal() or len(word) > LONGEST_SEED]
    if wrong:
        raise RequestError(
            f"--seeds takes whole numbers below 2**32 with commas between, got {wrong[0]!r}"
        )
    return [int(word) for word in given]


def split(text: str | None, option: str) -> list[str] | None:
    """Words with commas between, but not those in brackets; RequestError if there is none."""
    if text is None:
        return None
    named = words(text)
    if not named:
        raise RequestError(f"{option} must name at least one, got {text!r}")
    return named
