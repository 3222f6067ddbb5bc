"""peftlab report: the table and the page, made from records alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftlab.cli.compare import show, warn_unreadable
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
    from peftlab import report as reports
    from peftlab.api.results import side_by_side
    from peftlab.records.question import Question, mebibytes
    from peftlab.records.store import Store

    form = _form_of({"latex": latex, "markdown": markdown, "csv": csv})
    of_page = [name for name, is_on in (("pdf", pdf), ("sentences", sentences)) if is_on]
    if form and of_page:
        raise RequestError(f"--{form} prints the table and makes no page; leave out --{of_page[0]}")
    question = Question(margin, prefer, mebibytes(memory), minutes)
    folder, notes = side_by_side(folders, out)
    selection = split(tasks, "--tasks"), split(methods, "--methods")
    if form:
        print(reports.format_table(folder, form, *selection, last, question), end="")
        warn_unreadable(Store(folder).unreadable())
        for note in notes:
            print(note, file=sys.stderr)
        return
    drawn = [name for name, is_on in (("svg", svg), ("pdf", pdf)) if is_on]
    texts: dict[str, list[str]] = {}
    if sentences:
        from peftlab.api.sentences import sentences as texts_of

        texts = texts_of(folder, *selection, last)
    shown = reports.rebuild(folder, *selection, last, drawn, question, texts)
    show(shown, notes)


def _form_of(flags: dict[str, bool]) -> str | None:
    """The form whose flag is given, if any."""
    given = [form for form, is_on in flags.items() if is_on]
    if len(given) > 1:
        raise RequestError(f"give one of {', '.join(f'--{form}' for form in flags)}, not several")
    return given[0] if given else None
