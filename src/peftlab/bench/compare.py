"""compare: run every cell of a suite that is not done yet, and give back all its records."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from peftlab.bench.baselines import with_baselines
from peftlab.bench.cell import Cell
from peftlab.bench.data import data_of
from peftlab.bench.execute import Worker, how_it_died, order
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.keep import Keep, drop_beaten, room_mib
from peftlab.bench.progress import Observer, observer
from peftlab.bench.record import Record
from peftlab.bench.resume import done_cells, write_judged
from peftlab.bench.runner import failed
from peftlab.bench.store import Store, relabelled
from peftlab.bench.suite import merged_request, slug
from peftlab.errors import expect_path, unknown
from peftlab.methods import Method, is_built_in, register
from peftlab.tasks import Task


def compare(
    suite: str | Path | None = None,
    *,
    model: str | Path | None = None,
    tasks: str | Task | Sequence[str | Task] | None = None,
    methods: str | Method | Sequence[str | dict[str, Any] | Method] | None = None,
    seeds: int | Sequence[int] | None = None,
    data: str | Path | dict[str, Any] | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    dev: str | Path | None = None,
    kind: str | None = None,
    data_dir: str | Path | None = None,
    metric: str | None = None,
    judge_on: Literal["dev", "train"] | None = None,
    out: str | Path | None = None,
    keep: Keep = "all",
    **training: Any,
) -> list[Record]:
    """Train and measure every method on every task with every seed; done cells are not run again.

    Args:
        suite: a TOML file that says the same as the other arguments, which win over it.
        model: `minilm`, a folder, or a hub name.
        tasks: names, or `Task` values.
        methods: names such as "lora" or "lora[rank=16]", tables, or `Method` values, those of a
            class of your own too.
        seeds: one run of every cell a seed; (0,) unless a suite file says otherwise.
        data: your own file instead of tasks, CSV, TSV, JSONL or Parquet; or a table with `path`
            and the four that follow.
        text: its text column, or two.
        label: its label column.
        dev: a file to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main one, of all tasks, instead of each task's own.
        judge_on: dev, or train: a fifth of train, so that settings are chosen without dev.
        out: the folder for records, curves and predictions; `runs/SUITE` if not given.
        keep: which cells' adapters to keep: all, the best seed's of each row, or none. A method
            that changes the whole model keeps its best seed's at most.
        training: fields of `peftlab.bench.suite.Training`, such as epochs or lr.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
    """
    for name, given in {"suite": suite, "data_dir": data_dir, "out": out, "model": model}.items():
        if given is not None:
            expect_path(name, given)
    if suite is None and seeds is None:
        seeds = (0,)
    request: dict[str, Any] = {
        "model": None if model is None else str(model),
        "tasks": _listed(tasks),
        "methods": _listed(methods),
        "seeds": _listed(seeds),
        "data": data_of(data, {"text": text, "label": label, "dev": dev, "kind": kind}),
        "data_dir": None if data_dir is None else Path(data_dir),
        "metric": metric,
        "judge_on": judge_on,
        "training": training,
    }
    for method in request["methods"] or []:
        if isinstance(method, Method) and not is_built_in(type(method)):
            register(type(method))
    grid = resolve(merged_request(None if suite is None else Path(suite), request))
    folder = Path(out) if out is not None else default_out(grid)
    return run_grid(grid, folder, observer(Console(stderr=True)), keep=keep)


def _listed(given: Any) -> list[Any] | None:
    """A list of what was given; one thing alone is a list of one."""
    if given is None:
        return None
    alone = isinstance(given, str | bytes | dict) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


def default_out(grid: Grid) -> Path:
    """`runs/SUITE`."""
    return Path("runs") / slug(grid.suite.name)


def run_grid(
    grid: Grid,
    out: Path,
    progress: Observer,
    rerun: bool = False,
    keep: Keep = "all",
    shown: Path | None = None,
) -> list[Record]:
    """Run the grid's missing cells into `out`; returns every cell's record in the grid's order.

    `shown` is the folder that the progress names, if not `out`.

    Raises:
        RequestError: if `out` can't take them, or `keep` is unknown.
    """
    if keep not in get_args(Keep):
        raise unknown("keep", str(keep), get_args(Keep))
    store = Store(out)
    done = {} if rerun else done_cells(store, grid)
    missing = [cell for cell in grid.cells if cell.name not in done]
    store.prepare(room_mib(missing, keep))
    write_suite(store, grid)
    write_judged(store, done.values())
    with progress:
        progress.suite(grid, len(done), str(shown or out))
        if missing:
            done |= _run_missing(missing, grid, store, progress, done, keep)
    return [relabelled(done[cell.name], cell.method.label) for cell in grid.cells]


def write_suite(store: Store, grid: Grid) -> None:
    """suite.json: what was asked, and the cells it became, which the report follows."""
    asked = grid.suite.model_dump(mode="json", exclude={"tasks"})
    for table in (asked, asked["data"] or {}):  # so that `export` finds them from anywhere
        for key in ("data_dir", "path", "dev"):
            if table.get(key):
                table[key] = str(Path(table[key]).expanduser().resolve())
    cells = [{"cell": cell.name, "label": cell.method.label} for cell in grid.cells]
    store.write_suite(asked | {"tasks": list(grid.tasks), "cells": cells})


def _run_missing(
    missing: list[Cell],
    grid: Grid,
    store: Store,
    progress: Observer,
    done: dict[str, Record],
    keep: Keep,
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    with Worker() as worker, tempfile.TemporaryDirectory(prefix="peftlab-") as scratch:
        files = {name: Path(scratch) / f"{i}.json" for i, name in enumerate(grid.tasks)}
        for name, task in grid.tasks.items():
            task.write(files[name])
        for cell in with_baselines(missing, grid.tasks, progress):  # while the worker starts
            progress.cell(cell)
            asked = order(cell, files[cell.task.name], store.out, keep=keep != "none")
            records[cell.name] = _run_one(worker, cell, asked, store, progress)
            drop_beaten(store, [*done.values(), *records.values()], keep)
            progress.end(records[cell.name])
    return records


def _run_one(
    worker: Worker, cell: Cell, asked: dict[str, Any], store: Store, progress: Observer
) -> Record:
    code = worker.run(
        asked,
        lambda event: progress.row(cell, event["row"], event["total"]),
    )
    record = store.read(cell.name) if code == 0 else None
    if record is None:
        record = failed(cell, "ProcessDied", how_it_died(code, worker.last_words()), None)
        store.write_record(record)
    return record
