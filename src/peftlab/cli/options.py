"""The options that compare and train share, and the request that they make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.errors import RequestError

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
Data = Annotated[Path | None, Option(help="Your own data: CSV, TSV, JSONL or Parquet.")]
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
Rate = Annotated[float | None, Option(help="Learning rate; default: the method's.")]
HeadRate = Annotated[float | None, Option(help="The head's; default: the method's.")]
Epochs = Annotated[
    int | None,
    Option(help="Passes over train; default: what makes 300 updates, 3 to 30 (2 in the demo)."),
]
BatchSize = Annotated[int | None, Option(help="Examples a step; default 32.")]
Batches = Annotated[
    Text, Option(help="random, or grouped: like lengths together, quicker, and labels correlate.")
]
MaxLength = Annotated[int | None, Option(help="Longest input in tokens; default 128, RTE 256.")]
WeightDecay = Annotated[float | None, Option(help="AdamW's, on matrices; default 0.")]
Warmup = Annotated[float | None, Option(help="Share of the steps; default 0.06.")]
Clip = Annotated[float | None, Option(help="Largest gradient norm; default 1.")]
ClassWeights = Annotated[
    Text, Option(help="none, or balanced: a rare class counts as much as a common one.")
]
Precision = Annotated[Text, Option(help="auto, fp32, bf16 or nf4.")]
Device = Annotated[Text, Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, Option(help="CPU threads; default: torch's choice.")]
Fast = Annotated[
    bool | None,
    Option("--fast/--no-fast", help="Fast kernels, or the plain path with the same results."),
]
Parts = Annotated[
    bool | None,
    Option("--parts/--no-parts", help="On a CPU, wide batches in parts, or all of them whole."),
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


def given(**settings: Any) -> dict[str, Any]:
    """Those settings that were given."""
    return {key: value for key, value in settings.items() if value is not None}


TRAINING = (
    *("lr", "head_lr", "epochs", "batch_size", "batches", "max_length", "weight_decay", "warmup"),
    *("clip", "class_weights", "precision", "device", "threads", "parts", "fast"),
)


def training_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those of training that were given."""
    return given(**{name: arguments[name] for name in TRAINING})


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
