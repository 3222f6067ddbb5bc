"""peftlab compare: the main job."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli import options
from peftlab.cli.options import Option

if TYPE_CHECKING:
    from peftlab.records.record import Record
    from peftlab.report import Shown


@options.with_request
@options.with_grid
def compare(
    suite: options.SuiteFile = None,
    *,
    grid: options.Grid,
    out: Annotated[
        Path | None, Option(help="Output folder; default runs/MODEL-TASK or the suite's name.")
    ] = None,
    keep: Annotated[
        str, Option(help="Adapters to keep: all, best (the best seed of each row) or none.")
    ] = "all",
    repeat_speed: Annotated[
        int, Option(min=0, help="Read speed and memory from so many rounds of short runs in turns.")
    ] = 0,
    asked: options.Asked,
    rerun: Annotated[
        bool, Option("--rerun", help="Run done cells again; trials and rounds of speed stay.")
    ] = False,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train every method on every task with every seed; compare them.

    Without arguments: the demo, on a bundled model and built-in synthetic tasks. Finished cells
    are never run again, and the same command goes on from where it stopped, within a training too.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request, the model and the data"):
        from peftlab.api.compare import planned, run

        ready = planned(suite, asked.request | grid, asked.sets, out)
    folder, name = ready.out, ready.grid.suite.name
    with stopped_keeps(folder, rerun):
        kept: Any = keep  # which `run` checks
        records = run(
            ready, console, quiet, rerun=rerun, keep=kept, repeat_speed=repeat_speed, page=True
        )
    with console.status("drawing the page"):
        from peftlab import report

        shown = report.conclude(folder, records)
    if json_:
        tell_unreadable(shown.unreadable)
        _print_json(folder, shown.page, name, records)
    else:
        show(shown, [shown.beside] if shown.beside else [])
    finish(records)


def show(shown: Shown, beside: Sequence[str] = ()) -> None:
    """The table, lines below it, and where the page is."""
    from rich.console import Console

    from peftlab.report.text import printable

    tell_unreadable(shown.unreadable)
    Console().print(shown.terminal)
    for line in beside:
        print(printable(line))
    print(f"page: {shown.page.resolve()}")


def tell_unreadable(cells: Sequence[str]) -> None:
    """Name the records that the table is without."""
    from peftlab.records.store import lost

    for cell in cells:
        print(lost(cell), file=sys.stderr)


@contextmanager
def stopped_keeps(folder: Path, rerun: bool = False) -> Iterator[None]:
    """Ctrl-C or SIGTERM inside ends the command with what is done in `folder`, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        if not folder.exists():
            print("stopped before anything was trained", file=sys.stderr)
            raise
        print(f"stopped; what is done so far is kept in {folder}", file=sys.stderr)
        command = "the command without --rerun" if rerun else "the same command"
        print(f"{command} goes on from there", file=sys.stderr)
        raise


def _print_json(out: Path, page: Path, suite: str, records: list[Record]) -> None:
    document = {
        "suite": suite,
        "out": str(out),
        "page": str(page),
        "records": [record.model_dump(mode="json") for record in records],
    }
    print(json.dumps(document, indent=2))


def finish(records: list[Record]) -> None:
    """Name the cells that failed, if any, and end with exit code 1."""
    failures = [record for record in records if record.failure is not None]
    if not failures:
        return
    print(f"{len(failures)} of {len(records)} cells failed:", file=sys.stderr)
    for record in failures:
        assert record.failure is not None
        print(f"  {record.cell}: {record.failure.message}", file=sys.stderr)
    print("the same command tries them again", file=sys.stderr)
    raise typer.Exit(1)
