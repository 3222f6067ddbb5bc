"""Attention of a packed batch, sentence by sentence, in C++ where a compiler is found.

    S = Q Kᵀ · scaling + positions,  P = softmax(S),  Y = (P ∘ M) V        a head of a sentence

Plain products (attention.py) do the same in a padded batch and hold P and M until the backward
pass; without a compiler batches are padded. Here no place is padding, and all that is kept is
log Σ exp S of each row: the rest is computed again (Dao et al. 2022), M from a counter (bits.py),
at the place sentence · heads + head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftlab.engine.bits import Counter
from peftlab.engine.packing import Packing
from peftlab.layers import native

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-ffp-contract=fast",)
DTYPES = {torch.float32, torch.bfloat16}  # that sentences.cpp takes


class How(NamedTuple):
    """Attention beside its tensors.

    Attributes:
        packing: how the batch lies.
        heads: of a layer.
        scaling: of a score.
        asked: of how many rows of a sentence, from the first on, outputs are read; 0 for all.
        p: of dropout.
        counter: of its bits.
    """

    packing: Packing
    heads: int
    scaling: float
    asked: int
    p: float
    counter: Counter

    @property
    def numbers(self) -> tuple[Any, ...]:
        """As the operations take them."""
        return (self.heads, self.scaling, self.asked, self.p, *self.counter)


def is_built() -> bool:
    """Whether sentences.cpp is there for this process; builds it if need be."""
    shapes = {"attention": _shapes, "attention_gradient": _gradient_shapes}
    return native.is_built(SOURCE, *FLAGS, **shapes)


def attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, how: How
) -> Tensor:
    """(1, heads, rows, width) each -> (1, rows, heads, width), 0 where nothing is asked for.

    `positions` (heads, length, length), in fp32, are added to the scores.
    """
    found: Tensor = _Sentences.apply(query, key, value, positions, how)  # type: ignore[no-untyped-call]
    return found


class _Sentences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, how: How
    ) -> Tensor:
        dtype = key.dtype if key.dtype in DTYPES else torch.float32  # of a caller's autocast
        rows = [x[0].transpose(0, 1).flatten(1).to(dtype) for x in (query, key, value)]
        y, log_sums = torch.ops.peftlab.attention(
            *rows, how.packing.bounds, positions, *how.numbers
        )
        ctx.save_for_backward(*rows, positions, log_sums)
        ctx.how = how
        found: Tensor = y.view(1, len(y), how.heads, -1).to(key.dtype)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *rows, positions, log_sums = ctx.saved_tensors
        how: How = ctx.how
        g = gradients[0][0].flatten(1).contiguous().to(rows[0].dtype)
        of_positions = ctx.needs_input_grad[3]
        found, g_positions = torch.ops.peftlab.attention_gradient(
            g, *rows, how.packing.bounds, positions, log_sums, of_positions, *how.numbers
        )
        parts = found.view(1, len(g), 3, how.heads, -1).permute(2, 0, 3, 1, 4)
        return *parts.unbind(), g_positions if of_positions else None, None


def _shapes(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, positions: Any, *how: Any) -> Any:
    return q.new_empty(q.shape), q.new_empty(how[0], len(q), dtype=torch.float32)


def _gradient_shapes(g: Tensor, q: Tensor, *others: Any) -> Any:
    positions, of_positions = others[3], others[5]
    found = q.new_empty(len(q), 3 * q.shape[1])
    return found, torch.empty_like(positions) if of_positions else q.new_empty(0)
