"""Random bits for dropout: from a counter where the kernels draw, from a stream where numpy does.

    lane  =  16 bits;   keep  ⇔  lane ≥ p·2¹⁶;   mask  =  0 or 1/(1 - p)      p exact to 2⁻¹⁷

The kernels draw a mask again in the backward pass instead of keeping it, so its bits are a function
of their position (Philox 4x32-10, Salmon et al. 2011):

    lane  =  number i mod 8 of philox(j, i div 8, place, call)                of row i, column j

The key is torch's own seed, which the loop sets before each step, and `call` counts the calls since
then. If no seed was set since the engine was entered, the key is drawn from torch's generator.
layers/vectors.h implements this; `philox` and `draw_mask` are its readable form.

Without the kernels four lanes share a word of SFC64, a stream that restarts with torch's seed.
torch's own draw costs as much as a matrix product here (LOG.md). Either way a step's masks depend
on (seed, step) alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peftlab.errors import RequestError
from peftlab.models.state import not_inside

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox 4x32's
ROUNDS = 10
ROWS = 8  # they share the four words of a counter


class Counter(NamedTuple):
    """The start of a kernel call's random bits: its number is unique under the key."""

    key: int
    call: int


def keep_scale(p: float) -> float:
    """The scale of the numbers that dropout of probability `p` keeps; 0 if it keeps none."""
    return 1 / (1 - p) if p < 1 else 0.0


def draw_mask(sizes: tuple[int, int, int], p: float, counter: Counter) -> Tensor:
    """The mask that the kernels draw, of `sizes` (places, rows, columns)."""
    place, row, column = np.meshgrid(*map(np.arange, sizes), indexing="ij")
    counters = [column, row // ROWS, place, np.full_like(row, counter.call)]
    words = philox(np.stack(counters).astype(np.uint64), counter.key)
    word = np.take_along_axis(words, (row % ROWS // 2)[None], axis=0)[0]
    lane = (word >> (row % 2 * 16).astype(np.uint64)) & 0xFFFF
    mask = (lane >= round(p * 2**16)) * keep_scale(p)
    return torch.from_numpy(mask).float()


def philox(counters: np.ndarray[Any, Any], key: int) -> np.ndarray[Any, Any]:
    """Four words of 32 bits from four, (4, ...) each, in uint64; the key has 64 bits.

    >>> [hex(word) for word in philox(np.zeros(4, np.uint64), 0)]  # Random123's known answer
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    x, low = list(counters), np.uint64(0xFFFFFFFF)
    keys = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(ROUNDS):
        product_0, product_1 = (x[2 * i] * np.uint64(MULTIPLIERS[i]) for i in range(2))
        x = [
            (product_1 >> np.uint64(32)) ^ x[1] ^ np.uint64(keys[0]),
            product_1 & low,
            (product_0 >> np.uint64(32)) ^ x[3] ^ np.uint64(keys[1]),
            product_0 & low,
        ]
        keys = [(k + weyl) & 0xFFFFFFFF for k, weyl in zip(keys, WEYL, strict=True)]
    return np.stack(x)


class Bits:
    """A stream of random 16-bit lanes that restarts when torch's seed changes, with the new seed.

    Until then its key is drawn from torch's generator, so streams made under one seed differ.
    Setting the same seed again is not noticed: to draw the same masks twice, leave the engine
    between.
    """

    def __init__(self) -> None:
        self.seed = torch.initial_seed()
        self.key: int | None = None

    def __getstate__(self) -> Any:
        raise not_inside("copied")

    def _current_key(self) -> int:
        """The key of the next draw; restarts the stream if the seed has changed."""
        if torch._C._current_graph_task_id() != -1:  # torch.utils.checkpoint tests this, too
            raise RequestError(
                "a layer is computed in the backward pass, where the engine would draw other masks "
                "than it drew before; enable checkpointing before the engine is entered, by "
                "model.gradient_checkpointing_enable(), or train with fast=False"
            )
        seed = torch.initial_seed()
        if seed != self.seed:
            return self._restart(seed, seed)
        if self.key is None:
            return self._restart(seed, int(torch.randint(2**63 - 1, (), device="cpu")))
        return self.key

    def _restart(self, seed: int, key: int) -> int:
        self.seed, self.key, self.calls = seed, key, 0
        self.stream = np.random.SFC64(key)
        return key

    def counter(self) -> Counter:
        """The counter of the next call of a kernel."""
        key = self._current_key()
        self.calls += 1
        return Counter(key % 2**63, self.calls - 1)

    def lanes(self, size: int) -> Tensor:
        """The next `size` lanes, int16."""
        self._current_key()
        words = self.stream.random_raw(-(-size // 4))
        return torch.from_numpy(words.view(np.int16))[:size]

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        """0 with probability `p`, else 1/(1 - p)."""
        lanes = self.lanes(shape.numel()).view(shape)
        last_dropped = round(p * 2**16) - 2**15 - 1  # lanes up to this value are dropped
        if last_dropped < -(2**15):
            return torch.ones(shape, dtype=dtype)
        if last_dropped == 2**15 - 1:
            return torch.zeros(shape, dtype=dtype)
        if dtype == torch.bfloat16:
            return _bfloat16(lanes, last_dropped, keep_scale(p))
        return (lanes > last_dropped).to(dtype).mul_(keep_scale(p))


class NoBits(Bits):
    """Masks of the right shape without numbers, for a model that has only shapes."""

    def counter(self) -> Counter:
        return Counter(0, 0)

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        lanes = torch.empty(shape, dtype=torch.int16)  # as large and as long-lived as real ones
        return torch.empty_like(lanes, dtype=dtype)


def _bfloat16(lanes: Tensor, last: int, scale: float) -> Tensor:
    """(lanes > last) · scale in two passes over integers; `last` is the last lane dropped.

    A lane, clamped to {last, last + 1}, less `last`, is 0 or 1. Times the 16 bits of `scale` it is
    all zeros or those bits; int16 arithmetic wraps, so this is exact.
    """
    start, bits = _affine_terms(last, scale)
    return torch.add(start, lanes.clamp_(last, last + 1), alpha=bits).view(torch.bfloat16)


@functools.cache
def _affine_terms(last: int, scale: float) -> tuple[Tensor, int]:
    bits = int(torch.tensor(scale, dtype=torch.bfloat16).view(torch.int16))
    return torch.tensor((-last * bits + 2**15) % 2**16 - 2**15, dtype=torch.int16), bits
