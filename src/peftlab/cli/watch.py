"""peftlab watch: follow a running comparison from another terminal or machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def watch(
    folder: Annotated[Path, typer.Argument(help="The output folder of a comparison.")],
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
) -> None:
    """Follow a comparison from another terminal or machine.

    What runs and how far it is, scores so far, time left, memory. Reads the folder alone, so
    another machine may be writing it. Ends when nothing runs and every cell of the latest
    comparison has ended, or with Ctrl-C, which stops nothing but the watching.
    """
    from rich.console import Console
    from rich.live import Live

    from peftlab.report.watching import view

    state, console = view(folder), Console()
    if once or not console.is_terminal:
        console.print(state.shown)
        return
    with Live(state.shown, console=console, auto_refresh=False) as live:
        while not state.finished:
            time.sleep(every)
            state = view(folder)
            live.update(state.shown, refresh=True)
