"""The state of a training in a file, from which a training that was stopped resumes.

The file holds the trainable tensors and the method's buffers, the optimizer's moments, the curve,
the outputs for dev and the measurements so far. It needs no state of random generators: data
order, dropout and a method's own draws follow from the seed and the step. A resumed training gives
the same bits as one that never stopped (tests/training/test_checkpoint.py), and it is resumed only
if code and machine are the same. Speed alone is measured over the steps since then.
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

MIN_INTERVAL_S = 60.0  # the minimum time between two writes
# share of the time, for writing: in full fine-tuning the state is three models in size
WRITE_SHARE = 0.01
WRITE_BYTES_PER_S = 2e8  # assumed before the first write: measured on a busy machine (LOG.md)
TENSOR = "tensor"  # a dict with this key alone stands for the tensor of that name
State = dict[str, Any]  # nested dicts and lists of tensors and JSON values


class Checkpoint:
    """The state of one training in a safetensors file; its JSON values are in the metadata.

    Args:
        path: the file; its folder is made.
        made_by: JSON values that must be equal for the same bits. A file made by other ones is not
            read, and is overwritten.
        tell: called with lines that a user should read.
    """

    def __init__(
        self, path: Path, made_by: Mapping[str, Any], tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path, self.made_by, self.tell = path, dict(made_by), tell
        self.due = math.inf
        self.fault: str | None = None  # why the last write failed

    def start(self, size: int) -> None:
        """Schedule the first write, of a state of about `size` bytes."""
        self._schedule_next(size / WRITE_BYTES_PER_S)

    def is_due(self) -> bool:
        """Whether it is time for the next write."""
        return time.monotonic() >= self.due

    def write(self, state: State) -> None:
        """Replace the file by `state`.

        A failure, such as a full disk, is told and not raised; the next write is tried when due.
        """
        started = time.monotonic()
        fault = None
        tensors: dict[str, Tensor] = {}
        try:
            values = _extract_tensors(state, tensors)
            content = json.dumps({"made_by": self.made_by, "state": values})
            self._check_room(sum(tensor.nbytes for tensor in tensors.values()))
            atomic.replace_file(
                self.path, lambda path: save_file(tensors, path, {"state": content})
            )
        except Exception as error:  # no failure to write may end the training itself
            fault = str(error)
        if fault is not None and fault != self.fault:
            self.tell(f"were it stopped now, it could not go on from here: {fault}")
        self.fault = fault
        self._schedule_next(time.monotonic() - started)

    def _schedule_next(self, write_s: float) -> None:
        self.due = time.monotonic() + max(MIN_INTERVAL_S, write_s / WRITE_SHARE)

    def delete(self) -> None:
        """Delete the file, if it is there and that is permitted."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _check_room(self, size: int) -> None:
        """Raise `OSError` unless `size` bytes stay free: records and adapters need room first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < 2 * size:
            raise OSError(
                f"less than {2 * size / 2**20:,.0f} MiB of disk space are free, twice what it takes"
            )

    def read(self) -> State | None:
        """The state in the file; None if there is none, it can't be read, or `made_by` differs."""
        try:
            with safe_open(self.path, "pt") as file:
                content = json.loads(file.metadata()["state"])
                if content["made_by"] != self.made_by:
                    return None
                state: State = _insert_tensors(content["state"], file)
                return state
        except (OSError, SafetensorError, RecursionError, ValueError, TypeError, KeyError):
            return None


def _extract_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with its tensors replaced by names; the tensors are added to `tensors`."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().contiguous()
            return {TENSOR: name}
        case dict():
            return {key: _extract_tensors(item, tensors) for key, item in value.items()}
        case list() | tuple():
            return [_extract_tensors(item, tensors) for item in value]
    return value


def _insert_tensors(value: Any, file: Any) -> Any:
    """`value` with its tensors put back, as copies: the file may be replaced meanwhile."""
    match value:
        case dict() if value.keys() == {TENSOR} and isinstance(value[TENSOR], str):
            return file.get_tensor(value[TENSOR]).clone()
        case dict():
            return {key: _insert_tensors(item, file) for key, item in value.items()}
        case list():
            return [_insert_tensors(item, file) for item in value]
    return value
