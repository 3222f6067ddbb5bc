"""An observer that leaves in the folder what is happening there: for `watch`, and for the page.

The page is made anew after a cell and never beside one, so that no step is timed beside it, and
not oftener than keeps it to `SHARE` of the time. Its figures are not drawn as files meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Self

from peftlab import report
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid
from peftlab.bench.run import Observer
from peftlab.errors import RequestError
from peftlab.records.now import Now, clear_now, write_now
from peftlab.records.record import Record

EVERY_S = 2.0  # between two writings of what is running
FIRST_S = 10.0  # what ends sooner has its page at the end alone
SHARE = 0.02  # of the time, that making the page may take


class Live:
    """Tells another observer all that it is told.

    Args:
        shown: the other one.
        out: the folder of the comparison.
        page: whether to keep its page current.
    """

    def __init__(self, shown: Observer, out: Path, page: bool) -> None:
        self.shown, self.out = shown, out
        self.now: Now | None = None
        self.next_page_s = time.monotonic() + FIRST_S if page else math.inf

    def __enter__(self) -> Self:
        self.shown.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        clear_now(self.out)
        self.shown.__exit__(*exception)

    def suite(self, grid: Grid, n_done: int, out: str) -> None:
        self.shown.suite(grid, n_done, out)

    def stage(self, what: str, total: int) -> None:
        self.shown.stage(what, total)

    def note(self, line: str) -> None:
        self.shown.note(line)

    def cell(self, cell: Cell) -> None:
        begun = time.time()
        self._write(Now(cell=cell.name, title=cell.title, begun_s=begun, written_s=begun))
        self.shown.cell(cell)

    def row(self, cell: Cell, row: dict[str, Any], total: int) -> None:
        self.shown.row(cell, row, total)
        if self.now is None:
            return
        if "score" in row:
            score = row["score"].get(cell.task.main_metric)
            self._write(self.now.model_copy(update={"epoch": row["epoch"], "score": score}))
        elif self.now.step == 0 or self.now.age_s > EVERY_S:
            found = {"step": row["step"], "steps": total, "loss": row["loss"]}
            found["memory_mib"] = row.get("memory_mib")
            self._write(self.now.model_copy(update=found))

    def end(self, record: Record) -> None:
        self.shown.end(record)
        if time.monotonic() >= self.next_page_s:
            begun = time.monotonic()
            with contextlib.suppress(RequestError):  # the next one may succeed; the last one says
                report.rebuild(self.out, drawn=())
            took = time.monotonic() - begun
            self.next_page_s = time.monotonic() + took / SHARE

    def _write(self, now: Now) -> None:
        self.now = now.model_copy(update={"written_s": time.time()})
        with contextlib.suppress(OSError):  # a full disk fails where records are written
            write_now(self.out, self.now)
