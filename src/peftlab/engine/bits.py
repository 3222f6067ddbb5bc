"""Random bits of dropout: of a counter where the kernels draw, of a stream where numpy does.

    lane  =  16 bits;   keep  ⇔  lane ≥ p·2¹⁶;   mask  =  0 or 1/(1 - p)      p exact to 2⁻¹⁷

The kernels have a mask drawn again on the way back instead of kept, so its bits are a function of
where they are (Philox 4x32-10, Salmon et al. 2011):

    lane  =  the one i mod 8 of philox(j, i div 8, place, call)               of row i, column j

The key is torch's own seed, which the loop sets before each step, and `call` counts since then;
where nobody has set it since the engine was entered, the key is drawn from torch's generator.
layers/vectors.h draws so; `philox` and `drawn` are its readable form.

Without the kernels four lanes share a word of SFC64, a stream that begins anew with torch's seed.
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

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox 4x32's
ROUNDS = 10
ROWS = 8  # that share the four words of a counter


class Counter(NamedTuple):
    """Where a call's random bits begin: no other call under the key has this number."""

    key: int
    call: int


def scale(p: float) -> float:
    """Of what dropout of probability `p` keeps, if that is anything."""
    return 1 / (1 - p) if p < 1 else 0.0


def drawn(sizes: tuple[int, int, int], p: float, counter: Counter) -> Tensor:
    """The mask of so many (places, rows, columns)."""
    place, row, column = np.meshgrid(*map(np.arange, sizes), indexing="ij")
    counters = [column, row // ROWS, place, np.full_like(row, counter.call)]
    words = philox(np.stack(counters).astype(np.uint64), counter.key)
    word = np.take_along_axis(words, (row % ROWS // 2)[None], axis=0)[0]
    lane = (word >> (row % 2 * 16).astype(np.uint64)) & 0xFFFF
    kept = (lane >= round(p * 2**16)) * scale(p)
    return torch.from_numpy(kept).float()


def philox(counters: np.ndarray[Any, Any], key: int) -> np.ndarray[Any, Any]:
    """Four words of 32 bits from four, (4, ...) each, in uint64; the key has 64 bits.

    >>> [hex(word) for word in philox(np.zeros(4, np.uint64), 0)]  # Random123's known answer
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    x, low = list(counters), np.uint64(0xFFFFFFFF)
    keys = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(ROUNDS):
        one, two = (x[2 * i] * np.uint64(MULTIPLIERS[i]) for i in range(2))
        x = [
            (two >> np.uint64(32)) ^ x[1] ^ np.uint64(keys[0]),
            two & low,
            (one >> np.uint64(32)) ^ x[3] ^ np.uint64(keys[1]),
            one & low,
        ]
        keys = [(k + weyl) & 0xFFFFFFFF for k, weyl in zip(keys, WEYL, strict=True)]
    return np.stack(x)


class Bits:
    """A stream of random 16-bit lanes that begins anew, with torch's seed, when that is another.

    Until then its key is drawn from torch's generator: no stream made under one seed is another's.
    The same seed set again is not noticed: to draw the same masks twice, leave the engine between.
    """

    def __init__(self) -> None:
        self.seed = torch.initial_seed()
        self.key: int | None = None

    def _follow(self) -> int:
        """The key of what is drawn now."""
        if torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint asks
            raise RequestError(
                "a layer is computed in the backward pass, where the engine would draw other masks "
                "than it drew before; enable checkpointing before the engine is entered, by "
                "model.gradient_checkpointing_enable(), or train with fast=False"
            )
        seed = torch.initial_seed()
        if seed != self.seed:
            return self._begin(seed, seed)
        if self.key is None:
            return self._begin(seed, int(torch.randint(2**63 - 1, (), device="cpu")))
        return self.key

    def _begin(self, seed: int, key: int) -> int:
        self.seed, self.key, self.calls = seed, key, 0
        self.stream = np.random.SFC64(key)
        return key

    def counter(self) -> Counter:
        """Where the bits of the next call of a kernel begin."""
        key = self._follow()
        self.calls += 1
        return Counter(key % 2**63, self.calls - 1)

    def lanes(self, size: int) -> Tensor:
        """The next `size` lanes, int16."""
        self._follow()
        words = self.stream.random_raw(-(-size // 4))
        return torch.from_numpy(words.view(np.int16))[:size]

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        """0 with probability `p`, else 1/(1 - p)."""
        lanes = self.lanes(shape.numel()).view(shape)
        last = round(p * 2**16) - 2**15 - 1  # lanes up to this one drop
        if last < -(2**15):
            return torch.ones(shape, dtype=dtype)
        if last == 2**15 - 1:
            return torch.zeros(shape, dtype=dtype)
        if dtype == torch.bfloat16:
            return _bfloat16(lanes, last, scale(p))
        return (lanes > last).to(dtype).mul_(scale(p))


class NoBits(Bits):
    """Masks of the right shape and no content, for a model that has only shapes."""

    def counter(self) -> Counter:
        return Counter(0, 0)

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        lanes = torch.empty(shape, dtype=torch.int16)  # as large, and there as long, as real ones
        return torch.empty_like(lanes, dtype=dtype)


def _bfloat16(lanes: Tensor, last: int, scale: float) -> Tensor:
    """(lanes > last) · scale in two passes over integers.

    Clamped to {last, last + 1} and taken times the 16 bits of `scale`, less `last` times them,
    a lane is all zeros or those bits; int16 arithmetic wraps, so this is exact.
    """
    start, bits = _terms(last, scale)
    return torch.add(start, lanes.clamp_(last, last + 1), alpha=bits).view(torch.bfloat16)


@functools.cache
def _terms(last: int, scale: float) -> tuple[Tensor, int]:
    bits = int(torch.tensor(scale, dtype=torch.bfloat16).view(torch.int16))
    return torch.tensor((-last * bits + 2**15) % 2**16 - 2**15, dtype=torch.int16), bits
