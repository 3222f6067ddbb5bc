"""Dropout's bits from a counter, so that a mask is drawn again instead of kept.

    lane  =  the one i mod 8, of 16 bits, of philox(j, i div 8, place, call)      of row i, column j
    keep  ⇔  lane ≥ p·2¹⁶

Philox 4x32-10 (Salmon et al. 2011). The key is torch's own seed, which the loop sets before each
step, and `call` counts since then: a step's masks depend on (seed, step) alone. The kernels draw by
layers/vectors.h, of which this is the readable form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # Philox 4x32's
ROUNDS = 10


class Counter(NamedTuple):
    """Where a call's random bits begin: no other call under the key has this number."""

    key: int
    call: int


def mask(sizes: tuple[int, int, int], p: float, counter: Counter) -> Tensor:
    """M for so many (places, rows, columns): 0 with probability `p`, else 1/(1 - p)."""
    place, row, column = np.meshgrid(*map(np.arange, sizes), indexing="ij")
    counters = [column, row // 8, place, np.full_like(row, counter.call)]
    words = philox(np.stack(counters).astype(np.uint64), counter.key)
    word = np.take_along_axis(words, (row % 8 // 2)[None], axis=0)[0]
    lane = (word >> (row % 2 * 16).astype(np.uint64)) & 0xFFFF
    kept = (lane >= round(p * 2**16)) / (1 - p)
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
