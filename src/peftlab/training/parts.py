"""The parts that a batch is taken in, each a forward and a backward pass.

There are as many as are asked for (`accumulation`), or as keep what a CPU holds for the backward
pass small.
"""

from __future__ import annotations

import math

from peftlab.training.batches import Encoded, chunks
from peftlab.training.plan import Plan

# The tokens of a batch that a CPU takes at once, padding counted: above the first number it is
# halved, since a part saves half as much for its backward pass; above twice the second it is cut
# further, seldom, since each part costs the many small operations once more (LOG.md).
HALVED_TOKENS, PART_TOKENS = 512, 1024


def parts_of(indices: list[int], train: Encoded, plan: Plan) -> list[list[int]]:
    """The parts that a batch of the examples at `indices` is taken in."""
    count = n_parts(len(indices), train.width(indices), plan)
    if count > 1:  # neighbours in length, so that a part is not padded to the whole's longest
        indices = sorted(indices, key=train.lengths.__getitem__)
    return chunks(indices, math.ceil(len(indices) / count))


def n_parts(size: int, width: int, plan: Plan) -> int:
    """In how many parts to take a batch of `size` examples, padded to `width` tokens."""
    parts = plan.settings.accumulation
    if plan.by_tokens:
        tokens = size * width
        halves = min(2, math.ceil(tokens / HALVED_TOKENS))
        parts = max(parts, halves, math.ceil(tokens / PART_TOKENS))
    return min(size, parts)
