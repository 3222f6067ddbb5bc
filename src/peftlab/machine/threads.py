"""torch's threads for a call in one's own process: no more than others leave cores for.

A thread of libgomp's that waits for another one spins 300,000 turns before it sleeps. Cells spin
less (execute.py), but how long is settled when torch is loaded. Beside other work such threads take
the cores from one another: on two cores, one of them busy, two threads train minilm at a thirtieth
of the speed of one (LOG.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from peftlab.machine.load import others_share, others_share_lately, threads_left


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
        wanted = threads_left(before, others_share_lately() if lately else others_share())
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
