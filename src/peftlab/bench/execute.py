"""Run cells in processes of their own, one after the other, through a warm worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from peftlab.bench.cell import Cell
from peftlab.bench.outcome import CellScorer, Failed, Trained
from peftlab.machine import BUSY, environment, others_share
from peftlab.records.record import Failure
from peftlab.training import WORKSPACE

KILLED = 9  # signal.SIGKILL, a name that Windows lacks
# -P: a file in the current folder, such as statistics.py, must not shadow a library
COMMAND = [sys.executable, "-P", "-m", "peftlab.bench.worker"]

# How many turns OpenMP's threads spin before they sleep. Those of a training that has the machine
# to itself should wait out the moments between two operations: on small models 20,000 are worth a
# tenth of the speed. Beside other work they should not: with one core taken by something else
# minilm trains at 254 examples/s with 5,000, 119 with 20,000, and crawls at libgomp's own 300,000
# (LOG.md).
LONG_SPIN, SHORT_SPIN = "20000", "5000"
# How many kernels torch (first) and oneDNN keep, each made for one shape: what an epoch's widths
# need again is within 640. By default both keep 1,024 (LOG.md).
MOST_KERNELS = 640
FEW_KERNELS = {
    "LRU_CACHE_CAPACITY": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(MOST_KERNELS),
}


class Order(BaseModel, extra="forbid", frozen=True):
    """What the worker is asked for.

    Attributes:
        cell: to run.
        task_file: its task, as `Task.write` wrote it; tokens are kept beside it.
        adapter: the folder to save the adapter to; None for none.
        checkpoint: the file that keeps the training as it goes; None for none.
    """

    cell: Cell
    task_file: Path
    adapter: Path | None
    checkpoint: Path | None = None


class Worker:
    """The warm parent as a context: entering starts it, leaving ends it and the cell in it."""

    def __init__(self) -> None:
        # closed when the context ends; what libraries print need not be UTF-8
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.log_start = 0  # what was written since then is of the cell, or of a worker that died
        self.process, self.burial = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self.log.close()

    def run(self, order: Order, scorer: CellScorer) -> Trained | Failed:
        """Run one cell to its end, whatever that is; `scorer` hears of it as it goes."""
        try:
            return self._run(order, scorer)
        finally:
            self.log_start = os.fstat(self.log.fileno()).st_size

    def _run(self, order: Order, scorer: CellScorer) -> Trained | Failed:
        end: Trained | Failed | None = None
        code = 0
        for event in self._events_of(order):
            match event["event"]:
                case "step":
                    scorer.step(event["row"], event["total"])
                case "epoch":
                    scorer.epoch(event["epoch"], event["outputs"])
                    self._say("")
                case "rank":
                    scorer.rank(event["rank"], event["outputs"])
                    self._say("")
                case "note":
                    scorer.note(event["line"])
                case "trained":
                    end = Trained.model_validate(event["trained"])
                case "failed":
                    end = Failed.model_validate(event["failed"])
                case "end":
                    code = event["exit"]
        if end is None or code:
            return _died(order.cell, code, self.last_stderr_line())
        return end

    def _events_of(self, order: Order) -> Iterator[dict[str, Any]]:
        """What the cell tells, up to its end, which may be the worker's own."""
        if self.process.poll() is not None:  # it died while it had nothing to do
            self.log_start = os.fstat(self.log.fileno()).st_size
            self._start_anew()
        self._say(json.dumps(order.model_dump(mode="json")))
        for event in self._events():
            yield event
            if event["event"] == "end":
                return
        code = self.process.wait()  # the worker itself is gone: start another for the next cell
        self._start_anew()
        yield {"event": "end", "exit": code or 1}

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died: `_events_of` says so
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def last_stderr_line(self) -> str:
        """The last line that the libraries or a crash left on stderr."""
        self.log.flush()
        self.log.seek(self.log_start)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else ""

    def _start(self) -> tuple[subprocess.Popen[str], threading.Thread]:
        """The worker, and what waits for its death to kill what it leaves."""
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=cell_environment(),
            start_new_session=True,  # Ctrl-C reaches the caller alone, who then ends the group
        )
        burial = threading.Thread(target=_bury, args=(process,), daemon=True)
        burial.start()
        return process, burial

    def _start_anew(self) -> None:
        self._stop()
        self.process, self.burial = self._start()

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # half a line of a cell that was killed, or none
                yield json.loads(line)

    def _stop(self) -> None:
        if self.process.poll() is None:  # else its number may be another process's by now
            _kill_group(self.process)
        self.burial.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _bury(process: subprocess.Popen[str]) -> None:
    """Kill what a dead worker leaves: its cell would hold open the pipe that is read to its end."""
    process.wait()
    _kill_group(process)


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":  # the worker's cell is no group's there, but its child
            tree = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
            with contextlib.suppress(OSError):
                subprocess.run(tree, capture_output=True, check=False)
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def cell_environment() -> dict[str, str]:
    """The environment of cells: this process's, and defaults for speed, memory and determinism.

    A variable that is set already keeps its value.
    """
    spin = {}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        spin["GOMP_SPINCOUNT"] = SHORT_SPIN if (others_share() or 0.0) > BUSY else LONG_SPIN
    return {**spin, **FEW_KERNELS, **WORKSPACE, **os.environ}


def _died(cell: Cell, code: int, last_stderr_line: str) -> Failed:
    """The end of a cell whose process ended without a word on how it came out."""
    return Failed(
        failure=Failure(kind="ProcessDied", message=exit_message(code, last_stderr_line)),
        environment=environment(cell.training.threads, cell.precision.base, cell.training.device),
    )


def exit_message(code: int, last_stderr_line: str) -> str:
    """What to tell of a process that ended before its cell did."""
    if code == -KILLED:
        return "its process was killed; most likely the machine ran out of memory"
    after = f"; {last_stderr_line}" if last_stderr_line else ""
    if code < 0:
        names = {one.value: one.name for one in signal.Signals}  # a real-time signal has none
        return f"its process was ended by {names.get(-code, f'signal {-code}')}{after}"
    return f"its process exited with code {code}{after}"
