"""The machine: what a cell ran on, how busy other processes keep it, and how many threads to use.

A libgomp thread that waits for another one spins 300,000 turns before it sleeps. Cells spin less
(execute.py), but the number of turns is fixed when torch is loaded. Beside other work such threads
take the cores from one another: on two cores, one of them busy, two threads train minilm at a
thirtieth of the speed of one (LOG.md).
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
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from peftlab.layers import quantiser
from peftlab.layers.cpuinfo import processor_lines, processor_words
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
OPTIONAL_PACKAGES = ("bitsandbytes",)
# as Linux names those that decide how fast a training is, the widest first
INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
STAT = Path("/proc/stat")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # in a container, that of the container
BUSY_SHARE = 0.3  # of a core: this much of what others take costs no thread
SHARE_VALID_S = 10.0  # how long a share holds where measuring again may cost more than the work
LOOK_VALID_S = 60.0  # the longest time whose average tells what others take now


def environment(
    threads: int,
    precision: str | None = None,
    device: str = "cpu",
    index: int | None = None,
    kernels: str | None = None,
) -> Environment:
    """The environment of this process.

    Args:
        threads: how many the training used.
        precision: of the frozen weights.
        device: the type of the device that the training ran on.
        index: which of several such devices; None for torch's current one.
        kernels: the engine's C++ kernels that the training used.
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
    """Versions of the packages that results may depend on."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def processor() -> str:
    """The processor's name and the widest of its `INSTRUCTION_SETS`: "AMD EPYC, avx512_bf16".

    A virtual machine calls processors with and without AVX-512 by one name, and a training is five
    times as fast on the one as on the other.
    """
    words = processor_words()
    widest = next((name for name in INSTRUCTION_SETS if name in words), None)
    return f"{_processor_name()}, {widest}" if widest else _processor_name()


def _processor_name() -> str:
    for line in processor_lines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":  # platform says "arm" or "i386" for every Mac of ten years
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if name := _output_of("sysctl", "-n", "machdep.cpu.brand_string").strip():
                return name
    return platform.processor() or platform.machine()


def gpu(index: int | None = None) -> str | None:
    """The name of the CUDA device, by default torch's current one; None if there is no CUDA."""
    return torch.cuda.get_device_name(index) if torch.cuda.is_available() else None


@functools.cache
def own_commit() -> tuple[str | None, bool | None]:
    """The commit that peftlab runs from, and whether src/ differs from it; Nones if from a package.

    Changes outside src/, such as results that are not committed yet, do not count.
    """
    root = Path(__file__).parents[2]
    # a copy inside another project's tree is none of that one's commits
    if not (root / ".git").exists() or Path(__file__).parent != root / "src" / "peftlab":
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit.strip(), bool(_git(root, "status", "--porcelain", "--", "src").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


@functools.cache
def own_code() -> str:
    """SHA-256 of peftlab's code as it was at the first call."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".cpp", ".h"}:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    return _output_of("git", "-C", str(root), *arguments)


def _output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout


class _Look(NamedTuple):
    """The end of a look at what other processes take: when, their seconds so far, the share."""

    at: float
    busy_s: float
    share: float


_last_look: _Look | None = None


def others_share(seconds: float = 0.2) -> float | None:
    """The share of one core that other processes take, measured for `seconds`; None outside Linux.

    It is the sum over the cores that this process may use, so it can be more than 1.
    """
    if not STAT.exists():
        return None
    started, before_s = time.perf_counter(), busy_elsewhere_s()
    time.sleep(seconds)
    return _share_since(started, before_s)


def others_share_lately() -> float | None:
    """`others_share` as it was at most `SHARE_VALID_S` ago, or on average since the last look.

    Only where that lies a minute back it takes a fifth of a second: a server answers meanwhile.
    """
    age = math.inf if _last_look is None else time.perf_counter() - _last_look.at
    if _last_look is None or age > LOOK_VALID_S:
        return others_share()
    if age < SHARE_VALID_S:
        return _last_look.share
    return _share_since(_last_look.at, _last_look.busy_s)


def _share_since(started: float, before_s: float) -> float:
    global _last_look
    ended, busy_s = time.perf_counter(), busy_elsewhere_s()
    _last_look = _Look(ended, busy_s, (busy_s - before_s) / (ended - started))
    return _last_look.share


def threads_left(threads: int, share: float) -> int:
    """How many of `threads` to use when others take `share` of a core: one for each core left.

    >>> threads_left(64, share=0.1)
    64
    >>> threads_left(1, share=64.0)
    1
    """
    taken = math.ceil(share - BUSY_SHARE)
    return max(1, min(threads, n_cores() - taken)) if taken > 0 else threads


def default_threads() -> int:
    """Torch's number of threads, but no more than a container's quota of cores.

    Torch counts the cores that it may run on, of which a quota leaves all: threads above it wait
    for each other's turns, for four times as long a step with two on one core. OMP_NUM_THREADS is
    the user's word.
    """
    threads = torch.get_num_threads()
    return threads if "OMP_NUM_THREADS" in os.environ else min(threads, n_cores())


def n_cores() -> int:
    """How many cores this process may keep busy: its own, and within its container's quota."""
    return max(1, math.ceil(min(len(own_cores()), _quota())))


def _quota() -> float:
    """The quota of cores of this control group, version 2 or 1; inf if there is none."""
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            folder = CGROUP / "cpu"
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text().strip() for name in names)
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def own_cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_elsewhere_s() -> float:
    """Seconds so far that this process's cores worked for others, or a hypervisor took them away.

    Others are all processes but this one and those of its children that have ended.
    """
    import resource  # Windows has none

    cores = {f"cpu{core}" for core in own_cores()}
    busy = 0
    for line in STAT.read_text().splitlines():
        name, *ticks = line.split()[:9]
        if name in cores:
            counts = [int(number) for number in ticks]
            busy += sum(counts) - counts[3] - counts[4]  # idle, waiting for a disk
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return busy / os.sysconf("SC_CLK_TCK") - own_s


class _Nesting(threading.local):
    """How many contexts of `threads_for` this thread of Python's is in."""

    depth = 0


_nesting, _threads_lock = _Nesting(), threading.Lock()
_found: list[int] = []  # what each open context found; the first one found torch's own number


@contextlib.contextmanager
def threads_for(device: str, requested: int | None = None, lately: bool = False) -> Iterator[None]:
    """Run the context with `requested` threads, or with torch's as far as others leave cores.

    Args:
        device: the type of the device that does the work; the threads are adapted for a CPU only.
        requested: used whatever other processes do.
        lately: whether a share measured some seconds ago will do: measuring may take longer than
            the work.
    """
    with _own_threads() as own:
        threads = requested or min(own, default_threads())
        if requested is None and device == "cpu" and threads > 1:
            share = others_share_lately() if lately else others_share()
            threads = threads_left(threads, share or 0.0)
        torch.set_num_threads(threads)
        yield


@contextlib.contextmanager
def _own_threads() -> Iterator[int]:
    """The number of torch's threads, put back after; of overlapping contexts as the first found it.

    A second thread of Python's would find the lowered number of the first, and put that back.
    """
    with _threads_lock:
        is_outermost = _nesting.depth == 0
        own = _found[0] if _found and is_outermost else torch.get_num_threads()
        _found.append(own)
    _nesting.depth += 1
    try:
        yield own
    finally:
        _nesting.depth -= 1
        with _threads_lock:
            _found.pop()
            torch.set_num_threads(own)


def available_mib(device: str) -> float | None:
    """MiB that a training on `device` can take: without swapping, or unallocated on CUDA.

    In a container its limit counts too. None if unknown: outside Linux, and on other devices.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    if device != "cpu" or not MEMINFO.exists():
        return None
    kib = re.search(r"^MemAvailable:\s*(\d+)", MEMINFO.read_text(), re.MULTILINE)
    of_system = [int(kib[1]) / 1024] if kib else []
    return min([*of_system, *_left_in_container()], default=None)


def _left_in_container() -> list[float]:
    """MiB left below the limit of this control group, version 2 or 1; empty if there is no limit.

    Cached file pages that nothing has read lately count as free: they are given back on demand.
    """
    folder, names = CGROUP, ("memory.max", "memory.current")
    if not (folder / names[0]).is_file():
        folder, names = CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, used = ((folder / name).read_text().strip() for name in names)
    except OSError:
        return []
    stat = folder / "memory.stat"
    statistics = stat.read_text() if stat.is_file() else ""
    stale = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    held = int(used) - (int(stale[1]) if stale else 0)
    return [] if limit == "max" else [(int(limit) - held) / 2**20]
