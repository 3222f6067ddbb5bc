"""Run cells one after the other, each in a process of its own, through a warm worker."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Self

from peftlab.bench.cell import Cell, Order
from peftlab.bench.outcome import CellScorer, Failed, Trained
from peftlab.machine import BUSY_SHARE, others_share
from peftlab.records.record import Failure
from peftlab.training import WORKSPACE

LOG = logging.getLogger(__name__)
KILLED = 9  # signal.SIGKILL, a name that Windows lacks
# -P: a file in the current folder, such as statistics.py, must not shadow a library
COMMAND = [sys.executable, "-P", "-m", "peftlab.bench.worker"]

# How many turns OpenMP's threads spin before they sleep. A training that has the machine to itself
# should spin through the moments between two operations: on small models 20,000 turns are worth a
# tenth of the speed. Beside other work it should not: with one core taken by something else minilm
# trains at 254 examples/s with 5,000, at 119 with 20,000, and crawls at libgomp's own 300,000
# (LOG.md).
LONG_SPIN, SHORT_SPIN = "20000", "5000"
# How many kernels torch (first) and oneDNN keep, each made for one shape. 640 hold all that the
# widths of an epoch need again; by default both keep 1,024 (LOG.md).
MOST_KERNELS = 640
FEW_KERNELS = {
    "LRU_CACHE_CAPACITY": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(MOST_KERNELS),
}


class Worker:
    """The warm parent of cells, started at once; leaving its context ends it and its cell."""

    def __init__(self) -> None:
        # closed when the context ends; libraries may print what is not UTF-8
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.log_start = 0  # where the lines of the current cell, or of a dead worker, begin
        self.process, self.reaper = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self.log.close()

    def run(self, order: Order, scorer: CellScorer) -> Trained | Failed:
        """Run one cell until it is trained or has failed; `scorer` is told of it as it goes."""
        try:
            return self._run(order, scorer)
        finally:
            self.log_start = os.fstat(self.log.fileno()).st_size

    def _run(self, order: Order, scorer: CellScorer) -> Trained | Failed:
        result: Trained | Failed | None = None
        exit_code = 0
        for event in self._events_of(order):
            match event["event"]:
                case "step":
                    scorer.step(event["row"], event["total"])
                case "epoch":
                    scorer.epoch(event["epoch"], event["outputs"])
                    self._send("")
                case "rank":
                    scorer.rank(event["rank"], event["outputs"])
                    self._send("")
                case "note":
                    scorer.note(event["line"])
                case "trained":
                    result = Trained.model_validate(event["trained"])
                case "failed":
                    result = Failed.model_validate(event["failed"])
                    LOG.debug("%s failed\n%s", order.cell.name, event["traceback"])
                case "end":
                    exit_code = event["exit"]
        if result is None:
            return _death_failure(order.cell, exit_code, self.last_stderr_line())
        return result

    def _events_of(self, order: Order) -> Iterator[dict[str, Any]]:
        """The events of the ordered cell; the last is its "end", also where the worker dies."""
        if self.process.poll() is not None:  # the worker died while it was idle
            self.log_start = os.fstat(self.log.fileno()).st_size
            self._restart()
        self._send(json.dumps(order.model_dump(mode="json")))
        for event in self._events():
            yield event
            if event["event"] == "end":
                return
        exit_code = self.process.wait()  # the worker died: start another for the next cell
        self._restart()
        yield {"event": "end", "exit": exit_code or 1}

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has just died: see `_events_of`
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def last_stderr_line(self) -> str:
        """The last line that the libraries or a crash left on stderr."""
        self.log.flush()
        self.log.seek(self.log_start)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else ""

    def _start(self) -> tuple[subprocess.Popen[str], threading.Thread]:
        """The worker's process, and the thread that kills its children once it has died."""
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=cell_environment(),
            start_new_session=True,  # Ctrl-C reaches the caller alone, who then ends the group
        )
        reaper = threading.Thread(target=_kill_orphans, args=(process,), daemon=True)
        reaper.start()
        return process, reaper

    def _restart(self) -> None:
        self._stop()
        self.process, self.reaper = self._start()

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # an empty line, or half one of a killed cell
                yield json.loads(line)

    def _stop(self) -> None:
        if self.process.poll() is None:  # else its id may be another process's by now
            _kill_group(self.process)
        self.reaper.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _kill_orphans(process: subprocess.Popen[str]) -> None:
    """Once the worker is dead, kill its cell, which would keep open the pipe that we read from."""
    process.wait()
    _kill_group(process)


def _kill_group(process: subprocess.Popen[str]) -> None:
    # macOS refuses to signal a group of which nothing but zombies is left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":  # no process groups: kill the tree of children
            command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
            with contextlib.suppress(OSError):
                subprocess.run(command, capture_output=True, check=False)
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def cell_environment() -> dict[str, str]:
    """The environment of cells: this process's, and defaults for speed, memory and determinism.

    A variable that is set already keeps its value, but for the devices where the caller has chosen
    one of them (`torch.cuda.set_device`).
    """
    spin = {}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        spin["GOMP_SPINCOUNT"] = SHORT_SPIN if (others_share() or 0.0) > BUSY_SHARE else LONG_SPIN
    return {**spin, **FEW_KERNELS, **WORKSPACE, **os.environ, **_current_device()}


def _current_device() -> dict[str, str]:
    """A variable by which cells see the caller's current CUDA device first, unless they would."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized() or torch.cuda.current_device() == 0:
        return {}
    index, visible = torch.cuda.current_device(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index] if visible else str(index)}


def _death_failure(cell: Cell, exit_code: int, last_stderr_line: str) -> Failed:
    """The failure of a cell whose process ended before it reported a result."""
    return Failed(
        failure=Failure(kind="ProcessDied", message=exit_message(exit_code, last_stderr_line)),
        environment=cell.environment(),
    )


def exit_message(code: int, last_stderr_line: str) -> str:
    """The message on a process that exited with `code` before its cell was done."""
    if code == -KILLED:
        return "its process was killed; most likely the machine ran out of memory"
    detail = f"; {last_stderr_line}" if last_stderr_line else ""
    if code < 0:
        names = {member.value: member.name for member in signal.Signals}  # real-time ones lack one
        return f"its process was ended by {names.get(-code, f'signal {-code}')}{detail}"
    return f"its process exited with code {code}{detail}"
