"""peftlab plan: what a comparison will cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from peftlab.cli import options
from peftlab.cli.options import Option

if TYPE_CHECKING:
    from peftlab.api.plan import Plan, Row

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "rest")
# narrow words: a terminal has 80 columns
HEAD = ("trained", "disk", "base", "adapt", "grads", "optim", "saved", "rest", "peak")


@options.with_request
@options.with_grid
def plan(
    suite: options.SuiteFile = None,
    *,
    grid: options.Grid,
    out: Annotated[
        Path | None, Option(help="compare's: what has run there is not counted; default as there.")
    ] = None,
    measure: Annotated[
        bool, Option("--measure", help="Run a few steps of each row, and predict times by those.")
    ] = False,
    asked: options.Asked,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what a comparison will cost before it trains.

    Trained parameters, memory by part, disk and time. Takes what compare takes; trials are counted
    in. Memory is counted on the model's structure; time is taken from the nearest records of this
    machine, or from a few steps with --measure.
    """
    from rich.console import Console
    from rich.markup import escape

    request = asked.request | grid
    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request and the data") as status:
        from peftlab.api.compare import planned
        from peftlab.api.plan import plan_of
        from peftlab.api.progress import describe_tasks

        ready = planned(suite, request, asked.sets, out)
        for line in describe_tasks(ready.grid):
            console.print(line, markup=False, highlight=False)

        def tell(what: str) -> None:
            status.update(escape(what))
            if measure and not console.is_terminal:  # where no status is drawn: a minute a row
                console.print(what, markup=False, highlight=False)

        found = plan_of(ready, measure, tell)
    if json_:
        print(json.dumps(found.document(), indent=2))
    else:
        _show(found, measure)


def _show(found: Plan, measured: bool) -> None:
    _show_tables(found)
    print(_sum(found, measured))
    print("memory in MiB, on top of what Python and the libraries take")
    if found.free_mib is not None:
        print(f"{found.free_mib:,.0f} MiB are free for it")
    trials = " and trials" if any(row.trials for row in found.rows) else ""
    print(f"min: minutes of a cell; all: of its seeds{trials} together, if due")
    free = math.inf if found.free_mib is None else found.free_mib
    above = [row for row in found.rows if row.cost.memory and row.cost.memory.peak_mib > free]
    for words, fits in (("would not", False), ("may not", True)):
        rows = [f"{row.cost.label} on {row.cost.task}" for row in above if row.fits is fits]
        if rows:
            print(f"{words} fit into memory: {', '.join(rows)}")
    for source in dict.fromkeys(row.time_from for row in found.rows if row.time_from):
        print(f"time from: {source}")
    for row in found.rows:
        if row.cost.why:
            print(f"{row.cost.label} on {row.cost.task}: its memory is unknown ({row.cost.why})")


def _show_tables(found: Plan) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for task in dict.fromkeys(row.cost.task for row in found.rows):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("method", overflow="fold", min_width=10)
        for name in (*HEAD, "min", "all"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in found.rows:
            if row.cost.task == task:
                table.add_row(escape(row.cost.label), *_cells(row))
        Console().print(f"task {task}", markup=False, highlight=False)
        Console().print(table)


def _sum(found: Plan, measured: bool) -> str:
    """All of it in one line."""
    from peftlab.naming import counted, duration

    time = "time unknown: too few steps to tell" if measured else "time unknown: use --measure"
    if found.all_s is not None:
        time = f"about {duration(found.all_s)}"
    if found.done == found.cells:
        time = "nothing left to train"
    trials = sum(row.trials for row in found.rows)
    before = f" after about {trials} trainings of trials" if trials else ""
    done = f"; {found.done} of them done already, in {found.out}" if found.done else ""
    return f"{counted(found.cells, 'cell')} on {found.model}{before}, {time}{done}"


def _cells(row: Row) -> tuple[str, ...]:
    from peftlab.report.text import count, minutes, number

    cost = row.cost
    parts = cost.memory.by_part if cost.memory else {}
    return (
        *(count(cost.n_trainable.total), _mib(cost.adapter_mib)),
        *(_mib(parts.get(name)) for name in PARTS),
        _mib(cost.memory.peak_mib if cost.memory else None),
        *(number(minutes(seconds)) for seconds in (row.cell_s, row.all_s)),
    )


def _mib(value: float | None) -> str:
    """MiB as narrow as a table of many columns wants them: a decimal below 10 alone."""
    from peftlab.report.text import MISSING

    return MISSING if value is None else f"{value:,.{1 if value < 10 else 0}f}"
