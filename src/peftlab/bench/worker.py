"""The warm parent of cells: `python -m peftlab.bench.worker`. It imports, waits and forks.

stdin    one JSON `Order` a line; an empty line for each of its epochs and ranks that is scored
stdout   one JSON event a line, named by its "event":
         step {row, total}     a step of the training, with its row of the curve
         epoch {epoch, outputs} · rank {rank, outputs}      answers to dev, (n_dev, num_labels)
         note {line}           a line that the user should see
         trained {trained} or failed {failed, traceback}    the result
         end {exit}            the exit code of the cell's process; of a signal its negative number

Each cell is a process of its own, forked after the imports, so its memory is its own and its
start is quick. The parent runs no tensor operation, tokenizer or CUDA call before the fork: an
OpenMP pool does not survive it. Where fork is missing or unsafe, or some library's import has asked
CUDA a question, a fresh process is started.
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
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from peftlab.bench.outcome import Outputs
    from peftlab.training import Line

EVERY_S = 0.1  # the least time between two step events of a cell
NEEDS_FRESH = 75  # exit code of a fork that can't use CUDA
CAN_FORK = hasattr(os, "fork") and sys.platform == "linux"


def main() -> None:
    """Serve orders until stdin ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr, for it is no event
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides when to stop
    if "--once" in sys.argv:
        run_order(sys.stdin.readline(), events)
        events.flush()
        os._exit(0)  # as a fork ends: what libraries do at an exit can't undo the result
    run: Callable[[str], int] = functools.partial(_in_fresh_process, events=events)
    if CAN_FORK:
        run = functools.partial(_in_fork, events=events)
        _warm()
    while order := _read_line():
        if order.strip():  # else an answer to a cell that has ended
            # on a line of its own, also after half an event of a killed cell
            print("\n" + json.dumps({"event": "end", "exit": run(order)}), file=events)


def _warm() -> None:
    """Import what every cell needs, and hash the code now: a file may change while cells run."""
    import transformers.modeling_utils  # noqa: F401

    import peftlab.bench.process  # noqa: F401
    from peftlab.machine import own_code

    own_code()


def _read_line() -> str:
    """A line of stdin, read without a buffer, whose content `select` would not see."""
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


def _can_start_cuda(order: str) -> bool:
    """Whether the order needs no CUDA, or it can be started in this process."""
    import torch

    if json.loads(order)["cell"]["training"]["device"] == "cuda":
        try:
            torch.cuda.init()
        except Exception:  # of any kind: it was before the fork (torchao's import does so)
            return False
    return True


def _in_fork(order: str, events: TextIO) -> int:
    _import_architecture(order)
    events.flush()
    read_end, write_end = os.pipe()  # passes on that answers are scored
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if not _can_start_cuda(order):
                os._exit(NEEDS_FRESH)
            run_order(order, events, lambda: os.read(read_end, 1))
            events.flush()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    while True:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            os.close(read_end)
            os.close(write_end)
            exit_code = os.waitstatus_to_exitcode(status)
            return _in_fresh_process(order, events) if exit_code == NEEDS_FRESH else exit_code
        if select.select([0], [], [], 0.05)[0]:
            byte = os.read(0, 1)
            if not byte:  # the caller is dead, and nobody waits for the cell
                os.kill(pid, signal.SIGKILL)
                os._exit(1)
            os.write(write_end, byte)


def _in_fresh_process(order: str, events: TextIO) -> int:
    command = [sys.executable, "-P", "-m", "peftlab.bench.worker", "--once"]
    done = subprocess.run(command, input=order, stdout=events, encoding="utf-8", check=False)
    return done.returncode


class EventWriter:
    """A training's listener that writes events, steps at most every `EVERY_S` seconds.

    `wait` returns when answers are scored; in a fresh process, which has no pipe for it, at once.
    """

    def __init__(self, events: TextIO, wait: Callable[[], object]) -> None:
        self.events, self.wait = events, wait
        self.last_step_s = 0.0

    def write(self, event: str, **content: Any) -> None:
        print(json.dumps({"event": event, **content}), file=self.events)

    def step(self, row: Line, total: int) -> None:
        if row["step"] < total and time.monotonic() - self.last_step_s < EVERY_S:
            return
        self.last_step_s = time.monotonic()
        self.write("step", row=row, total=total)

    def epoch(self, epoch: int, outputs: Outputs) -> None:
        self.write("epoch", epoch=epoch, outputs=outputs)
        self.wait()

    def rank(self, rank: int, outputs: Outputs) -> None:
        self.write("rank", rank=rank, outputs=outputs)
        self.wait()

    def note(self, line: str) -> None:
        self.write("note", line=line)


def run_order(order: str, events: TextIO, wait: Callable[[], object] = lambda: None) -> None:
    """Run one cell in this process; its events, a failure among them, are written to `events`."""
    from peftlab.bench.cell import Order
    from peftlab.bench.outcome import Failed
    from peftlab.bench.own_method import place_of
    from peftlab.bench.process import run_cell
    from peftlab.methods import METHODS
    from peftlab.records.record import Failure

    started = time.perf_counter()
    parsed, writer = Order.model_validate_json(order), EventWriter(events, wait)
    try:
        trained = run_cell(parsed, writer)
    except Exception as error:  # of any kind: the suite reports it and goes on
        message = f"{error}{place_of(error, METHODS.get(parsed.cell.method.name))}"
        failed = Failed(
            failure=Failure(kind=type(error).__name__, message=message),
            total_s=time.perf_counter() - started,
            environment=parsed.cell.environment(),
        )
        lines = "".join(traceback.format_exception(error))
        writer.write("failed", failed=failed.model_dump(mode="json"), traceback=lines)
    else:
        writer.write("trained", trained=trained.model_dump(mode="json"))


if __name__ == "__main__":
    main()
