"""The options that compare and train share, and the request that they make."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from peftlab.errors import RequestError
from peftlab.settings import Training

Option = typer.Option
Text = str | None


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    """Before the command begins, so that its request finds the methods."""
    if files:
        from peftlab.api.request import load_plugin

        for file in files:
            load_plugin(file)
    return files


Model = Annotated[Text, Option(help="minilm, a folder, or a hub name.")]
DataDir = Annotated[
    Path | None, Option(envvar="PEFTLAB_DATA_DIR", help="The folder with GLUE's own files.")
]
Data = Annotated[
    Path | None,
    Option(help="Your own data: CSV, TSV, JSONL or Parquet; or hub:OWNER/NAME."),
]
TextColumns = Annotated[Text, Option(help="Its text column, or two with a comma between.")]
Label = Annotated[Text, Option(help="Its label column.")]
Dev = Annotated[
    Path | None, Option(help="A file to evaluate on; without it a fifth is kept apart.")
]
Kind = Annotated[Text, Option(help="auto, classes or regression.")]
Metric = Annotated[
    Text,
    Option(
        help="The main metric: accuracy, f1, macro_f1 or matthews; "
        "pearson, spearman, rmse or mae for a regression. Default: the task's."
    ),
]
JudgeOn = Annotated[
    Text, Option(help="dev, or train: a fifth of train, to choose settings without dev.")
]
Sets = Annotated[
    list[str] | None,
    Option("--set", help="METHOD.FIELD=VALUE or training.FIELD=VALUE; may be repeated."),
]
Device = Annotated[Text, Option(help="auto, cpu, cuda or mps.")]
Fast = Annotated[
    bool | None,
    Option("--fast/--no-fast", help="Fast kernels, or the plain path with the same results."),
]
Plugins = Annotated[
    list[Path] | None,
    Option(
        "--plugin",
        callback=_load_plugins,
        help="A Python file that registers methods of your own; may be repeated.",
    ),
]
Quiet = Annotated[bool, Option("--quiet", help="No progress.")]
Debug = Annotated[bool, Option("--debug", help="Tracebacks.")]


LONGEST_SEED = 10  # digits


def with_training(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for every setting of a training, in the place of its `training`."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        asked = {name: arguments.pop(name) for name in Training.model_fields}
        given = {name: value for name, value in asked.items() if value is not None}
        command(**arguments, training=Training.of(given))

    own = inspect.signature(command, eval_str=True).parameters.values()
    options = [_option(name, field) for name, field in Training.model_fields.items()]
    parameters = [
        one for given in own for one in (options if given.name == "training" else [given])
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a setting: its help is the field's, and what it allows is checked there."""
    word = name.replace("_", "-")
    kinds = _kinds(field.annotation)
    kind: Any = next((one for one in (bool, int, float) if one in kinds), str)
    flags = f"--{word}/--no-{word}" if kind is bool else f"--{word}"
    annotation = Annotated[kind | None, Option(flags, help=field.description)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation names, such as those of `Annotated[float, ...] | None`."""
    inner = get_args(annotation)
    return {annotation}.union(*map(_kinds, inner)) if inner else {annotation}


def tasks_of(text: str | None) -> list[str] | None:
    """Names with commas between, or all."""
    from peftlab.api.request import every_task

    return every_task() if text == "all" else split(text, "--tasks")


def methods_of(text: str | None) -> list[dict[str, Any]] | None:
    """Methods with commas between, or all."""
    from peftlab.api.request import parse_methods

    return None if text is None else parse_methods(text)


def seeds_of(text: str | None) -> list[int] | None:
    """Whole numbers with commas between."""
    words = split(text, "--seeds")
    if words is None:
        return None
    wrong = [word for word in words if not word.isdecimal() or len(word) > LONGEST_SEED]
    if wrong:
        raise RequestError(
            f"--seeds takes whole numbers below 2**32 with commas between, got {wrong[0]!r}"
        )
    return [int(word) for word in words]


def data_of(
    path: Path | None, text: str | None, label: str | None, dev: Path | None, kind: str | None
) -> dict[str, Any] | None:
    """The user's own data."""
    from peftlab.api.request import data_request

    return data_request(path, split(text, "--text"), label, dev, kind)


def split(text: str | None, option: str) -> list[str] | None:
    """Words with commas between, but not those in brackets; RequestError if there is none."""
    if text is None:
        return None
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text) if word.strip()]
    if not words:
        raise RequestError(f"{option} must name at least one, got {text!r}")
    return words
