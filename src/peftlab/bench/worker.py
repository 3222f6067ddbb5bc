"""The warm parent of cells: `python -m peftlab.bench.worker`. It imports, waits and forks.

stdin    one JSON order a line: {"cell": ..., "task_file": ..., "out": ...}
stdout   one JSON event a line: {"event": "row", "row": ..., "total": ...} and, at a cell's end,
         {"event": "end", "exit": 0 or a signal's or exit's number}

Each cell is a process of its own, forked after the imports, so its memory is its own and its
start is quick. The parent runs no tensor operation, tokenizer or CUDA call before the fork: an
OpenMP pool does not survive it. Where fork is missing or unsafe, a fresh process is started.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from peftlab.bench.scorer import Scorer
from peftlab.tasks.metrics import score

if TYPE_CHECKING:
    from peftlab.bench.runner import Score

EVERY_S = 0.1  # the least time between two step events of a cell
CAN_FORK = hasattr(os, "fork") and sys.platform == "linux"


def main() -> None:
    """Serve orders until stdin ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no event
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides when to stop
    if "--once" in sys.argv:
        run_order(sys.stdin.readline(), events, score)
        return
    run: Callable[[str], int] = functools.partial(_in_fresh_process, events=events)
    if CAN_FORK:
        run = functools.partial(_in_fork, events=events, score=Scorer())
        _warm()
    while order := _read_line():
        code = run(order)
        print(json.dumps({"event": "end", "exit": code}), file=events)


def _warm() -> None:
    """Import what every cell needs."""
    import peftlab.bench.runner  # noqa: F401


def _read_line() -> str:
    """A line of stdin without a buffer: what is buffered here would be invisible to select."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
    return line.decode()


def _import_architecture(order: str) -> None:
    import transformers

    config = transformers.CONFIG_MAPPING[json.loads(order)["cell"]["model_type"]]
    transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(config, None)


def _in_fork(order: str, events: TextIO, score: Score) -> int:
    _import_architecture(order)
    events.flush()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            run_order(order, events, score)
            events.flush()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        # the caller's death closes stdin: then the cell has nobody to work for
        if select.select([0], [], [], 0.05)[0] and not os.read(0, 1):
            os.kill(pid, signal.SIGKILL)
            os._exit(1)


def _in_fresh_process(order: str, events: TextIO) -> int:
    command = [sys.executable, "-P", "-m", "peftlab.bench.worker", "--once"]
    done = subprocess.run(command, input=order, stdout=events, text=True, check=False)
    return done.returncode


def run_order(order: str, events: TextIO, score: Score) -> None:
    """Run one cell here; its rows go to `events`, steps at most every `EVERY_S` seconds."""
    from peftlab.bench.cell import Cell
    from peftlab.bench.runner import run_cell
    from peftlab.records.store import Store

    wanted = json.loads(order)
    last = 0.0

    def on_row(row: dict[str, Any], total: int) -> None:
        nonlocal last
        if "score" not in row and row["step"] < total and time.monotonic() - last < EVERY_S:
            return
        last = time.monotonic()
        print(json.dumps({"event": "row", "row": row, "total": total}), file=events)

    run_cell(
        Cell.model_validate(wanted["cell"]),
        Path(wanted["task_file"]),
        Store(Path(wanted["out"])),
        on_row,
        wanted["keep"],
        score,
    )


if __name__ == "__main__":
    main()
