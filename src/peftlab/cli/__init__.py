"""The command line: one file a command, no logic. Errors end here, as a message and an exit code.

0 all cells done · 1 some failed · 2 wrong request, nothing trained · 130 Ctrl-C
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import typer

from peftlab.cli.adapters import export, merge, predict, push
from peftlab.cli.compare import compare
from peftlab.cli.fit import fit
from peftlab.cli.listings import doctor, methods, models, tasks
from peftlab.cli.options import (
    DEBUG,
    LOG,
    show_tracebacks,
    with_debug,
    with_home_paths,
    with_plugins,
)
from peftlab.cli.plan import plan
from peftlab.cli.report import report
from peftlab.cli.reproduce import reproduce
from peftlab.cli.stop import exit_for, heed_signals, stops
from peftlab.cli.train import train
from peftlab.cli.watch import watch
from peftlab.errors import DISK_FULL, RequestError

app = typer.Typer(
    name="peftlab",
    help="Compare parameter-efficient fine-tuning methods on your model and your data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (compare, plan, fit, train, predict, merge, export, push, methods):
    app.command()(with_debug(with_home_paths(with_plugins(command))))
for command in (report, watch, reproduce, tasks, models, doctor):
    app.command()(with_debug(with_home_paths(command)))


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help=DEBUG),
) -> None:
    show_tracebacks(debug)
    if version:
        import peftlab

        print(peftlab.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


KEPT = (
    "the disk is full; what was written is kept: free some, and the same command goes on from there"
)


def main() -> None:
    """Run the command line; an error ends as a message, after a traceback with --debug."""
    heed_signals()
    _lend_what_libraries_need()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows ? for other characters
            stream.reconfigure(errors="replace")
    try:
        app()
    except RequestError as error:
        _exit_with(2, f"error: {_abbreviate(str(error))}")
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt as interrupt:  # before a command has begun
        sys.exit(exit_for(interrupt).exit_code)
    except OSError as error:
        if error.errno in DISK_FULL:
            _exit_with(1, f"error: {KEPT}")
        if error.errno != errno.ENAMETOOLONG:
            _exit_unexpected(error)
        _exit_with(
            2, f"error: {_abbreviate(str(error.filename))} can't be used: the name is too long"
        )
    except Exception as error:
        _exit_unexpected(error)


def _lend_what_libraries_need() -> None:
    """A home folder, which some ask for when they are imported, and open standard streams."""
    try:
        Path.home()
    except RuntimeError:  # as in a container whose user is a number alone
        os.environ["HOME"] = os.sep
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, as by <&-; the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)


def _exit_unexpected(error: Exception) -> NoReturn:
    failure = f"{type(error).__name__}: {_abbreviate(str(error))}"
    if stops:
        code = exit_for(stops[0]).exit_code
        _exit_with(code, f"stopped; what that interrupted failed: {failure}")
    hint = "" if LOG.isEnabledFor(logging.DEBUG) else "\nrun it again with --debug for a traceback"
    _exit_with(1, f"error inside peftlab: {failure}{hint}")


def _exit_with(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def _abbreviate(text: str) -> str:
    """The text with its words of 300 and more characters cut, such as a value that a user gave.

    >>> _abbreviate("unknown model " + 5000 * "x")
    'unknown model xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… (5000 characters)'
    """
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:40]}… ({len(word[0])} characters)", text)
