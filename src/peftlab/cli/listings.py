"""peftlab methods, tasks, models, doctor: what there is, what it needs, and whether it is here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.options import DataDir


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this one's settings.")] = None,
) -> None:
    """List the methods.

    What each trains, how much of RoBERTa-base, and its paper; of one method its settings.
    """
    from rich.console import Console

    with Console(stderr=True).status("counting what each method trains"):
        from peftlab.api import listings

        head = ("setting", "default") if name else listings.METHODS_HEAD
        rows = listings.method_settings(name) if name else listings.methods()
    print_rows(head, rows)
    if name is None:
        print("adapter, head: parameters trained on RoBERTa-base, two labels, at default settings")
        print("`peftlab methods NAME` shows a method's settings")


def tasks(
    data_dir: DataDir = None,
) -> None:
    """List the tasks.

    What each asks, its metrics, and whether its data is here.
    """
    from rich.console import Console

    with Console(stderr=True).status("looking for their data"):
        from peftlab.api import listings

        rows = listings.tasks(data_dir)
    print_rows(("task", "asks", "metrics", "here"), rows)
    print("synthetic tasks are built in; the others, GLUE's, need --data-dir FOLDER or the hub")


def models() -> None:
    """List what can be given as a model.

    What each needs, and whether that is here.
    """
    from rich.console import Console

    with Console(stderr=True).status("looking for what they need"):
        from peftlab.api import listings

        rows, architectures = listings.models(), listings.architectures()
    print_rows(("model", "needs", "here"), rows)
    print(f"words for layers are known in: {architectures}; elsewhere by common names")


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(value) for value in row))
    Console().print(table)


def doctor(
    out: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
) -> None:
    """Check what this machine can do.

    Python, torch, threads, bf16 and why, the model, the hub and the disk.
    """
    from rich.console import Console

    with Console(stderr=True).status("looking at this machine"):
        from peftlab.api import listings

        rows = listings.machine(out)
    print_rows(("what", "found", "meaning"), rows)
