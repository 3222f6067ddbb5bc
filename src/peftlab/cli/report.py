"""peftlab report: table and page from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftlab.errors import RequestError


def report(
    folder: Annotated[Path, typer.Argument(help="The output folder of a comparison.")],
    svg: Annotated[
        bool, typer.Option("--svg/--no-svg", help="Write the figures as SVG too.")
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks.")] = False,
) -> None:
    """Rebuild the table and the page of a comparison from its records."""
    from rich.console import Console

    from peftlab import report as room
    from peftlab.bench.store import Store

    store = Store(folder)
    records = store.records()
    try:
        page = room.build(folder, records[0].suite, records, svg=svg)
    except OSError as error:
        raise RequestError(f"{folder} can't be written: {error.strerror}") from error
    Console().print(room.render_terminal(room.table(records)))
    print(f"page: {page.resolve()}")
