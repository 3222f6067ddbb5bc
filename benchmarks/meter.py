"""The clock and the memory of one side: both sides use it, so their numbers mean the same.

Speed     the last epoch, from its beginning to the end of its last step: batches, forward,
          backward, optimizer and all that the loop does between them; padding tokens don't count
Resident  VmRSS right before the first forward pass: imports, model, optimizer, tokens
Above     the peak (VmHWM) from there to the end of the last epoch, less what was resident:
          what training itself needs
Peak      VmHWM of the whole process to the end of the last epoch, imports and loading counted
All       the peak, and the memory that other processes hold alone at the end of the last epoch:
          those that this one started, and the command that waits for it
GPU       peak and above of what torch has allocated on a CUDA device, where one is used; the clock
          waits for the device at the epochs' ends only

The caller announces the moment before the first step, or a hook on all modules finds it and removes
itself. Our own side announces it: the engine would take such a hook for a caller's own code, and
leave the model as it is. fp32 weights are mapped from their file and come into memory when first
read; the meter reads them in that moment, so that they count as resident, but for the embedding, of
which training reads some rows only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def status_mib(name: str) -> float:
    """VmRSS (resident now) or VmHWM (its peak) of this process."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def gpu_mib(name: str) -> float:
    """What torch has allocated on the device: memory_allocated (now) or max_memory_allocated."""
    return float(getattr(torch.cuda, name)()) / 2**20


def children() -> list[Path]:
    """The folders in /proc of this process's children."""
    parent_line, folders = f"PPid:\t{os.getpid()}\n", []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has just ended
            if parent_line in (folder / "status").read_text():
                folders.append(folder)
    return folders


def private_mib(folder: Path) -> float:
    """The memory that no process but that of a folder in /proc maps."""
    lines = (folder / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


class Meter:
    """Measures one training; to be made once the imports are done.

    Args:
        device: cpu or cuda.
        caller: the process that waits for this one, whose memory counts too; None for none.
    """

    def __init__(self, device: str = "cpu", caller: int | None = None) -> None:
        self.on_gpu = device == "cuda"
        self.callers = [] if caller is None else [Path(f"/proc/{caller}")]
        self.peaks = [status_mib("VmHWM")]  # one for each time between resets
        self.gpu_peaks: list[float] = []
        self.gpu_before = 0.0
        self.resident: list[float] = []  # before the first step, then after each
        self.epochs: list[list[float]] = [[]]  # moments: an epoch's beginning, its steps' ends

    def begin_at_first_call(self) -> None:
        """Take the first forward pass of any module for the moment before the first step."""

        def begin_once(module: nn.Module, inputs: Any) -> None:
            hook.remove()
            self.begin(module)

        hook = register_module_forward_pre_hook(begin_once)

    def begin(self, model: nn.Module) -> None:
        """Call this right before the first step."""
        for part in model.modules():
            if not isinstance(part, nn.Embedding):
                for weight in part.parameters(recurse=False):
                    weight.detach().sum()
        self.peaks.append(status_mib("VmHWM"))
        CLEAR.write_text("5")
        self.resident.append(status_mib("VmRSS"))
        if self.on_gpu:
            self.gpu_peaks.append(gpu_mib("max_memory_allocated"))
            torch.cuda.reset_peak_memory_stats()
            self.gpu_before = gpu_mib("memory_allocated")
        if not self.epochs[-1]:
            self.epochs[-1].append(self._now())

    def begin_epoch(self) -> None:
        """Call this where an epoch begins."""
        self.epochs.append([self._now()])

    def end_step(self) -> None:
        """Call this after each step; on a GPU its kernels may still be running."""
        self.epochs[-1].append(time.perf_counter())
        self.resident.append(status_mib("VmRSS"))

    def end_epoch(self) -> None:
        """Call this after an epoch's last step; what follows until the next one is not training."""
        self.epochs[-1][-1] = self._now()
        self.last_peak = status_mib("VmHWM")
        self.others_mib = sum(private_mib(process) for process in children() + self.callers)
        self.last_gpu_peak = gpu_mib("max_memory_allocated") if self.on_gpu else 0.0

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def result(self, lengths: list[int]) -> dict[str, Any]:
        """The measurements of the training, by field of its line.

        Args:
            lengths: tokens of each training example.
        """
        epochs = [moments for moments in self.epochs if len(moments) > 1]
        moments = epochs[-1]
        seconds = moments[-1] - moments[0]
        steps = [after - before for before, after in itertools.pairwise(moments)]
        peak = max(*self.peaks, self.last_peak)
        measured = {
            "examples_per_s": len(lengths) / seconds,
            "tokens_per_s": sum(lengths) / seconds,
            "step_ms_p50": 1000 * statistics.median(steps),
            "epoch_s": seconds,
            "peak_mib": peak,
            "all_mib": peak + self.others_mib,
            "resident_mib": self.resident[0],
            "above_mib": self.last_peak - self.resident[0],
            "over_steps_mib": self._over_steps(),
            "n_steps": sum(len(moments) - 1 for moments in epochs),
        }
        if self.on_gpu:
            measured["gpu_peak_mib"] = max(*self.gpu_peaks, self.last_gpu_peak)
            measured["gpu_above_mib"] = self.last_gpu_peak - self.gpu_before
        return measured

    def _over_steps(self) -> list[float]:
        """Resident memory after ten evenly spaced steps, the last one among them."""
        after = self.resident[1:]
        return [after[(number * len(after)) // 10 - 1] for number in range(1, 11) if after]
