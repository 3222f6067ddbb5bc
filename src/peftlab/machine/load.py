"""How busy the machine is with something else."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = 0.3  # of a core: what others take below this is not worth a thread
KEPT_S = 10.0  # how long a look holds where looking again would cost more than the work itself

_last: tuple[float, float] | None = None  # when it was looked last, and what was seen


def others_share(seconds: float = 0.2) -> float:
    """The share of one core that others take, looked at for so long; 0 where Linux can't tell.

    Only the cores that this process may use are looked at, so it can be more than 1.
    """
    global _last
    if not STAT.exists():
        return 0.0
    started, before = time.perf_counter(), busy_elsewhere_s()
    time.sleep(seconds)
    ended = time.perf_counter()
    share = (busy_elsewhere_s() - before) / (ended - started)
    _last = ended, share
    return share


def others_share_lately() -> float:
    """`others_share` as it was at most `KEPT_S` ago."""
    if _last is not None and time.perf_counter() - _last[0] < KEPT_S:
        return _last[1]
    return others_share()


def threads_left(threads: int, share: float) -> int:
    """So many of `threads` as there are cores for beside others who take `share` of a core.

    >>> threads_left(64, share=0.1)
    64
    >>> threads_left(1, share=64.0)
    1
    """
    taken = math.ceil(share - BUSY)
    return max(1, min(threads, len(own_cores()) - taken)) if taken > 0 else threads


def own_cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_elsewhere_s() -> float:
    """Seconds that this process's cores have worked so far for others, or were taken away.

    All but this process and those of its children that have ended.
    """
    import resource  # Windows has none

    wanted = {f"cpu{core}" for core in own_cores()}
    busy = 0
    for line in STAT.read_text().splitlines():
        name, *ticks = line.split()[:9]
        if name in wanted:
            spent = [int(number) for number in ticks]
            busy += sum(spent) - spent[3] - spent[4]  # idle, waiting for a disk
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy / os.sysconf("SC_CLK_TCK") - sum(own.ru_utime + own.ru_stime for own in used)
