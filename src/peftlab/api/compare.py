"""compare: run every cell of a suite that is not done yet, and give back all its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from peftlab.api.progress import observer
from peftlab.api.request import data_of
from peftlab.bench.cell import Cell
from peftlab.bench.foresee import foresee
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.retention import Keep
from peftlab.bench.run import run_grid
from peftlab.bench.suite import merged_request
from peftlab.bench.times import records_of
from peftlab.errors import expect_path
from peftlab.methods import Method, is_built_in, register
from peftlab.naming import slug
from peftlab.records.record import Record
from peftlab.settings import Training
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
        training: fields of `peftlab.settings.Training`, such as epochs or lr.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
    """
    request = asked_for(
        suite=suite,
        model=model,
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        data=data_of(data, {"text": text, "label": label, "dev": dev, "kind": kind}),
        data_dir=data_dir,
        metric=metric,
        judge_on=judge_on,
        out=out,
        training=Training.of(training),
    )
    return run(planned(request.suite, request.asked, out=out), Console(stderr=True), keep=keep)


class Request(NamedTuple):
    """A request as Python's arguments give it: a suite file, and what wins over it."""

    suite: Path | None
    asked: dict[str, Any]


def asked_for(*, suite: Any, out: Any, **given: Any) -> Request:
    """The request of `compare`'s arguments; methods of classes that are new are known then.

    Raises:
        RequestError: if a path is none.
    """
    paths = {"suite": suite, "data_dir": given["data_dir"], "out": out, "model": given["model"]}
    for name, path in paths.items():
        if path is not None:
            expect_path(name, path)
    if suite is None and given["seeds"] is None:
        given["seeds"] = (0,)
    for name in ("tasks", "methods", "seeds"):
        given[name] = _listed(given[name])
    given["model"] = None if given["model"] is None else str(given["model"])
    given["data_dir"] = None if given["data_dir"] is None else Path(given["data_dir"])
    for method in given["methods"] or []:
        if isinstance(method, Method) and not is_built_in(type(method)):
            register(type(method))
    return Request(None if suite is None else Path(suite), given)


def _listed(given: Any) -> list[Any] | None:
    """A list of what was given; one thing alone is a list of one."""
    if given is None:
        return None
    alone = isinstance(given, str | bytes | dict) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


class Planned(NamedTuple):
    """A request that was found right: its cells, and the folder that they will run into."""

    grid: Grid
    out: Path


def planned(
    file: Path | None,
    request: dict[str, Any],
    sets: Iterable[str] = (),
    out: str | Path | None = None,
) -> Planned:
    """Check a request, that of a suite file with what wins over it, and resolve it to cells.

    Raises:
        RequestError: if anything in it is wrong.
    """
    grid = resolve(merged_request(file, request, sets))
    return Planned(grid, Path(out) if out is not None else Path("runs") / slug(grid.suite.name))


def run(
    asked: Planned,
    console: Console,
    quiet: bool = False,
    rerun: bool = False,
    keep: Keep = "all",
) -> list[Record]:
    """Run what is missing of a plan, showing progress; every cell's record."""
    return run_grid(
        asked.grid,
        asked.out,
        observer(console, quiet),
        rerun,
        keep,
        foresee=foreseeing(asked.grid, asked.out, console),
    )


def foreseeing(grid: Grid, out: Path, console: Console) -> Callable[[Sequence[Cell]], str]:
    """What says, of cells of the grid that are to run, what they cost; shown while it counts."""

    def say(due: Sequence[Cell]) -> str:
        with console.status("counting what each method needs") as status:
            records = records_of(known_folders(out))
            return foresee(
                grid, due, records, lambda what: status.update(f"counting what {what} needs")
            )

    return say


def known_folders(out: Path) -> list[Path]:
    """Where records may lie that tell how long a cell takes: `out`, and the folders of runs/."""
    found = {path.resolve(): path for path in (out, *sorted(Path("runs").glob("*")))}
    return list(found.values())
