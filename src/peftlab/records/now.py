"""The cell that a folder's command is running: one small file that it writes while it runs.

OUT/.now.json exists from a command's first cell to its end, and is renewed every two seconds or so
while cells run. A command that was killed leaves it behind: `written_s` says how old it is. The
process that reads it may be on another machine.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from peftlab import atomic

FILE = ".now.json"


class Now(BaseModel, extra="ignore", frozen=True):
    """The cell that is running. Fields that another version writes are ignored.

    Attributes:
        cell: its name; empty between cells.
        title: its name in the progress display.
        step, steps: the step of its training and their number; 0 until it trains.
        loss: of that step.
        epoch, score: the last epoch that was scored, and its main metric; null before.
        memory_mib: held by its process, above what that held before the model.
        written_s: when the file was written, in seconds of the Unix clock.
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
        """Seconds since the file was written, by this machine's clock; never below 0."""
        return max(0.0, time.time() - self.written_s)


def write_now(out: Path, now: Now) -> None:
    atomic.write(out / FILE, now.model_dump_json() + "\n")


def read_now(out: Path) -> Now | None:
    """The running cell; None if none is, or if the file can't be read."""
    try:
        return Now.model_validate_json((out / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def clear_now(out: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file while somebody reads it
        (out / FILE).unlink()
