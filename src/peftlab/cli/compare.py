"""peftlab compare: train every method on every task with every seed, and compare them."""

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
    request: options.OptionRequest,
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
        from peftlab.api.compare import run
        from peftlab.api.request import resolve_request

        resolved = resolve_request(suite, request.fields | grid, request.sets, out)
    with report_stop(resolved.out, rerun):
        policy: Any = keep  # `run` checks it
        records = run(
            resolved, console, quiet, rerun=rerun, keep=policy, repeat_speed=repeat_speed, page=True
        )
    with console.status("drawing the page"):
        from peftlab import report

        shown = report.conclude(resolved.out, records)
    if json_:
        warn_unreadable(shown.unreadable)
        _print_json(resolved.out, shown.page, resolved.grid.suite.name, records)
    else:
        show(shown, [shown.beside] if shown.beside else [])
    exit_on_failures(records)


def show(shown: Shown, notes: Sequence[str] = ()) -> None:
    """Print the table, the notes below it, and the path of the page."""
    from rich.console import Console

    from peftlab.report.text import printable

    warn_unreadable(shown.unreadable)
    Console().print(shown.terminal)
    for note in notes:
        print(printable(note))
    print(f"page: {shown.page.resolve()}")


def warn_unreadable(cells: Sequence[str]) -> None:
    """Name the cells that the table lacks, as their records can't be read."""
    from peftlab.records.store import unreadable_note

    for cell in cells:
        print(unreadable_note(cell), file=sys.stderr)


@contextmanager
def report_stop(folder: Path, rerun: bool = False) -> Iterator[None]:
    """On Ctrl-C or SIGTERM inside, say that what is done is kept in `folder`; raise it again."""
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


def exit_on_failures(records: list[Record]) -> None:
    """If cells failed, name them and exit with code 1."""
    from peftlab.report.text import printable

    failures = [record for record in records if record.failure is not None]
    if not failures:
        return
    print(f"{len(failures)} of {len(records)} cells failed:", file=sys.stderr)
    for record in failures:
        assert record.failure is not None
        print(printable(f"  {record.cell}: {record.failure.message}"), file=sys.stderr)
    print("the same command tries them again", file=sys.stderr)
    raise typer.Exit(1)
