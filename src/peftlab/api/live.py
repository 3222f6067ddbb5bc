"""An observer that writes into the folder what runs there, for `watch`, and keeps the page current.

The page is made anew between two cells, so that no step is timed beside that, and so seldom that it
takes `SHARE` of the time at most. Its figures are not drawn as files meanwhile.
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
from peftlab.bench.run import ForwardingObserver, Observer
from peftlab.errors import RequestError
from peftlab.records.now import Now, clear_now, read_now, write_now
from peftlab.records.record import Record

EVERY_S = 2.0  # between two writes of what runs
FIRST_S = 10.0  # a comparison that ends sooner has its page at the end only
SHARE = 0.02  # of the time at most, for making the page


class Live(ForwardingObserver):
    """Writes what runs, and makes the page anew, while another observer shows progress.

    Args:
        shown: the other observer.
        out: the folder of the comparison.
        command: the context of the whole command; when it ends, nothing runs in the folder.
        page: whether to keep the page current.
    """

    def __init__(self, shown: Observer, out: Path, command: ExitStack, page: bool) -> None:
        super().__init__(shown)
        self.out, self.command = out, command
        self.now: Now | None = None
        self.written: Now | None = None  # the last state that is on the disk
        self.next_write_s = 0.0
        self.next_page_s = time.monotonic() + FIRST_S if page else math.inf

    def cell(self, cell: Cell) -> None:
        if self.now is None:  # not in __init__: another command may have the folder until now
            self.command.callback(self._clear)
        self._write(Now(cell=cell.name, title=cell.title, written_s=time.time()))
        super().cell(cell)

    def step(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        super().step(cell, row, total)
        if self.now is None:
            return
        is_first = self.now.step == 0
        progress = {"step": row["step"], "steps": total, "loss": row["loss"]}
        progress["memory_mib"] = row.get("memory_mib")
        # also between two writes: an epoch's end writes it, and may come sooner than the next
        self.now = self.now.model_copy(update=progress)
        if is_first or time.monotonic() > self.next_write_s:
            self._write(self.now)

    def epoch(self, cell: Cell, epoch: int, score: dict[str, float]) -> None:
        super().epoch(cell, epoch, score)
        if self.now is not None:
            value = score.get(cell.task.main_metric)
            self._write(self.now.model_copy(update={"epoch": epoch, "score": value}))

    def end(self, record: Record) -> None:
        super().end(record)
        if time.monotonic() >= self.next_page_s:
            started = time.monotonic()
            # the next page may succeed, and the one at the end reports the error
            with contextlib.suppress(RequestError):
                report.rebuild(self.out, drawn=())
            ended = time.monotonic()
            self.next_page_s = ended + (ended - started) / SHARE

    def _clear(self) -> None:
        if read_now(self.out) == self.written:  # else it is another command's
            clear_now(self.out)

    def _write(self, now: Now) -> None:
        self.now = now.model_copy(update={"written_s": time.time()})
        self.next_write_s = time.monotonic() + EVERY_S
        with contextlib.suppress(OSError):  # on a full disk, writing the record raises
            write_now(self.out, self.now)
            self.written = self.now
