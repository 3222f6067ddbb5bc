"""What a folder's command is doing: one small file that it writes while it runs.

OUT/.now.json is there from a command's first cell to its end, and renewed every two seconds or so
while cells run. A command that was killed leaves it behind: `written_s` says how old it is. Whoever
reads it may be on another machine.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from peftlab import atomic

FILE = ".now.json"


class Now(BaseModel, extra="ignore", frozen=True):
    """The cell that is running. What another version writes beside these is left alone.

    Attributes:
        cell: its name; empty between cells.
        title: as progress calls it.
        step, steps: of its training; 0 until it trains.
        loss: of that step.
        epoch, score: the last epoch that was scored, and its main metric; null before.
        memory_mib: held by its process, above what it held before the model.
        written_s: when this was written, in seconds of the Unix clock.
    """

    cell: str
    title: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    epoch: int | None = None
    score: float | None = None
    memory_mib: float | None = None
    written_s: float

    @property
    def age_s(self) -> float:
        """Seconds since it was written, by this machine's clock; never below 0."""
        return max(0.0, time.time() - self.written_s)


def write_now(out: Path, now: Now) -> None:
    atomic.write(out / FILE, now.model_dump_json() + "\n")


def read_now(out: Path) -> Now | None:
    """What is running; None where nothing is, or what is there can't be read."""
    try:
        return Now.model_validate_json((out / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def clear_now(out: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps what somebody reads just now
        (out / FILE).unlink()
