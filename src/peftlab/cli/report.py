"""peftlab report: table and page from records alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.compare import show, tell_unreadable
from peftlab.cli.options import split
from peftlab.errors import RequestError
from peftlab.records.rows import MARGIN


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="The output folder of a comparison, or several.")
    ],
    tasks: Annotated[
        str | None, typer.Option(help="Show only these tasks; names with commas between.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Show only these rows; a method's name selects all its variants."),
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Show only what the latest comparison asked for.")
    ] = False,
    prefer: Annotated[
        str, typer.Option(help="What decides between equals: size, memory, speed or score.")
    ] = "size",
    memory: Annotated[
        str | None,
        typer.Option(help="Recommend only rows whose peak memory is at most this, such as 2GiB."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Recommend only rows of which a run takes at most so many minutes."),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Differences within ± this count as a tie; 0.01 is a point.")
    ] = MARGIN,
    out: Annotated[
        Path | None,
        typer.Option(help="For several folders: where their page goes; default runs/side-by-side."),
    ] = None,
    svg: Annotated[
        bool, typer.Option("--svg/--no-svg", help="Write the figures as SVG too.")
    ] = True,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write the figures as PDF too.")] = False,
    sentences: Annotated[
        bool,
        typer.Option(
            "--sentences", help="Put all dev texts on the page, beside where two methods disagree."
        ),
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print the table for a paper instead of the page.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Likewise, as Markdown.")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Likewise, a line for each row on each task.")
    ] = False,
) -> None:
    """Rebuild a folder's table and page, and say which row to take.

    All records, of every comparison in the folder, unless less is asked for. The row to take is the
    cheapest within the limits that is neither behind the best by its own interval nor worse than
    another. Several folders are laid side by side in a new one, and the page says which of their
    numbers may be compared.
    """
    from peftlab import report as room
    from peftlab.records.sides import join
    from peftlab.records.store import Store
    from peftlab.records.verdicts import Question, mebibytes

    form = _form({"latex": latex, "markdown": markdown, "csv": csv})
    if form and (drawn := [name for name, on in (("pdf", pdf), ("sentences", sentences)) if on]):
        raise RequestError(f"--{form} prints the table and makes no page; leave out --{drawn[0]}")
    if out is not None and len(folders) == 1:
        raise RequestError(f"--out is for several folders; the page of one goes to {folders[0]}")
    question = Question(margin, prefer, mebibytes(memory), minutes)
    both = out or Path("runs/side-by-side")
    told = join(folders, both) if len(folders) > 1 else []
    folder = both if told else folders[0]
    chosen = split(tasks, "--tasks"), split(methods, "--methods")
    if form:
        print(room.printed(folder, form, *chosen, last, question), end="")
        tell_unreadable(Store(folder).unreadable())
        for line in told:
            print(line, file=sys.stderr)
        return
    drawn = [name for name, asked in (("svg", svg), ("pdf", pdf)) if asked]
    texts: dict[str, list[str]] = {}
    if sentences:
        from peftlab.api.sentences import sentences as texts_of

        texts = texts_of(folder, *chosen, last)
    shown = room.rebuild(folder, *chosen, last, drawn, question, texts)
    show(shown, told)


def _form(asked: dict[str, bool]) -> str | None:
    """The one that is asked for, if any."""
    wanted = [name for name, is_asked in asked.items() if is_asked]
    if len(wanted) > 1:
        raise RequestError(f"give one of {', '.join(f'--{name}' for name in asked)}, not several")
    return wanted[0] if wanted else None
