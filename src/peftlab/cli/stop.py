"""A command stopped from outside: SIGTERM does what Ctrl-C does, with an exit status of its own.

Schedulers, containers and a machine that shuts down send it, some seconds before they kill.
"""

from __future__ import annotations

import signal
from types import FrameType

import typer


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def heed_sigterm() -> None:
    """From now on SIGTERM raises `Terminated`."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def stopped(by: KeyboardInterrupt) -> typer.Exit:
    """How a command ends that was stopped: with 128 + the signal's number, as a shell has it."""
    came = signal.SIGTERM if isinstance(by, Terminated) else signal.SIGINT
    return typer.Exit(128 + came)
