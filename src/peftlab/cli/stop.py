"""A command stopped from outside: SIGTERM does what Ctrl-C does, with an exit status of its own.

Schedulers, containers and a machine that shuts down send it, some seconds before they kill.
"""

from __future__ import annotations

import signal
from types import FrameType

import typer


class Terminated(KeyboardInterrupt):
    """The process got a SIGTERM."""


def heed_sigterm() -> None:
    """Let SIGTERM raise `Terminated` from now on."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def exit_for(interrupt: KeyboardInterrupt) -> typer.Exit:
    """The exit of a stopped command: its status is 128 + the signal's number, as in a shell."""
    number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
    return typer.Exit(128 + number)
