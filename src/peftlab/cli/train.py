"""peftlab train: one cell, and its adapter as a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli import options
from peftlab.cli.options import Option, Text
from peftlab.errors import RequestError, check_seed


@options.with_request
def train(
    out: Annotated[Path, Option(help="Folder for the adapter, its record and its curve.")],
    task: Annotated[Text, Option(help="A name; see `peftlab tasks`.")] = None,
    method: Annotated[str, Option(help="A name, or lora[rank=16].")] = "lora",
    seed: Annotated[int, Option(help="Seed of head, adapter, order and dropout.")] = 0,
    *,
    request: options.OptionRequest,
    quiet: options.Quiet = False,
) -> None:
    """Train one method on one task; write its adapter to a folder.

    The folder serves `peftlab predict` and `peftlab merge`, `peftlab.load`, and HF PEFT where it
    has the method. A training that is stopped is kept beside it, and the same command goes on.
    """
    from rich.console import Console

    if rates := request.fields["rates"]:
        raise RequestError(
            f"train takes one learning rate, got {len(rates)}; `peftlab compare` takes several"
        )
    if request.fields["data"] is None and task is None:
        raise RequestError(
            "train needs data: give your own with --data, --text and --label, or a --task"
        )
    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request, the model and the data"):
        from peftlab.api.request import resolve_request
        from peftlab.api.train import resumable_folder, train_folder

        fields = request.fields | {
            "name": "train",
            "tasks": options.split(task, "--task"),
            "methods": options.methods_of(method),
            "seeds": [check_seed(seed)],
        }
        grid = resolve_request(None, fields, request.sets).grid
    try:
        record = train_folder(grid, out, console, quiet)
    except KeyboardInterrupt:
        print(f"stopped; {_kept_note(resumable_folder(grid, out))}", file=sys.stderr)
        raise
    if record.failure is not None:
        print(f"failed: {record.failure.message}", file=sys.stderr)
        print(_kept_note(resumable_folder(grid, out)), file=sys.stderr)
        raise typer.Exit(1)
    assert record.score is not None
    print(", ".join(f"{metric} {value:.4f}" for metric, value in record.score.items()))
    print(f"adapter: {out.resolve()}")


def _kept_note(folder: Path | None) -> str:
    if folder is None:
        return "nothing is kept"
    return f"what it has come to is kept in {folder}, and the same command goes on from there"
