"""The heap: its free memory goes back to the kernel at both ends of the context, none between."""

from __future__ import annotations

import gc
import os
import platform
from pathlib import Path

import pytest
import torch

from peftlab.layers.engine.heap import MIB, kept_heap, unsearched

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
BLOCK, BLOCKS = MIB, 64


def resident_mib() -> float:
    """Without pages of files, which the kernel takes back whenever it wants memory."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / MIB


def use_and_free() -> None:
    held = [torch.ones(BLOCK, dtype=torch.uint8) for _ in range(BLOCKS)]
    del held


@needs_glibc
def test_what_is_freed_is_kept_inside_and_given_back_behind() -> None:
    gc.collect()  # models of tests before this one, else they may be given back inside
    with kept_heap():
        before = resident_mib()
        use_and_free()
        assert resident_mib() - before > 0.8 * BLOCKS
    assert resident_mib() - before < 0.2 * BLOCKS


def test_the_collector_leaves_alone_what_was_there_before() -> None:
    assert gc.get_freeze_count() == 0
    with unsearched():
        assert gc.get_freeze_count() > 10_000
        with unsearched():
            pass
        assert gc.get_freeze_count() > 10_000  # whoever froze it thaws it
    assert gc.get_freeze_count() == 0
