"""reproduce: run a published recipe, and lay what comes out beside what was published."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from peftlab.api.compare import Planned, foreseeing, run
from peftlab.api.progress import callers_console
from peftlab.bench.grid import resolve
from peftlab.bench.recipe import Recipe, recipe
from peftlab.bench.recipe import recipes as recipes
from peftlab.bench.resume import done_cells
from peftlab.errors import expect_path
from peftlab.records.lock import locked
from peftlab.records.published import Beside, beside
from peftlab.records.record import Record
from peftlab.records.store import Store


class Reproduction(NamedTuple):
    """What came out, and what was published.

    Attributes:
        recipe: what was asked for, with its source, what it leaves open and where it errs.
        model: the base that ours was trained on.
        out: the folder of the records.
        records: of every cell.
        rows: every published score beside ours.
    """

    recipe: Recipe
    model: str
    out: Path
    records: list[Record]
    rows: list[Beside]


def reproduce(
    name: str,
    *,
    model: str | Path | None = None,
    data_dir: str | Path | None = None,
    scale: str = "full",
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **training: Any,
) -> Reproduction:
    """Run a published recipe; done cells are not run again.

    Args:
        name: of a recipe, see `peftlab reproduce`.
        model: another base than the recipe's: `minilm`, `mpnet`, a folder, or a hub name.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        scale: full, as published; or small: fewer tasks, seeds and epochs, to try it.
        tasks: those of the recipe's that are wanted; all if not given.
        methods: likewise, by the rows of the published table.
        seeds: instead of the recipe's.
        out: the folder for records and predictions; `runs/NAME` (`runs/NAME-small`) if not given.
        quiet: no progress.
        training: fields of `peftlab.settings.Training` that win over the recipe's, such as device.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
    """
    for what, path in (("model", model), ("data_dir", data_dir), ("out", out)):
        if path is not None:
            expect_path(what, path)
    part = {"tasks": tasks, "methods": methods, "seeds": seeds}
    ready = ready_to_reproduce(name, model, data_dir, scale, out, training, part)
    return run_recipe(ready, callers_console(quiet), quiet)


class Ready(NamedTuple):
    """A recipe that was found right: its grids, and the folder that they will run into."""

    recipe: Recipe
    parts: list[Planned]


def ready_to_reproduce(
    name: str,
    model: str | Path | None,
    data_dir: str | Path | None,
    scale: str,
    out: str | Path | None,
    training: dict[str, Any],
    part: dict[str, Any],
) -> Ready:
    """Check a request, and resolve every suite of the recipe to cells.

    It is as `reproduce` has it; `part` holds tasks, methods and seeds.

    Raises:
        RequestError: if anything in it is wrong.
    """
    found = recipe(name)
    suites = found.suites(
        scale,
        model=None if model is None else str(model),
        data_dir=None if data_dir is None else Path(data_dir),
        training=training,
        **part,
    )
    folder = Path(out) if out is not None else Path("runs") / _folder_name(found, scale)
    return Ready(found, [Planned(resolve(suite), folder) for suite in suites])


def _folder_name(found: Recipe, scale: str) -> str:
    return found.name if scale == "full" else f"{found.name}-{scale}"


def run_recipe(ready: Ready, console: Console, quiet: bool = False) -> Reproduction:
    """Run what is missing, part by part, showing progress.

    Raises:
        RequestError: if a part would not fit into memory; nothing was trained then.
    """
    records: list[Record] = []
    grid, out = ready.parts[0]
    with Store(out).prepared():
        for part in ready.parts:
            done = done_cells(Store(out), part.grid.cells)
            if due := [cell for cell in part.grid.cells if cell.name not in done]:
                foreseeing(part.grid, out, console)(due)
    with locked(out), ExitStack() as command:
        for part in ready.parts:
            records += run(part, console, quiet, keep="none", command=command)
    rows = beside(ready.recipe.published, records, [out])
    return Reproduction(ready.recipe, grid.context.source.name, out, records, rows)
