"""Attention of a packed batch, sentence by sentence, in C++ where a compiler is found.

    S = Q Kᵀ · scaling + positions,  P = softmax(S),  Y = (P ∘ M) V        a head of a sentence

Without a compiler batches are padded, and plain products (attention.py) hold P and M until the
backward pass. Here nothing is padding, and only log Σ exp S of each row is kept: the rest is
computed again (Dao et al. 2022), M from a counter (bits.py), at the place sentence · heads + head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftlab.engine.bits import Counter
from peftlab.engine.packing import Packing
from peftlab.layers import native

KERNEL = native.Kernel(__file__, without="batches are padded")
DTYPES = {torch.float32, torch.bfloat16}  # the precisions that sentences.cpp takes


class AttentionOptions(NamedTuple):
    """The arguments of `attention` beside its tensors.

    Attributes:
        packing: the batch's packing.
        heads: the number of heads.
        scaling: the factor of Q Kᵀ.
        n_queries: how many rows of a sentence, from the first on, need outputs; 0 for all.
        p: dropout's probability.
        counter: the start of its random bits.
    """

    packing: Packing
    heads: int
    scaling: float
    n_queries: int
    p: float
    counter: Counter

    @property
    def scalars(self) -> tuple[Any, ...]:
        """The last arguments of the operations in C++."""
        return (self.heads, self.scaling, self.n_queries, self.p, *self.counter)


def attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None, options: AttentionOptions
) -> Tensor:
    """(1, heads, rows, width) each -> (1, rows, heads, width), 0 in rows beyond `n_queries`.

    `positions` (heads, length, length), in fp32, are added to the scores.
    """
    y: Tensor = _Sentences.apply(query, key, value, positions, options)  # type: ignore[no-untyped-call]
    return y


class _Sentences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor | None,
        options: AttentionOptions,
    ) -> Tensor:
        dtype = key.dtype if key.dtype in DTYPES else torch.float32  # fp16 by a caller's autocast
        rows = [x[0].transpose(0, 1).flatten(1).to(dtype) for x in (query, key, value)]
        y, log_sums = torch.ops.peftlab.attention(
            *rows, options.packing.bounds, positions, *options.scalars
        )
        ctx.save_for_backward(*rows, positions, log_sums)
        ctx.options = options
        output: Tensor = y.view(1, len(y), options.heads, -1).to(key.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *rows, positions, log_sums = ctx.saved_tensors
        options: AttentionOptions = ctx.options
        g = gradients[0][0].flatten(1).contiguous().to(rows[0].dtype)
        needs_positions = ctx.needs_input_grad[3]
        g_qkv, g_positions = torch.ops.peftlab.attention_gradient(
            g, *rows, options.packing.bounds, positions, log_sums, needs_positions, *options.scalars
        )
        g_qkv = g_qkv.view(1, len(g), 3, options.heads, -1).permute(2, 0, 3, 1, 4)
        return *g_qkv.unbind(), g_positions if needs_positions else None, None


@KERNEL.shapes_of("attention")
def _output_shapes(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, positions: Any, *scalars: Any
) -> Any:
    return q.new_empty(q.shape), q.new_empty(scalars[0], len(q), dtype=torch.float32)


@KERNEL.shapes_of("attention_gradient")
def _gradient_shapes(g: Tensor, q: Tensor, *others: Any) -> Any:
    positions, needs_positions = others[3], others[5]
    g_qkv = q.new_empty(len(q), 3 * q.shape[1])
    return g_qkv, torch.empty_like(positions) if needs_positions else q.new_empty(0)
