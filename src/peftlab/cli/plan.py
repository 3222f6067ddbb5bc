"""peftlab plan: the cost of a comparison before it trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from peftlab.cli import options
from peftlab.cli.options import Option

if TYPE_CHECKING:
    from peftlab.api.plan import Plan, PlannedRow

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "rest")
WIDEST = 1000  # columns of a table
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
    request: options.OptionRequest,
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

    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request and the data") as status:
        from peftlab.api.plan import plan_request
        from peftlab.api.progress import describe_tasks
        from peftlab.api.request import resolve_request
        from peftlab.report.text import printable

        resolved = resolve_request(suite, request.fields | grid, request.sets, out)
        for line in describe_tasks(resolved.grid):
            console.print(printable(line), markup=False, highlight=False)

        def show_stage(stage: str) -> None:
            status.update(escape(stage))
            if measure and not console.is_terminal:  # no status is drawn, and a row takes a minute
                console.print(stage, markup=False, highlight=False)

        result = plan_request(resolved, measure, show_stage)
    if json_:
        print(json.dumps(result.document(), indent=2))
    else:
        _show(result, measure)


def _show(plan: Plan, measured: bool) -> None:
    _show_tables(plan)
    print(_summary(plan, measured))
    print("memory in MiB, on top of what Python and the libraries take")
    if plan.free_mib is not None:
        print(f"{plan.free_mib:,.0f} MiB are free for it")
    trials = " and trials" if any(row.trials for row in plan.rows) else ""
    print(f"min: minutes of a cell; all: of its seeds{trials} together, if due")
    free = math.inf if plan.free_mib is None else plan.free_mib
    above = [row for row in plan.rows if row.cost.memory and row.cost.memory.peak_mib > free]
    for verdict, fits in (("would not", False), ("may not", True)):
        rows = [f"{row.cost.label} on {row.cost.task}" for row in above if row.fits is fits]
        if rows:
            print(f"{verdict} fit into memory: {', '.join(rows)}")
    for source in dict.fromkeys(row.time_from for row in plan.rows if row.time_from):
        print(f"time from: {source}")
    for row in plan.rows:
        if row.cost.why:
            print(f"{row.cost.label} on {row.cost.task}: its memory is unknown ({row.cost.why})")


def _show_tables(plan: Plan) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for task in dict.fromkeys(row.cost.task for row in plan.rows):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("method", overflow="fold", min_width=10)
        for name in (*HEAD, "min", "all"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in plan.rows:
            if row.cost.task == task:
                table.add_row(escape(row.cost.label), *_values(row))
        console = Console()
        console.print(f"task {task}", markup=False, highlight=False)
        # in a narrow terminal its lines are broken: cut numbers would be others
        unlimited = console.options.update(max_width=WIDEST)
        width = console.measure(table, options=unlimited).maximum
        Console(width=max(console.width, width)).print(table)


def _summary(plan: Plan, measured: bool) -> str:
    """The cells, their trials and their time in one line."""
    from peftlab.naming import counted, duration

    time = "time unknown: too few steps to tell" if measured else "time unknown: use --measure"
    if plan.all_s is not None:
        time = f"about {duration(plan.all_s)}"
    if plan.done == plan.cells:
        time = "nothing left to train"
    trials = sum(row.trials for row in plan.rows)
    after = f" after about {counted(trials, 'training')} of trials" if trials else ""
    done = f"; {plan.done} of them done already, in {plan.out}" if plan.done else ""
    return f"{counted(plan.cells, 'cell')} on {plan.model}{after}, {time}{done}"


def _values(row: PlannedRow) -> tuple[str, ...]:
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
    """MiB for a narrow column: one decimal below 10, none from there on."""
    from peftlab.report.text import MISSING

    return MISSING if value is None else f"{value:,.{1 if value < 10 else 0}f}"
