"""reproduce: run a published recipe, and compare its scores with the published ones."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from peftlab.api.compare import forecaster, run
from peftlab.api.progress import callers_console
from peftlab.api.request import ResolvedRequest
from peftlab.bench.grid import resolve
from peftlab.bench.recipe import Recipe
from peftlab.bench.recipe import recipe as find_recipe
from peftlab.bench.recipe import recipes as recipes
from peftlab.bench.resume import done_cells
from peftlab.errors import expanded, expect_path
from peftlab.records.lock import locked
from peftlab.records.published import PublishedComparison, compare_with_published
from peftlab.records.record import Record
from peftlab.records.store import Store


class Reproduction(NamedTuple):
    """The results of a recipe, beside the published ones.

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
    rows: list[PublishedComparison]


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
        name: of a recipe; `peftlab reproduce` lists them.
        model: another base than the recipe's: `minilm`, `mpnet`, a folder, or a hub name.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        scale: full, as published; or small: fewer tasks, seeds and epochs, to try it.
        tasks: which of the recipe's to run; all if not given.
        methods: likewise, by the labels of the published table's rows.
        seeds: to run instead of the recipe's.
        out: the folder for records and predictions; `runs/NAME` (`runs/NAME-small`) if not given.
        quiet: no progress.
        training: fields of `peftlab.settings.Training` that win over the recipe's, such as device.

    Raises:
        RequestError: if anything in the request is wrong; nothing was trained then.
    """
    for argument, path in (("model", model), ("data_dir", data_dir), ("out", out)):
        if path is not None:
            expect_path(argument, path)
    selection = {"tasks": tasks, "methods": methods, "seeds": seeds}
    resolved = resolve_recipe(name, model, data_dir, scale, out, training, selection)
    return run_recipe(resolved, callers_console(quiet), quiet)


class ResolvedRecipe(NamedTuple):
    """A recipe, and a checked request for each of its suites, all into one folder."""

    recipe: Recipe
    parts: list[ResolvedRequest]


def resolve_recipe(
    name: str,
    model: str | Path | None,
    data_dir: str | Path | None,
    scale: str,
    out: str | Path | None,
    training: dict[str, Any],
    selection: dict[str, Any],
) -> ResolvedRecipe:
    """Check a request, and resolve every suite of the recipe to cells.

    The arguments are those of `reproduce`; `selection` has its tasks, methods and seeds.

    Raises:
        RequestError: if anything in it is wrong.
    """
    recipe = find_recipe(name)
    suites = recipe.suites(
        scale,
        model=None if model is None else str(model),
        data_dir=None if data_dir is None else Path(data_dir),
        training=training,
        **selection,
    )
    folder = expanded(out) if out is not None else Path("runs") / _folder_name(recipe, scale)
    return ResolvedRecipe(recipe, [ResolvedRequest(resolve(suite), folder) for suite in suites])


def _folder_name(recipe: Recipe, scale: str) -> str:
    return recipe.name if scale == "full" else f"{recipe.name}-{scale}"


def run_recipe(resolved: ResolvedRecipe, console: Console, quiet: bool = False) -> Reproduction:
    """Run the cells that are not done, part by part, showing progress.

    Raises:
        RequestError: if a part would not fit into memory; nothing was trained then.
    """
    records: list[Record] = []
    grid, out = resolved.parts[0]
    with Store(out).prepared():
        for part in resolved.parts:
            done = done_cells(Store(out), part.grid.cells)
            if due := [cell for cell in part.grid.cells if cell.name not in done]:
                forecaster(part.grid, out, console)(due)  # refuses what does not fit into memory
    with locked(out), ExitStack() as command:
        for part in resolved.parts:
            records += run(part, console, quiet, keep="none", command=command)
    rows = compare_with_published(resolved.recipe.published, records, [out])
    return Reproduction(resolved.recipe, grid.context.source.name, out, records, rows)
