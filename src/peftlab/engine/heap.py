"""Memory in a training: steps reuse what is freed, and Python's collector skips older objects.

glibc returns the top of its heap to the kernel whenever enough of it is free, as it is after a
backward pass, and the next step faults the same pages in again, each of them zeroed: 5 % of a step
on a CPU (LOG.md). So inside `keep_heap` nothing is returned. Before and after it all free memory
is, including that left from loading.

Without glibc (macOS, Windows, musl) `keep_heap` does nothing.

Inside `gc_frozen` Python's collector skips the objects that exist before a training's first step,
all of the libraries' among them: searching them again and again takes 3 % of a small model's time
(LOG.md). The one search before takes .15 s and more, so only a training uses it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's parameters, malloc.h
MIB = 2**20
LARGEST_ON_HEAP = 32 * MIB  # glibc's own limit, which its threshold nears as blocks are freed
NEVER = 2**31 - 1


@contextmanager
def keep_heap() -> Iterator[None]:
    """Return free memory to the kernel now, and none from then on until the context ends."""
    libc = _glibc()
    if libc is None:
        yield
        return
    trim_heap()
    libc.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_ON_HEAP)  # glibc pairs the two so
        trim_heap()


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Let Python's collector skip all objects that exist now, until the context ends."""
    if gc.get_freeze_count():  # frozen by somebody else, who will unfreeze it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def trim_heap() -> None:
    """Return the heap's free memory to the kernel."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
