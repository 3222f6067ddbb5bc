"""The low-rank layer that the LoRA family shares.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ

W (out, in) and c (out,) are frozen, in the base's precision; A (rank, in) and B (out, rank)
are fp32 and are multiplied in the precision of x, as autocast would, or more exactly where the
engine does it (low_rank.cpp: in fp32).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftlab.errors import RequestError
from peftlab.layers.linear import (
    BaseLinear,
    Linear,
    WeightAdapter,
    adapter_dtype,
    device_of,
    features,
    not_a_view,
    where_drawn,
)


def low_rank_update(x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """(*batch, in) -> (*batch, out): scaling · x Aᵀ Bᵀ, in the precision of x."""
    return scaling * F.linear(F.linear(x, lora_A.to(x.dtype)), lora_B.to(x.dtype))


def add_low_rank(y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """`y` (*batch, out) + low_rank_update(x, ...), in one pass over tensors of that size."""
    if y.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return y + low_rank_update(x, lora_A, lora_B, scaling)
    result: Tensor = _AddLowRank.apply(y, x, lora_A, lora_B, scaling)  # type: ignore[no-untyped-call]
    return result


class _AddLowRank(torch.autograd.Function):
    """y + s · x Aᵀ Bᵀ. Neither s nor the sum is a pass of its own, and x is kept only for A."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float
    ) -> Tensor:
        a = lora_A.to(x.dtype)
        bt = lora_B.T.to(x.dtype, memory_format=torch.contiguous_format)  # (rank, out)
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.T  # (n, rank)
        out = torch.addmm(y.reshape(-1, y.shape[-1]), inner, bt, alpha=scaling)
        ctx.scaling, ctx.dtype = scaling, lora_A.dtype
        ctx.save_for_backward(rows if ctx.needs_input_grad[2] else None, inner, a, bt)
        return not_a_view(out.view(y.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        rows, inner, a, bt = ctx.saved_tensors
        g_rows = g.reshape(-1, g.shape[-1])
        g_inner = (g_rows @ bt.T).mul_(ctx.scaling)
        g_x = (g_inner @ a).view(*g.shape[:-1], a.shape[1]) if ctx.needs_input_grad[1] else None
        g_A = (g_inner.T @ rows).to(ctx.dtype) if ctx.needs_input_grad[2] else None
        g_B = None
        if ctx.needs_input_grad[3]:
            g_B = (inner.T @ g_rows).T.to(ctx.dtype).mul_(ctx.scaling)
        return g, g_x, g_A, g_B, None


def new_pair(base: Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, in) ~ U(±1/sqrt(in)), as the authors' code draws it, and B (out, rank) = 0.

    Raises:
        RequestError: if the rank is larger than the layer's smaller side.
    """
    inside, outside = features(base)
    limit = min(inside, outside)
    if rank > limit:
        raise RequestError(f"rank must be <= {limit}, the layer's smaller side, got {rank}")
    dtype, device = adapter_dtype(base), device_of(base)
    lora_A = torch.empty(rank, inside, dtype=dtype, device=where_drawn(device))
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    lora_B = torch.zeros(outside, rank, dtype=dtype, device=device)
    return nn.Parameter(lora_A.to(device)), nn.Parameter(lora_B)


_skips_start: ContextVar[bool] = ContextVar("skips_start", default=False)


@contextmanager
def skip_start() -> Iterator[None]:
    """Inside, an adapter may leave out a start that is dear to compute: a file's comes in place."""
    token = _skips_start.set(True)
    try:
        yield
    finally:
        _skips_start.reset(token)


def skips_start() -> bool:
    """Whether this is inside `skip_start`."""
    return _skips_start.get()


def dropout(p: float) -> nn.Module:
    """Dropout of probability `p`; the identity for 0."""
    return nn.Dropout(p) if p > 0 else nn.Identity()


class Pair(NamedTuple):
    """A low-rank update: A (rank, in), B (out, rank), and the scaling of their product."""

    lora_A: Tensor
    lora_B: Tensor
    scaling: float


class LowRank(WeightAdapter):
    """A linear layer with a low-rank update of its output, which `forward` may change further.

    Args:
        base: the layer.
        rank: of the new pair A, B.
        dropout_p: probability of dropout, on the update's input only.

    Raises:
        RequestError: if the rank is larger than the layer's smaller side.
    """

    def __init__(self, base: Linear, rank: int, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.dropout = dropout(dropout_p)
        self.lora_A, self.lora_B = new_pair(base, rank)

    @abc.abstractmethod
    def pair(self) -> Pair:
        """The update as it is now."""

    @final
    def updated(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ.

        A `BaseLinear` may compute it itself, together with the updates of its sibling layers.
        """
        updated = self.base.updated(x) if isinstance(self.base, BaseLinear) else None
        if updated is None:
            updated = add_low_rank(self.base(x), self.dropout(x), *self.pair())
        return updated

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        return self.updated(x)


class LoRALinear(LowRank):
    """A linear layer with a low-rank update beside it. B starts at 0, so it equals `base`.

    With A frozen (`lora_A.requires_grad = False`) nothing of the size of x is kept for the
    backward pass, only x Aᵀ.

    >>> LoRALinear(nn.Linear(8, 4), rank=2, scaling=2.0)(torch.zeros(3, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(self, base: Linear, rank: int, scaling: float, dropout_p: float = 0.0) -> None:
        super().__init__(base, rank, dropout_p)
        self.scaling = scaling

    def pair(self) -> Pair:
        return Pair(self.lora_A, self.lora_B, self.scaling)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        return weight + self.scaling * self.lora_B @ self.lora_A
