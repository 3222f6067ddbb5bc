"""Dropout whose masks cost little: 16 random bits an element instead of a draw from a distribution.

    keep  ⇔  bits ≥ p·2¹⁶                 p exact to 2⁻¹⁷
    mask  =  0 or 1/(1 - p), in x's precision, kept for the backward pass

Four elements share a 64-bit word of SFC64 (numpy). The stream begins anew whenever torch's own
seed is set, as the loop does before each step: a step's masks depend on (seed, step) alone.
torch's own draw costs as much as a matrix product here (LOG.md).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn


class Bits:
    """A stream of random 16-bit lanes that follows torch's seed."""

    def __init__(self) -> None:
        self.seed: int | None = None

    def lanes(self, size: int) -> Tensor:
        """The next `size` lanes, int16."""
        if self.seed != torch.initial_seed():
            self.seed = torch.initial_seed()
            self.stream = np.random.SFC64(self.seed)
        words = self.stream.random_raw(-(-size // 4))
        return torch.from_numpy(words.view(np.int16))[:size]

    def mask(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        """0 with probability `p`, else 1/(1 - p)."""
        lanes = self.lanes(shape.numel()).view(shape)
        last = round(p * 2**16) - 2**15 - 1  # lanes up to this one drop
        if last < -(2**15):
            return torch.ones(shape, dtype=dtype)
        if dtype == torch.bfloat16:
            return _bfloat16(lanes, last, 1 / (1 - p))
        return (lanes > last).to(dtype).mul_(1 / (1 - p))


class NoBits(Bits):
    """Masks of the right shape and no content, for a model that has only shapes."""

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


class FastDropout(nn.Dropout):
    """Dropout of probability `p` with masks from `bits`."""

    def __init__(self, p: float, bits: Bits) -> None:
        super().__init__(p)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.bits.mask(x.shape, self.p, x.dtype)
