"""An observer that leaves in the folder what is happening there: for `watch`, and for the page.

The page is made anew after a cell and never beside one, so that no step is timed beside it, and
not oftener than keeps it to `SHARE` of the time. Its figures are not drawn as files meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peftlab import report
from peftlab.bench.cell import Cell
from peftlab.bench.run import Observer, PassedOn
from peftlab.errors import RequestError
from peftlab.records.now import Now, clear_now, read_now, write_now
from peftlab.records.record import Record

EVERY_S = 2.0  # between two writings of what is running
FIRST_S = 10.0  # what ends sooner has its page at the end alone
SHARE = 0.02  # of the time, that making the page may take


class Live(PassedOn):
    """Writes what runs, and makes the page anew, while another observer shows it.

    Args:
        shown: the other one.
        out: the folder of the comparison.
        command: the whole of which this shows a part; at its end nothing runs in the folder.
        page: whether to keep its page current.
    """

    def __init__(self, shown: Observer, out: Path, command: ExitStack, page: bool) -> None:
        super().__init__(shown)
        self.out, self.command = out, command
        self.now: Now | None = None
        self.written: Now | None = None  # what of it is on the disk
        self.next_s = 0.0
        self.next_page_s = time.monotonic() + FIRST_S if page else math.inf

    def cell(self, cell: Cell) -> None:
        if self.now is None:  # not sooner, for until then another command may have the folder
            self.command.callback(self._clear)
        self._write(Now(cell=cell.name, title=cell.title, written_s=time.time()))
        super().cell(cell)

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        super().step(cell, row, total)
        if self.now is not None and (self.now.step == 0 or time.monotonic() > self.next_s):
            found = {"step": row["step"], "steps": total, "loss": row["loss"]}
            found["memory_mib"] = row.get("memory_mib")
            self._write(self.now.model_copy(update=found))

    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None:
        super().epoch(cell, epoch, score)
        if self.now is not None:
            main = score.get(cell.task.main_metric)
            self._write(self.now.model_copy(update={"epoch": epoch, "score": main}))

    def end(self, record: Record) -> None:
        super().end(record)
        if time.monotonic() >= self.next_page_s:
            begun = time.monotonic()
            with contextlib.suppress(RequestError):  # the next one may succeed; the last one says
                report.rebuild(self.out, drawn=())
            took = time.monotonic() - begun
            self.next_page_s = time.monotonic() + took / SHARE

    def _clear(self) -> None:
        if read_now(self.out) == self.written:  # another command's stays
            clear_now(self.out)

    def _write(self, now: Now) -> None:
        self.now = now.model_copy(update={"written_s": time.time()})
        self.next_s = time.monotonic() + EVERY_S
        with contextlib.suppress(OSError):  # a full disk fails where records are written
            write_now(self.out, self.now)
            self.written = self.now
