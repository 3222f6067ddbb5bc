"""A command stopped from outside: SIGTERM does what Ctrl-C does, with an exit status of its own.

Schedulers, containers and a machine that shuts down send it, some seconds before they kill.
"""

from __future__ import annotations

import signal
from types import FrameType

import typer

stops: list[KeyboardInterrupt] = []  # of this process, in their order


class Terminated(KeyboardInterrupt):
    """The process got a SIGTERM."""


def heed_signals() -> None:
    """Let SIGTERM raise `Terminated` from now on, and note it and Ctrl-C in `stops`.

    What they interrupt may make another error of them, as an import of numpy's did.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    stops.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    raise stops[-1]


def exit_for(interrupt: KeyboardInterrupt) -> typer.Exit:
    """The exit of a stopped command: its status is 128 + the signal's number, as in a shell."""
    number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
    return typer.Exit(128 + number)
