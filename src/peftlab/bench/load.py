"""How busy the machine is with something else."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


def others_share(seconds: float = 0.2) -> float:
    """The share of one core that others take, looked at for so long; 0 where Linux can't tell."""
    if not STAT.exists():
        return 0.0
    started, before = time.perf_counter(), busy_elsewhere_s()
    time.sleep(seconds)
    return (busy_elsewhere_s() - before) / (time.perf_counter() - started)


def busy_elsewhere_s() -> float:
    """Seconds that the cores have worked so far for others, or were taken away.

    All but this process and those of its children that have ended.
    """
    import resource  # Windows has none

    ticks = [int(number) for number in STAT.read_text().split("\n")[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # idle, waiting for a disk
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK") - sum(own.ru_utime + own.ru_stime for own in used)
