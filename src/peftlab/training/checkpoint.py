"""What a training has come to, in a file, so that one that was stopped goes on from there.

Kept are what trains and the method's buffers, the optimizer's moments, the curve, the answers and
what was measured so far. Of random numbers nothing: data order, dropout and a method's own draws
come from the seed and the step. So one that goes on gives the bits of one that never stopped
(tests/training/test_checkpoint.py), and only where code and machine are the same does one go on.
Speed alone is that of the steps since.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftlab import atomic

EVERY_S = 60.0  # the least time between two writes
SHARE = 0.01  # of the time, what writing may take: of full fine-tuning it is three times the model
BYTES_S = 2e8  # a second, at which the first write is foreseen: measured on a busy machine (LOG.md)
TENSOR = "tensor"  # a dict with this key alone stands for the tensor of that name
State = dict[str, Any]  # nested; what is no dict, list, or tensor is as JSON has it


class Checkpoint:
    """The state of one training in a safetensors file, its numbers as JSON in the metadata.

    Args:
        path: of the file; its folder is made.
        made_by: as JSON has it, what must be the same for the same bits. What was made by anything
            else is not read, and overwritten.
        tell: hears, in a line, of what a user should know.
    """

    def __init__(
        self, path: Path, made_by: Mapping[str, Any], tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path, self.made_by, self.tell = path, dict(made_by), tell
        self.due = math.inf
        self.fault: str | None = None  # of the last write

    def start(self, size: int) -> None:
        """The training begins, or goes on; of its state some `size` bytes will be written."""
        self._wait(size / BYTES_S)

    def is_due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self.due

    def write(self, state: State) -> None:
        """Put `state` in the place of what was kept before.

        What hinders that, such as a full disk, is told and no error: it is tried again when due.
        """
        started = time.monotonic()
        fault = None
        tensors: dict[str, Tensor] = {}
        try:
            numbers = json.dumps({"made_by": self.made_by, "state": _without(state, tensors)})
            self._check_room(sum(tensor.nbytes for tensor in tensors.values()))
            atomic.replace_file(
                self.path, lambda place: save_file(tensors, place, {"state": numbers})
            )
        except Exception as error:  # whatever it is: the training itself is well
            fault = str(error)
        if fault is not None and fault != self.fault:
            self.tell(f"were it stopped now, it could not go on from here: {fault}")
        self.fault = fault
        self._wait(time.monotonic() - started)

    def _wait(self, write_s: float) -> None:
        self.due = time.monotonic() + max(EVERY_S, write_s / SHARE)

    def forget(self) -> None:
        """Delete the file; whoever may not has a file more."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _check_room(self, size: int) -> None:
        """Raise `OSError` unless as much as is written is left: records and adapters come first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < 2 * size:
            raise OSError(
                f"less than {2 * size / 2**20:,.0f} MiB of disk space are free, twice what it takes"
            )

    def read(self) -> State | None:
        """What was kept; None if nothing was, it can't be read, or was made by something else."""
        try:
            with safe_open(self.path, "pt") as file:
                numbers = json.loads(file.metadata()["state"])
                if numbers["made_by"] != self.made_by:
                    return None
                state: State = _with(numbers["state"], file)
                return state
        except (OSError, SafetensorError, RecursionError, ValueError, TypeError, KeyError):
            return None


def _without(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with names in the place of its tensors, which go to `tensors`."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().contiguous()
            return {TENSOR: name}
        case dict():
            return {key: _without(part, tensors) for key, part in value.items()}
        case list() | tuple():
            return [_without(part, tensors) for part in value]
    return value


def _with(value: Any, file: Any) -> Any:
    """`value` with its tensors in their places again, each a copy: the file may go."""
    match value:
        case dict() if value.keys() == {TENSOR} and isinstance(value[TENSOR], str):
            return file.get_tensor(value[TENSOR]).clone()
        case dict():
            return {key: _with(part, file) for key, part in value.items()}
        case list():
            return [_with(part, file) for part in value]
    return value
