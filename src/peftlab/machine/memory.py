"""How much memory is free for a training."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def available_mib(device: str) -> float | None:
    """MiB that a training on `device` can take: without swapping, or unallocated on CUDA.

    None where that is not known: outside Linux, and on other devices.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    if device != "cpu" or not MEMINFO.exists():
        return None
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return None
