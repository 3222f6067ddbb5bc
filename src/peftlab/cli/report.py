"""peftlab report: table and page from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.options import split
from peftlab.errors import RequestError


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
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks.")] = False,
) -> None:
    """Rebuild the table and the page of a folder from its records.

    All of them, of every comparison in the folder, unless less is asked for.
    """
    from rich.console import Console

    from peftlab import report as room
    from peftlab.bench.store import Store, chosen

    store = Store(folder)
    wanted = split(tasks, "--tasks"), split(methods, "--methods")
    records = chosen(store.records(last), *wanted)
    try:
        page = room.build(folder, store.title(records), records, svg=svg)
    except OSError as error:
        raise RequestError(f"{folder} can't be written: {error.strerror}") from error
    Console().print(room.render_terminal(room.table(records)))
    print(f"page: {page.resolve()}")
