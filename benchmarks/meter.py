"""The clock and the memory of one side: both sides use this one, so both mean the same.

Speed     the last epoch, from its beginning to the end of its last step: batches, forward,
          backward, optimizer and all that the loop does between them; padding is no token
Resident  VmRSS right before the first forward pass: imports, model, optimizer, tokens
Above     the peak (VmHWM) from there to the end of the last epoch, less what was resident:
          what training itself needs
Peak      VmHWM of the whole process to there, imports and loading counted
All       the peak, and what the processes beside this one hold alone at the end of the last epoch:
          those that it started, and the command that waits for it; what two map counts once
GPU peak  the same two of what torch has allocated on a CUDA device, where one is used; the clock
          waits for the device at the epochs' ends only

The moment before the first step is told, or found by a hook on all modules, gone once called: our
engine would take such a hook for a caller's own code, and leave the model as it is.
fp32 weights are mapped from their file and come into memory when first read; they are read then,
the embedding apart, of which training reads some rows, so that they count as resident.
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
    """What torch has allocated on the device (memory_allocated) or had (max_memory_allocated)."""
    return float(getattr(torch.cuda, name)()) / 2**20


def children() -> list[Path]:
    """The folders in /proc of this process's children."""
    own, found = f"PPid:\t{os.getpid()}\n", []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has just ended
            if own in (folder / "status").read_text():
                found.append(folder)
    return found


def private_mib(folder: Path) -> float:
    """What the process of a folder in /proc holds and no other one maps."""
    lines = (folder / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


class Meter:
    """Made once the imports are done; told of each epoch's beginning, steps' ends and end.

    `caller` is the process that waits for this one and counts with it; None for none.
    """

    def __init__(self, device: str = "cpu", caller: int | None = None) -> None:
        self.on_gpu = device == "cuda"
        self.caller = [] if caller is None else [Path(f"/proc/{caller}")]
        self.peaks = [status_mib("VmHWM")]  # of the times between resets
        self.gpu_peaks: list[float] = []
        self.gpu_before = 0.0
        self.resident: list[float] = []  # before the first step, then after each
        self.epochs: list[list[float]] = [[]]  # moments: an epoch's beginning, its steps' ends

    def begin_at_first_call(self) -> None:
        """Let the first forward pass of any module be the moment before the first step."""

        def first(module: nn.Module, inputs: Any) -> None:
            hook.remove()
            self.begin(module)

        hook = register_module_forward_pre_hook(first)

    def begin(self, model: nn.Module) -> None:
        """The moment before the first step."""
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

    def epoch(self) -> None:
        """An epoch begins."""
        self.epochs.append([self._now()])

    def step(self) -> None:
        """A step has ended, on a GPU as far as the processor sees."""
        self.epochs[-1].append(time.perf_counter())
        self.resident.append(status_mib("VmRSS"))

    def end_epoch(self) -> None:
        """The last step of an epoch has ended; what comes until the next one is not training."""
        self.epochs[-1][-1] = self._now()
        self.last_peak = status_mib("VmHWM")
        self.beside = sum(private_mib(process) for process in children() + self.caller)
        self.last_gpu_peak = gpu_mib("max_memory_allocated") if self.on_gpu else 0.0

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def result(self, lengths: list[int]) -> dict[str, Any]:
        """What was measured.

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
            "all_mib": peak + self.beside,
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
        """What was resident after ten steps at even distances, the last one among them."""
        after = self.resident[1:]
        return [after[(number * len(after)) // 10 - 1] for number in range(1, 11) if after]
