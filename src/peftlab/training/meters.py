"""Speed and memory of training, measured where they happen; what can't be measured is None.

CPU     VmHWM of /proc/self/status: the process's own peak. It is reset through
        /proc/self/clear_refs just before the model is loaded. (Never ru_maxrss: it survives exec.)
CUDA    torch's peak of allocated bytes, reset at the same moment.

Of a model that is there already the peak is reset before its training, and its bytes count as if it
had been loaded then.

What the backward pass needs is counted as autograd saves it, in one step that is not timed.
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

from peftlab.engine import own_tensors
from peftlab.layers import is_added

MIB = 2**20
WARMING = 3  # steps left out of the speed: allocator, thread pools and kernels warm up in them
_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_CLEAR = Path("/proc/self/clear_refs")


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
        """Per second and per step, the first `WARMING` steps left out; None if no step is left."""
        seconds = self.seconds[WARMING:]
        if len(seconds) < 2:
            return dict.fromkeys(("examples_per_s", "tokens_per_s", "step_ms_p50", "step_ms_p95"))
        total = sum(seconds)
        return {
            "examples_per_s": sum(self.examples[WARMING:]) / total,
            "tokens_per_s": sum(self.tokens[WARMING:]) / total,
            "step_ms_p50": 1000 * statistics.median(seconds),
            "step_ms_p95": 1000 * statistics.quantiles(seconds, n=20, method="inclusive")[-1],
        }


@dataclass(frozen=True)
class Memory:
    """Peaks in MiB; `by_part` splits what training added."""

    peak_mib: float | None
    train_peak_mib: float | None
    by_part: dict[str, float | None]
    how: str


class MemoryMeter:
    """Starts when made, just before the model is loaded, or before `model`, which is, is trained.

    Args:
        device: where the model lies or will lie.
        model: if it is loaded already.
    """

    def __init__(self, device: str | torch.device = "cpu", model: nn.Module | None = None) -> None:
        self.device = torch.device(device)
        self.loads = model is None
        before = self._peak()
        self.can_reset = self._reset()
        # of a process that loads the model itself the imports count, wherever they were largest;
        # what another training needed before this one does not
        self.before = before if self.loads else None
        held = 0.0 if model is None else _mib([*own_tensors(model)])
        now = self.now()
        self.start = None if now is None else now - held
        self.earlier: Sequence[float | None] = (None, None)

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
    ) -> Memory:
        """The peaks so far, and the MiB of each part of training as they are held now.

        `activations` is what a `SavedMeter` found. What is left of the training's peak is the
        rest: the passes' own working memory, kernels, what the allocator holds.
        """
        whole, train = self.peaks()
        parts: dict[str, float | None] = {**sizes(model, optimizer), "activations": activations}
        known = sum(value for value in parts.values() if value is not None)
        # the parts may have been largest at different moments: then they exceed the peak
        parts["rest"] = None if train is None else max(0.0, train - known)
        return Memory(whole, train, parts, self._how())

    def peaks(self) -> tuple[float | None, float | None]:
        """MiB of the whole process and of the training, so far; see `Memory`."""
        peak = self._peak()
        if peak is None:
            return None, None
        whole, train = (value or 0.0 for value in self.earlier)
        whole = max(whole, peak, self.before or 0.0)
        if self.start is None or not self.can_reset:
            return whole, None
        return whole, max(train, peak - self.start)

    def go_on(self, earlier: Sequence[float | None]) -> None:
        """Measure on from the `peaks` of an earlier process, whose training goes on here.

        What putting it back has needed is no part of either, where the peak can be reset.
        """
        self.earlier = earlier
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
            _CLEAR.write_text("5")
        except OSError:
            return False
        return True

    def _how(self) -> str:
        when = (
            "before the model is loaded" if self.loads else "before the training of a loaded model"
        )
        peaks = f"VmHWM, reset through clear_refs {when}"
        if not self.can_reset:
            peaks = "VmHWM of the whole process: this system does not let it be reset"
        if self.device.type == "cuda":
            peaks = f"torch.cuda.max_memory_allocated, reset {when}"
        elif self._peak() is None:
            peaks = "no peak, which this system doesn't tell"
        return (
            f"{peaks}; activations = saved for the backward pass of the widest part of a "
            "batch, each storage once, without the model's own; rest = train peak less all parts"
        )


class SavedMeter:
    """Counts what autograd saves, inside it, for the backward pass: each storage once.

    A copy of a weight that the forward pass makes and saves counts; what is dropped before the
    backward pass, with a branch that leads nowhere, does not. A layer that checkpointing computes
    again is not seen: its input, which is kept, is.

    Args:
        own: what is there anyway and does not count: the model's tensors and the batch's.

    >>> x = torch.zeros(256, 256, requires_grad=True)
    >>> with SavedMeter([x]) as saved:
    ...     y = x.exp().square()
    >>> saved.mib()  # exp keeps its output, square its input, and the two are one
    0.25
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        self.hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)
        # what oneDNN has packed has no storage, and is never saved
        self.own = {StorageWeakRef(one.untyped_storage()) for one in own if not one.is_mkldnn}
        self.bytes: dict[StorageWeakRef, int] = {}

    def __enter__(self) -> Self:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def mib(self) -> float:
        """What is saved now."""
        return sum(size for storage, size in self.bytes.items() if not storage.expired()) / MIB

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self.own:
            self.bytes[reference] = storage.nbytes()
        return tensor.detach()  # an output itself would hold its graph, and that the output


def sizes(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """MiB of weights, adapters, gradients and optimizer, as they are held now."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    of_method = is_added(model)
    adapters = [p for name, p in named.items() if of_method(name)]
    added = {id(p) for p in adapters}
    everything = {id(tensor): tensor for tensor in own_tensors(model)}
    trained = [p for p in named.values() if p.requires_grad]
    state = [value for values in optimizer.state.values() for value in values.values()]
    return {
        "weights": _mib([tensor for key, tensor in everything.items() if key not in added]),
        "adapters": _mib(adapters),
        "gradients": _mib(trained),  # of the same sizes; freed after each step
        "optimizer": _mib([value for value in state if isinstance(value, torch.Tensor)]),
    }


def _mib(tensors: Sequence[torch.Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / MIB
