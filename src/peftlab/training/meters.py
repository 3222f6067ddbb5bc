"""Speed and memory of training, measured where they happen; None if they can't be measured.

CPU     VmHWM of /proc/self/status: the process's own peak. It is reset through
        /proc/self/clear_refs just before the model is loaded. (Never ru_maxrss: it survives exec.)
CUDA    torch's peak of allocated bytes, reset at the same moment.

If the model is loaded already, the peak is reset before its training, and the model's bytes count
as if it had been loaded then.

Activations are counted as autograd saves them for the backward pass, in one step that is not timed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

from peftlab.engine import model_tensors
from peftlab.layers import is_added

MIB = 2**20
WARMUP_STEPS = 3  # steps left out of the speed: allocator, thread pools and kernels warm up in them
_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class SpeedMeter:
    """Durations and sizes of training steps."""

    seconds: list[float] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, seconds: float, examples: int, tokens: int) -> None:
        self.seconds.append(seconds)
        self.examples.append(examples)
        self.tokens.append(tokens)

    def summary(self) -> dict[str, float | None]:
        """Rates and step times without the first `WARMUP_STEPS` steps; None if too few are left."""
        seconds = self.seconds[WARMUP_STEPS:]
        if len(seconds) < 2:
            return dict.fromkeys(("examples_per_s", "tokens_per_s", "step_ms_p50", "step_ms_p95"))
        total = sum(seconds)
        return {
            "examples_per_s": sum(self.examples[WARMUP_STEPS:]) / total,
            "tokens_per_s": sum(self.tokens[WARMUP_STEPS:]) / total,
            "step_ms_p50": 1000 * statistics.median(seconds),
            "step_ms_p95": 1000 * statistics.quantiles(seconds, n=20, method="inclusive")[-1],
        }


@dataclass(frozen=True)
class Peaks:
    """Peaks in MiB; `by_part` splits the training's peak."""

    peak_mib: float | None
    train_peak_mib: float | None
    by_part: dict[str, float | None]
    how: str


class MemoryMeter:
    """Measures memory from its creation on: make it before a model is loaded, or one is trained.

    Args:
        device: where the model lies or will lie.
        model: the model, if it is loaded already.
    """

    def __init__(self, device: str | torch.device = "cpu", model: nn.Module | None = None) -> None:
        self.device = torch.device(device)
        self.loads_model = model is None
        peak_before = self._peak()
        self.can_reset = self._reset()
        # in a process that loads the model itself, a peak during the imports counts; where the
        # model was there, an earlier peak may be another training's and does not
        self.peak_before = peak_before if self.loads_model else None
        held = 0.0 if model is None else _mib([*model_tensors(model)])
        now = self.now()
        self.start = None if now is None else now - held
        self.resumed_peaks: Sequence[float | None] = (None, None)

    def now(self) -> float | None:
        """MiB in use: resident on a CPU, allocated on CUDA."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / MIB
        if not _STATM.exists():
            return None
        pages = int(_STATM.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def measure(
        self, model: nn.Module, optimizer: Optimizer, activations: float | None = None
    ) -> Peaks:
        """The peaks so far, and the MiB of each part of training as they are held now.

        `activations` is the result of a `SavedMeter`. The remainder of the training's peak is the
        rest: the passes' own working memory, kernels, pages that the allocator holds.
        """
        process_peak, train_peak = self.peaks()
        parts: dict[str, float | None] = {**sizes(model, optimizer), "activations": activations}
        measured = sum(value for value in parts.values() if value is not None)
        # the sum of the parts may exceed the peak, since each may be largest at another moment
        parts["rest"] = None if train_peak is None else max(0.0, train_peak - measured)
        return Peaks(process_peak, train_peak, parts, self._how())

    def peaks(self) -> tuple[float | None, float | None]:
        """The peaks in MiB so far, of the whole process and of the training; see `Peaks`."""
        peak = self._peak()
        if peak is None:
            return None, None
        process_peak, train_peak = (value or 0.0 for value in self.resumed_peaks)
        process_peak = max(process_peak, peak, self.peak_before or 0.0)
        if self.start is None or not self.can_reset:
            return process_peak, None
        return process_peak, max(train_peak, peak - self.start)

    def resume_from(self, peaks: Sequence[float | None]) -> None:
        """Include the `peaks` of an earlier process, whose training is resumed here.

        Where the peak can be reset, it is, so that restoring the training's state does not count.
        """
        self.resumed_peaks = peaks
        self.can_reset = self._reset()

    def _peak(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        if self.device.type != "cpu" or not _STATUS.exists():
            return None
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return None

    def _reset(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            return False
        return True

    def _how(self) -> str:
        event = "the model is loaded" if self.loads_model else "the training of a loaded model"
        peaks = f"VmHWM, reset through clear_refs before {event}"
        if not self.can_reset:
            peaks = "VmHWM of the whole process: this system does not let it be reset"
        if self.device.type == "cuda":
            peaks = f"torch.cuda.max_memory_allocated, reset before {event}"
        elif self._peak() is None:
            peaks = "no peak, which this system doesn't tell"
        return (
            f"{peaks}; activations = saved for the backward pass of the widest part of a "
            "batch, each storage once, without the model's own; rest = train peak less all parts"
        )


class SavedMeter:
    """Counts the storages that autograd saves inside it for the backward pass, each once.

    A copy of a weight that the forward pass makes and saves counts. A tensor of a branch without a
    gradient, freed before the backward pass, does not. Of a layer that checkpointing computes again
    only the input counts, which is kept.

    Args:
        excluded: tensors that exist anyway and do not count: the model's and the batch's.

    >>> x = torch.zeros(256, 256, requires_grad=True)
    >>> with SavedMeter([x]) as saved:
    ...     y = x.exp().square()
    >>> saved.mib()  # exp keeps its output, square its input, and the two are one
    0.25
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        self.hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)
        # tensors that oneDNN has packed have no storage, and are never saved
        self.excluded = {
            StorageWeakRef(tensor.untyped_storage()) for tensor in excluded if not tensor.is_mkldnn
        }
        self.bytes: dict[StorageWeakRef, int] = {}

    def __enter__(self) -> Self:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def mib(self) -> float:
        """The MiB that are saved now."""
        return sum(size for storage, size in self.bytes.items() if not storage.expired()) / MIB

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self.excluded:
            self.bytes[reference] = storage.nbytes()
        return tensor.detach()  # the output itself and its graph would hold each other


def sizes(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """The MiB of weights, adapters, gradients and optimizer, as they are held now."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    is_of_method = is_added(model)
    adapters = [p for name, p in named.items() if is_of_method(name)]
    added = {id(p) for p in adapters}
    tensors = {id(tensor): tensor for tensor in model_tensors(model)}
    trained = [p for p in named.values() if p.requires_grad]
    state = [value for values in optimizer.state.values() for value in values.values()]
    return {
        "weights": _mib([tensor for key, tensor in tensors.items() if key not in added]),
        "adapters": _mib(adapters),
        "gradients": _mib(trained),  # of the same sizes; freed after each step
        "optimizer": _mib([value for value in state if isinstance(value, torch.Tensor)]),
    }


def _mib(tensors: Sequence[torch.Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / MIB
