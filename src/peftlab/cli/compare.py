"""peftlab compare: the main job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.errors import RequestError

if TYPE_CHECKING:
    from peftlab.bench.record import Record

Text = str | None
Option = typer.Option


def compare(
    suite: Annotated[
        Path | None, typer.Argument(help="A suite file (TOML); options win over it.")
    ] = None,
    model: Annotated[Text, Option(help="minilm, a folder, or a hub name.")] = None,
    tasks: Annotated[Text, Option(help="Names with commas between, or all.")] = None,
    methods: Annotated[
        Text, Option(help="Names with commas between, or all; lora[rank=16,lr=1e-3] is a variant.")
    ] = None,
    seeds: Annotated[Text, Option(help="Numbers with commas between.")] = None,
    data_dir: Annotated[
        Path | None, Option(envvar="PEFTLAB_DATA_DIR", help="The folder with GLUE's own files.")
    ] = None,
    data: Annotated[Path | None, Option(help="Your own data: CSV, TSV, JSONL or Parquet.")] = None,
    text: Annotated[Text, Option(help="Its text column, or two with a comma between.")] = None,
    label: Annotated[Text, Option(help="Its label column.")] = None,
    dev: Annotated[
        Path | None, Option(help="A file to evaluate on; without it a fifth is kept apart.")
    ] = None,
    kind: Annotated[Text, Option(help="auto, classes or regression.")] = None,
    out: Annotated[Path | None, Option(help="Output folder; default runs/SUITE.")] = None,
    set_: Annotated[
        list[str] | None,
        Option("--set", help="METHOD.FIELD=VALUE or training.FIELD=VALUE; may be repeated."),
    ] = None,
    lr: Annotated[float | None, Option(help="Learning rate; default: the method's.")] = None,
    head_lr: Annotated[float | None, Option(help="The head's; default: the method's.")] = None,
    epochs: Annotated[int | None, Option(help="Passes over the train split; default 3.")] = None,
    batch_size: Annotated[int | None, Option(help="Examples a step; default 32.")] = None,
    max_length: Annotated[
        int | None, Option(help="Longest input in tokens; default 128, RTE 256.")
    ] = None,
    weight_decay: Annotated[float | None, Option(help="AdamW's, on matrices; default 0.")] = None,
    warmup: Annotated[float | None, Option(help="Share of the steps; default 0.06.")] = None,
    clip: Annotated[float | None, Option(help="Largest gradient norm; default 1.")] = None,
    precision: Annotated[Text, Option(help="auto, fp32 or bf16.")] = None,
    device: Annotated[Text, Option(help="auto, cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, Option(help="CPU threads; default: torch's choice.")] = None,
    rerun: Annotated[bool, Option("--rerun", help="Run done cells again.")] = False,
    json_: Annotated[bool, Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="No progress.")] = False,
    debug: Annotated[bool, Option("--debug", help="Tracebacks.")] = False,
) -> None:
    """Train every method on every task with every seed, and compare them.

    Without arguments: the demo, on a bundled model and built-in synthetic tasks. Finished cells
    are never run again, so the same command goes on from where it stopped.
    """
    training = {
        "lr": lr,
        "head_lr": head_lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "max_length": max_length,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "clip": clip,
        "precision": precision,
        "device": device,
        "threads": threads,
    }
    request = {
        "model": model,
        "tasks": _tasks(tasks),
        "methods": _methods(methods),
        "seeds": _seeds(seeds),
        "data_dir": data_dir,
        "data": _data(data, text, label, dev, kind),
        "training": {key: value for key, value in training.items() if value is not None},
    }
    _run(suite, request, set_ or [], out, rerun=rerun, as_json=json_, quiet=quiet)


def _run(
    file: Path | None,
    request: dict[str, Any],
    sets: list[str],
    out: Path | None,
    *,
    rerun: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request, the model and the data"):
        from peftlab.bench.compare import default_out, run_grid
        from peftlab.bench.grid import resolve
        from peftlab.bench.progress import observer
        from peftlab.bench.suite import merged_request

        grid = resolve(merged_request(file, request, sets))
    folder = out if out is not None else default_out(grid)
    try:
        records = run_grid(grid, folder, observer(console, quiet), rerun)
    except KeyboardInterrupt:
        print(f"stopped; what is finished is kept in {folder}", file=sys.stderr)
        print("the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    with console.status("drawing the page"):
        from peftlab import report

        page = report.build(folder, grid.suite.name, records)
    _show(folder, page, grid.suite.name, records, as_json)
    _finish(records)


def _show(out: Path, page: Path, suite: str, records: list[Record], as_json: bool) -> None:
    from rich.console import Console

    from peftlab import report

    if as_json:
        document = {
            "suite": suite,
            "out": str(out),
            "page": str(page),
            "records": [record.model_dump(mode="json") for record in records],
        }
        print(json.dumps(document, indent=2))
    else:
        Console().print(report.render_terminal(report.table(records)))
        print(f"page: {page.resolve()}")


def _finish(records: list[Record]) -> None:
    failures = [record for record in records if record.failure is not None]
    if not failures:
        return
    print(f"{len(failures)} of {len(records)} cells failed:", file=sys.stderr)
    for record in failures:
        assert record.failure is not None
        print(f"  {record.cell}: {record.failure.message}", file=sys.stderr)
    print("the same command tries them again", file=sys.stderr)
    raise typer.Exit(1)


def _tasks(text: str | None) -> list[str] | None:
    from peftlab.bench.suite import every_task

    return every_task() if text == "all" else _split(text, "--tasks")


def _methods(text: str | None) -> list[dict[str, Any]] | None:
    from peftlab.bench.suite import parse_methods

    return None if text is None else parse_methods(text)


def _seeds(text: str | None) -> list[int] | None:
    words = _split(text, "--seeds")
    if words is None:
        return None
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise RequestError(f"--seeds takes whole numbers with commas between, got {wrong[0]!r}")
    return [int(word) for word in words]


def _data(
    path: Path | None, text: str | None, label: str | None, dev: Path | None, kind: str | None
) -> dict[str, Any] | None:
    if path is None:
        given = {"--text": text, "--label": label, "--dev": dev, "--kind": kind}
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise RequestError(
                f"{alone[0]} describes your own data; give the file with --data FILE"
            )
        return None
    columns = _split(text, "--text")
    if columns is None or label is None:
        raise RequestError("--data FILE needs --text COLUMN[,COLUMN] and --label COLUMN")
    found = {"path": path, "text": columns, "label": label, "dev": dev, "kind": kind}
    return {key: value for key, value in found.items() if value is not None}


def _split(text: str | None, option: str) -> list[str] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise RequestError(f"{option} must name at least one, got {text!r}")
    return words
