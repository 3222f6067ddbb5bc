"""The heap: its free memory goes back to the kernel at both ends of the context, none between."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys

import pytest

from peftlab.engine.heap import gc_frozen

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
BLOCKS = 64  # of one MiB
SCRIPT = f"""
import json, os
from pathlib import Path
import torch
from peftlab.engine.heap import MIB, keep_heap

def resident_mib():  # without pages of files, which the kernel takes back whenever it likes
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / MIB

def use_and_free():
    held = [torch.ones(MIB, dtype=torch.uint8) for _ in range({BLOCKS})]

with keep_heap():
    before = resident_mib()
    use_and_free()
    inside = resident_mib()
print(json.dumps([inside - before, resident_mib() - before]))
"""


@needs_glibc
def test_what_is_freed_is_kept_inside_and_given_back_behind() -> None:
    """In a process of its own: the top of a heap that outgrew its place can't be given back."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, behind = json.loads(done.stdout)
    assert kept > 0.8 * BLOCKS
    assert behind < 0.2 * BLOCKS


def test_the_collector_leaves_alone_what_was_there_before(thawed: None) -> None:
    assert gc.get_freeze_count() == 0
    with gc_frozen():
        assert gc.get_freeze_count() > 10_000
        with gc_frozen():
            pass
        assert gc.get_freeze_count() > 10_000  # whoever froze it thaws it
    assert gc.get_freeze_count() == 0
