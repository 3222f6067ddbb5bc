"""The options that commands share, and the request made of their values."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer
from pydantic.fields import FieldInfo

from peftlab.cli.stop import exit_for
from peftlab.errors import RequestError, expanded
from peftlab.naming import columns, words
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
Grid = dict[str, Any]  # the fields of a request that say which cells there are

COLUMNS = "The text column, or two with a comma between; names with a comma in double quotes."
DEBUG = "Show the traceback of an error, and of each cell that fails."
LONGEST_SEED = 10  # digits
LOG = logging.getLogger("peftlab")


class OptionRequest(NamedTuple):
    """The fields of a request that the shared options give, and the assignments of `--set`."""

    fields: dict[str, Any]
    sets: list[str]


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of `_request` in place of its parameter `request`."""
    *options, _ = _parameters(_request)
    # first the settings that are decided later unless given, such as rates and epochs
    settings = sorted(Training.model_fields.items(), key=lambda item: item[1].default is not None)
    options += [_option(name, field) for name, field in settings]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        from rich.console import Console

        values = {option.name: arguments.pop(option.name) for option in options}
        console = Console(stderr=True, quiet=bool(arguments.get("quiet")))
        with console.status("starting") as status:
            # else it is drawn a twelfth of a second later, when torch, which takes seconds, loads
            status.update(spinner="dots")
            request = _request(**values)
        command(**arguments, request=request)

    return _replacing("request", run, command, options)


def with_grid(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options of `_grid` in place of its parameter `grid`."""
    options = _parameters(_grid)

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        grid = _grid(**{option.name: arguments.pop(option.name) for option in options})
        command(**arguments, grid=grid)

    return _replacing("grid", run, command, options)


class _Stderr(logging.Handler):
    """Prints to stderr as it is at that time: a progress bar puts its own in place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def show_tracebacks(debug: bool) -> None:
    """Let peftlab's debug messages be seen, or not: tracebacks of its own and of cells' errors."""
    LOG.handlers = [_Stderr()]
    LOG.setLevel(logging.DEBUG if debug else logging.WARNING)


def with_debug(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with `--debug`, which shows tracebacks; a signal becomes the exit status."""

    @functools.wraps(command)
    def run(debug: bool, **arguments: Any) -> None:
        if debug:  # else what stood before the command holds
            show_tracebacks(debug)
        try:
            command(**arguments)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as interrupt:
            raise exit_for(interrupt) from None
        except Exception:
            LOG.debug("the command failed", exc_info=True)
            raise

    option = Option("--debug", help=DEBUG)
    return _signed(run, [*_parameters(command), _keyword("debug", False, bool, option)])


def with_home_paths(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the home folder in place of ~ in its paths: no shell expands --out=~/runs."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(**{name: _at_home(value) for name, value in arguments.items()})

    return _signed(run, _parameters(command))


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(element) for element in value]
    return expanded(value) if isinstance(value, Path) else value


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with `--plugin`, whose methods are registered before it begins."""

    @functools.wraps(command)
    def run(plugin: list[Path] | None, **arguments: Any) -> None:
        if plugin:
            from peftlab.api.request import load_plugin

            for file in plugin:
                load_plugin(file)
        command(**arguments)

    help_ = "A Python file that registers methods of your own; may be repeated."
    option = Option("--plugin", help=help_)
    parameter = _keyword("plugin", None, list[Path] | None, option)
    return _signed(run, [*_parameters(command), parameter])


def _replacing(
    name: str,
    run: Callable[..., None],
    command: Callable[..., None],
    options: list[inspect.Parameter],
) -> Callable[..., None]:
    """`run` with the parameters of `command`, of which `options` replace the one of this name."""
    parameters = _parameters(command)
    (index,) = (i for i, parameter in enumerate(parameters) if parameter.name == name)
    parameters[index : index + 1] = options
    return _signed(run, parameters)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _signed(run: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """`run` with the signature that typer reads: these parameters, all keyword-only."""
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
    return run


def _keyword(name: str, default: Any, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _request(
    model: Annotated[Text, Option(help="minilm, mpnet, a folder, or a hub name.")] = None,
    data_dir: DataDir = None,
    data: Annotated[
        Path | None, Option(help="Your own data: CSV, TSV, JSONL or Parquet; or hub:OWNER/NAME.")
    ] = None,
    text: Annotated[Text, Option(help=COLUMNS)] = None,
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
) -> OptionRequest:
    """The request of compare, plan, fit and train; `training` has an option for each setting."""
    from peftlab.api.request import data_of

    data_options = {"text": columns_of(text), "label": label, "dev": dev, "kind": kind}
    settings = {name: value for name, value in training.items() if value is not None}
    rates = rates_of(settings.pop("lr", None))
    if len(rates) == 1:
        settings["lr"] = rates[0]
    fields = {
        "model": model,
        "data_dir": data_dir,
        "data": data_of(data, data_options),
        "metric": metric,
        "judge_on": judge_on,
        "training": Training.of(settings),
        "rates": rates if len(rates) > 1 else None,
    }
    return OptionRequest(fields, set_ or [])


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
    """The fields of the options that only compare and plan share."""
    from peftlab.api import request

    return {
        "tasks": request.every_task() if tasks == "all" else split(tasks, "--tasks"),
        "methods": methods_of(methods),
        "seeds": seeds_of(seeds),
        "tune": request.tune_of(tune, validation, split(tune_space, "--tune-space")),
    }


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a setting: its help is the field's, and `Training` checks its value."""
    if name == "lr":
        help_ = (
            "Learning rate; where methods are compared, several with commas between make a row "
            "each. Default: the method's."
        )
        return _keyword(name, None, Text, Option("--lr", help=help_))
    word = name.replace("_", "-")
    named = _kinds(field.annotation)
    kind: Any = next((kind for kind in (bool, int, float) if kind in named), str)
    flags = f"--{word}/--no-{word}" if kind is bool else f"--{word}"
    return _keyword(name, None, kind | None, Option(flags, help=field.description))


def _kinds(annotation: Any) -> set[Any]:
    """All types within an annotation such as `Annotated[float, ...] | None`."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


def methods_of(text: str | None) -> list[dict[str, Any]] | None:
    """The methods of a list with commas between, or of "all"; None without a text."""
    from peftlab.api.request import parse_methods

    return None if text is None else parse_methods(text)


def rates_of(text: str | None) -> list[float]:
    """The numbers of a list with commas between; empty without a text."""
    try:
        return [float(word) for word in split(text, "--lr") or []]
    except ValueError:
        raise RequestError(
            f"--lr takes a number, or several with commas between, such as 1e-4,4e-4; got {text!r}"
        ) from None


def seeds_of(text: str | None) -> list[int] | None:
    """The whole numbers of a list with commas between; None without a text."""
    seeds = split(text, "--seeds")
    if seeds is None:
        return None
    wrong = [word for word in seeds if not word.isdecimal() or len(word) > LONGEST_SEED]
    if wrong:
        raise RequestError(
            f"--seeds takes whole numbers below 2**32 with commas between, got {wrong[0]!r}"
        )
    return [int(word) for word in seeds]


def columns_of(text: str | None) -> list[str] | None:
    """The text columns that an option names; None without a text."""
    return split(text, "--text", columns)


def split(
    text: str | None, option: str, read: Callable[[str], list[str]] = words
) -> list[str] | None:
    """The names in an option's list, as `read` finds them; RequestError if there is none."""
    if text is None:
        return None
    names = read(text)
    if not names:
        raise RequestError(f"{option} must name at least one, got {text!r}")
    return names
