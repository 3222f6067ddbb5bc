"""The heap of a training: what a step frees, the next one takes again, and nobody searches it.

glibc gives the top of its heap back to the kernel whenever enough of it is free, which after a
backward pass it is, and the next step faults the same pages in again, each of them zeroed: 5 % of
a step on a CPU (LOG.md). So inside the context nothing is given back; before and behind it
everything that is free is, loading's leftovers among it.

Where there is no glibc (macOS, Windows, musl) this does nothing.

Python's collector is told to leave alone what is there before a training's first step, all objects
of the libraries: searching them again and again takes 3 % of a small model's time (LOG.md). To
search them once before takes .15 s and more, so nothing shorter than a training asks for it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them, malloc.h
MIB = 2**20
LARGEST_ON_HEAP = 32 * MIB  # glibc's own limit, which it comes to by itself as blocks are freed
NEVER = 2**31 - 1


@contextmanager
def kept_heap() -> Iterator[None]:
    """Give back what is free now, then nothing until the context ends."""
    libc = _glibc()
    if libc is None:
        yield
        return
    give_back()
    libc.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_ON_HEAP)  # as glibc itself pairs the two
        give_back()


@contextmanager
def unsearched() -> Iterator[None]:
    """Keep Python's collector from what exists now, until the context ends."""
    if gc.get_freeze_count():  # whoever froze it thaws it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back() -> None:
    """Return what is free on the heap to the kernel."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
