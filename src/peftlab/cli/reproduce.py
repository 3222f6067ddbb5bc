"""peftlab reproduce: a published recipe, and its table beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftlab.cli.compare import exit_on_failures, report_stop
from peftlab.cli.listings import print_rows
from peftlab.cli.options import DataDir, Device, Json, Option, Quiet, Text, seeds_of, split
from peftlab.settings import Training

if TYPE_CHECKING:
    from peftlab.api.reproduce import Reproduction


def reproduce(
    name: Annotated[Text, typer.Argument(help="A recipe; without one, they are listed.")] = None,
    model: Annotated[
        Text, Option(help="Another base: minilm, mpnet, a folder, or a hub name.")
    ] = None,
    data_dir: DataDir = None,
    scale: Annotated[
        str, Option(help="full, as published; or small: fewer tasks, seeds and epochs.")
    ] = "full",
    tasks: Annotated[Text, Option(help="Only these of the recipe's, with commas between.")] = None,
    methods: Annotated[Text, Option(help="Only these of the recipe's rows.")] = None,
    seeds: Annotated[Text, Option(help="Instead of the recipe's, with commas between.")] = None,
    out: Annotated[
        Path | None, Option(help="Output folder; default runs/NAME, or runs/NAME-small.")
    ] = None,
    device: Device = None,
    threads: Annotated[
        int | None, Option(min=1, help=Training.model_fields["threads"].description)
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run what a paper or report ran, and show its table beside ours.

    It takes the published settings, and says where they contradict themselves and what had to be
    filled in. Finished cells are never run again.
    """
    from rich.console import Console

    if name is None:
        _list(json_)
        return
    settings = {"device": device, "threads": threads}
    training = {key: value for key, value in settings.items() if value is not None}
    selection = {
        "tasks": split(tasks, "--tasks"),
        "methods": split(methods, "--methods"),
        "seeds": seeds_of(seeds),
    }
    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the recipe, the model and the data"):
        from peftlab.api.reproduce import resolve_recipe, run_recipe

        resolved = resolve_recipe(name, model, data_dir, scale, out, training, selection)
    with report_stop(resolved.parts[0].out):
        reproduction = run_recipe(resolved, console, quiet)
    if json_:
        print(json.dumps(_document(reproduction), indent=2))
    else:
        _show(reproduction)
    exit_on_failures(reproduction.records)


def _list(as_json: bool) -> None:
    from peftlab.api.reproduce import recipes

    known = recipes().values()
    if as_json:
        print(json.dumps([recipe.model_dump(mode="json") for recipe in known], indent=2))
        return
    rows = [(recipe.name, recipe.about, recipe.model, " ".join(recipe.tasks)) for recipe in known]
    print_rows(("recipe", "reproduces", "model", "tasks"), rows)
    print("run one with: peftlab reproduce RECIPE [--model M] [--data-dir GLUE] [--scale small]")


def _document(reproduction: Reproduction) -> dict[str, object]:
    return {
        "recipe": reproduction.recipe.model_dump(mode="json"),
        "model": reproduction.model,
        "out": str(reproduction.out),
        "rows": [row.model_dump(mode="json") for row in reproduction.rows],
        "records": [record.model_dump(mode="json") for record in reproduction.records],
    }


def _show(reproduction: Reproduction) -> None:
    from rich.console import Console

    from peftlab import report
    from peftlab.report.published import draw

    recipe, console = reproduction.recipe, Console()
    page = report.rebuild(reproduction.out).page
    console.print(draw(reproduction.rows))
    print(f"published: {recipe.source}")
    epoch = recipe.published.epoch
    print(f"its epoch: {epoch}" + (", chosen on dev; so is ours here" if epoch == "best" else ""))
    if reproduction.model != recipe.model:
        print(
            f"the base is another one, {reproduction.model} and not {recipe.model}: "
            "a difference is between the models as well"
        )
    for title, lines in (
        ("it leaves open", recipe.open),
        ("not to be taken at face value", recipe.flags),
    ):
        for number, line in enumerate(lines):
            print(f"{title}:\n  - {line}" if number == 0 else f"  - {line}")
    print(f"page: {page.resolve()}")
