"""Frozen linear layers as bare products, and those of one input as a single one.

    FrozenLinear   y = x Wᵀ + c, and backward g W alone: no gradient of W is even asked for
    Joined         query, key and value (or gate and up): one product forward, one backward

No weight is there twice: joined layers' own are parts of the one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.engine.updates import updated
from peftlab.engine.weight import Frozen, side_by_side
from peftlab.layers.linear import BaseLinear, features, is_conv1d, weight_of
from peftlab.layers.lora import LowRank


class _Product(torch.autograd.Function):
    """x Wᵀ + c, cut along its last dimension; the gradient of x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Frozen, bias: Tensor | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        y = weight.product(x, bias)
        return y.split(sizes, dim=-1) if len(sizes) > 1 else (y,)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.weight.gradient(side_by_side(gradients)), None, None, None


class FrozenLinear(BaseLinear):
    """The place of a frozen linear layer inside the engine, alone or with its siblings.

    Args:
        plain: the layer.
        joined: what computes it.
        index: which of the joined layers this one is.
    """

    def __init__(self, plain: Any, joined: Joined, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = joined.features[index]
        self.bias = plain.bias
        self.compute, self.plain_kind = plain.weight.dtype, type(plain)
        # past nn.Module's own bookkeeping: the layer is no part of its own place
        self.__dict__["plain"], self.__dict__["joined"] = plain, joined
        self.index = index
        self.train(plain.training)

    @property
    def weight(self) -> Tensor:
        """The layer's own: some models ask it for its dtype."""
        weight: Tensor = self.__dict__["plain"].weight
        return weight

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        joined: Joined = self.__dict__["joined"]
        if joined.adapters[self.index] is not None:  # not asked for by its adapter
            return joined.outputs(x)[self.index]
        return joined.output(x, self.index)

    def updated(self, x: Tensor) -> Tensor | None:
        joined: Joined = self.__dict__["joined"]
        if joined.adapters[self.index] is None:
            return None
        return joined.output(x, self.index)

    def product(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        weight: Tensor = weight_of(self.__dict__["plain"])
        return weight


class Joined:
    """Frozen linear layers of one input, computed together when the first of them is asked.

    The others take what waits for them, if they are given the very same tensor; given another,
    all are computed anew, so the result never depends on the order of calls.

    Args:
        layers: the plain layers.
        adapters: what gives each layer's low-rank update, if it has one to be computed with it.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        adapters: Sequence[LowRank | None] | None = None,
    ) -> None:
        self.layers = list(layers)
        self.adapters = list(adapters or [None] * len(layers))
        self.features = [features(layer) for layer in layers]
        self.sizes = [size.outside for size in self.features]
        weights = [weight_of(layer) for layer in layers]
        self.weight = Frozen(torch.cat(weights) if len(weights) > 1 else weights[0])
        self.bias = _joined_bias(layers, self.sizes, weights[0].dtype)
        self.waiting: dict[int, Tensor] = {}
        self.input: Tensor | None = None

    def share(self) -> None:
        """Let the layers' own weights be parts of the joined one."""
        for layer, part in zip(self.layers, self.weight.weight.split(self.sizes), strict=True):
            layer.weight.data = part.T if is_conv1d(layer) else part

    def output(self, x: Tensor, index: int) -> Tensor:
        if len(self.layers) == 1:
            return self.updated(x)[0]
        if x is not self.input or index not in self.waiting:
            self.input = x
            self.waiting = dict(enumerate(self.updated(x)))
        y = self.waiting.pop(index)
        if not self.waiting:
            self.input = None
        return y

    def updated(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every layer's output, with its update."""
        if all(adapter is None for adapter in self.adapters):
            return self.outputs(x)
        pairs = [None if adapter is None else adapter.pair() for adapter in self.adapters]
        return updated(x, self.weight, self.bias, self.sizes, pairs)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every layer's output."""
        found: tuple[Tensor, ...] = _Product.apply(x, self.weight, self.bias, self.sizes)  # type: ignore[no-untyped-call]
        return found

    def part(self) -> None:
        """Give every layer a weight of its own again."""
        if len(self.layers) > 1:
            for layer in self.layers:
                layer.weight.data = layer.weight.clone(memory_format=torch.contiguous_format)


def _joined_bias(layers: Sequence[Any], sizes: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            torch.zeros(size, dtype=dtype) if layer.bias is None else layer.bias.detach()
            for layer, size in zip(layers, sizes, strict=True)
        ]
    )
