"""peftlab report: table and page from records alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.options import split


def report(
    folder: Annotated[Path, typer.Argument(help="The output folder of a comparison.")],
    tasks: Annotated[
        str | None, typer.Option(help="Show these tasks alone; names with commas between.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Show these rows alone; a method's name stands for all its.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Show only what the latest comparison asked for.")
    ] = False,
    svg: Annotated[
        bool, typer.Option("--svg/--no-svg", help="Write the figures as SVG too.")
    ] = True,
) -> None:
    """Rebuild the table and the page of a folder from its records.

    All of them, of every comparison in the folder, unless less is asked for.
    """
    from rich.console import Console

    from peftlab import report as room

    shown = room.rebuild(folder, split(tasks, "--tasks"), split(methods, "--methods"), last, svg)
    for cell in shown.unreadable:
        print(f"the record of {cell} can't be read and is left out", file=sys.stderr)
    Console().print(shown.terminal)
    print(f"page: {shown.page.resolve()}")
