"""peftlab fit: find, train and write a model for a user's data within a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from peftlab.cli import options
from peftlab.cli.compare import show
from peftlab.cli.options import Option, Text


@options.with_request
def fit(
    out: Annotated[Path, Option(help="Folder for the adapter.")],
    minutes: Annotated[float, Option(min=0.1, help="How long it may take.")] = 20.0,
    task: Annotated[Text, Option(help="A name, instead of your own --data.")] = None,
    methods: Annotated[
        Text, Option(help="To choose from; default: lora,houlsby,bitfit,full,head.")
    ] = None,
    runs: Annotated[
        Path | None, Option(help="Folder for what is tried; default runs/fit-DATA.")
    ] = None,
    *,
    request: options.OptionRequest,
    quiet: options.Quiet = False,
) -> None:
    """Find, train and write a model for your data within a time.

    No decision of yours is needed. Several methods and learning rates race on a part of train; the
    best train on all of it, with several seeds, and are judged on dev. The recommended one's
    adapter is checked and written. When the time is over, or on Ctrl-C or SIGTERM, the best so far
    is.
    """
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status("reading the request, the model and the data"):
        from peftlab.api import fit as api

        fields = request.fields | {
            "tasks": options.split(task, "--task"),
            "methods": options.methods_of(api.METHODS if methods is None else methods),
            "seeds": list(api.SEEDS),
        }
        resolved = api.resolve_fit(fields, request.sets, runs)
    try:
        fitted = api.run_fit(resolved, out, minutes, console, quiet)
    except KeyboardInterrupt:
        print(
            f"stopped; no adapter was written; what had ended is in {resolved.out}", file=sys.stderr
        )
        raise
    try:
        if fitted.recommendation is not None:
            from peftlab import report

            show(report.rebuild(resolved.out, last=True))
    finally:  # the adapter is there, also if the page can't be written
        for line in api.result_lines(fitted):
            print(line)
        print(f"adapter: {out.resolve()}")
    if fitted.stopped:
        print("stopped; the adapter is the best of what was finished", file=sys.stderr)
        raise fitted.stopped
