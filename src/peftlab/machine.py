"""The machine: what a cell ran on, how busy it is with something else, and the threads that leaves.

A thread of libgomp's that waits for another one spins 300,000 turns before it sleeps. Cells spin
less (execute.py), but how long is settled when torch is loaded. Beside other work such threads take
the cores from one another: on two cores, one of them busy, two threads train minilm at a thirtieth
of the speed of one (LOG.md).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from peftlab.layers import quantiser
from peftlab.layers.cpuinfo import processor_lines
from peftlab.records.record import Environment

PACKAGES = (
    "peftlab",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
)
IF_INSTALLED = ("bitsandbytes",)
STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # a container sees its own there
BUSY = 0.3  # of a core: what others take below this is not worth a thread
KEPT_S = 10.0  # how long a look holds where looking again would cost more than the work itself


def environment(
    threads: int,
    precision: str | None = None,
    device: str = "cpu",
    index: int | None = None,
    kernels: str | None = None,
) -> Environment:
    """The environment of this process.

    Args:
        threads: of a training.
        precision: what the frozen weights are held in.
        device: what it ran on.
        index: which of several such devices; None for torch's current one.
        kernels: the engine's kernels in C++ that it used.
    """
    commit, dirty = own_commit()
    return Environment(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages=packages(),
        processor=processor(),
        gpu=gpu(index) if device == "cuda" else None,
        threads=threads,
        spin_count=os.environ.get("GOMP_SPINCOUNT", os.environ.get("OMP_WAIT_POLICY")),
        quantiser=quantiser(precision, device),
        kernels=kernels,
    )


def packages() -> dict[str, str]:
    """Versions of the packages that numbers may depend on."""
    found = {name: metadata.version(name) for name in PACKAGES}
    for name in IF_INSTALLED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The processor's name."""
    for line in processor_lines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":  # where platform calls every Mac of ten years "arm" or "i386"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if name := _said("sysctl", "-n", "machdep.cpu.brand_string").strip():
                return name
    return platform.processor() or platform.machine()


def gpu(index: int | None = None) -> str | None:
    """The CUDA device's name, None without one; without an index it is torch's current one."""
    return torch.cuda.get_device_name(index) if torch.cuda.is_available() else None


@functools.cache
def own_commit() -> tuple[str | None, bool | None]:
    """The commit that peftlab runs from, and whether its code differs; nulls if from a package.

    Files beside the code, such as results that are not committed yet, make no run another one.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit.strip(), bool(_git(root, "status", "--porcelain", "--", "src").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


@functools.cache
def own_code() -> str:
    """SHA-256 of peftlab's code as it lay when this was first asked for."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".cpp", ".h"}:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(root: Path, *words: str) -> str:
    return _said("git", "-C", str(root), *words)


def _said(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout


_last: tuple[float, float] | None = None  # when it was looked last, and what was seen


def others_share(seconds: float = 0.2) -> float | None:
    """The share of one core that others take, looked at for so long; None where no Linux tells.

    Only the cores that this process may use are looked at, so it can be more than 1.
    """
    global _last
    if not STAT.exists():
        return None
    started, before = time.perf_counter(), busy_elsewhere_s()
    time.sleep(seconds)
    ended = time.perf_counter()
    share = (busy_elsewhere_s() - before) / (ended - started)
    _last = ended, share
    return share


def others_share_lately() -> float | None:
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


@contextlib.contextmanager
def threads_for(device: str, asked: int | None = None, lately: bool = False) -> Iterator[None]:
    """`asked` threads in this context, or torch's own as far as others leave cores for them.

    Args:
        device: where the work is done; what is not on the CPU is left alone.
        asked: a number that somebody wants, whatever others do.
        lately: a look of some seconds ago will do, for work that may take less time than a look.
    """
    before = torch.get_num_threads()
    wanted = asked or before
    if asked is None and device == "cpu" and before > 1:
        share = others_share_lately() if lately else others_share()
        wanted = threads_left(before, share or 0.0)
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_mib(device: str) -> float | None:
    """MiB that a training on `device` can take: without swapping, or unallocated on CUDA.

    Of a container the limit counts too. None where it is not known: outside Linux, and on other
    devices.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    if device != "cpu" or not MEMINFO.exists():
        return None
    kib = re.search(r"^MemAvailable:\s*(\d+)", MEMINFO.read_text(), re.MULTILINE)
    known = [int(kib[1]) / 1024] if kib else []
    return min([*known, *_left_in_container()], default=None)


def _left_in_container() -> list[float]:
    """MiB below the limit of this control group (version 2), if there is one.

    Pages of files that nothing has read lately are used, and given back when something is needed.
    """
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text().strip()
    except OSError:
        return []
    stat = CGROUP / "memory.stat"
    told = stat.read_text() if stat.is_file() else ""
    stale = re.search(r"^inactive_file (\d+)$", told, re.MULTILINE)
    kept = int(used) - (int(stale[1]) if stale else 0)
    return [] if limit == "max" else [(int(limit) - kept) / 2**20]
