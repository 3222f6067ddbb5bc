"""Frozen linear layers with their weight packed for oneDNN, and those of one input as one product.

    PackedLinear   y = x Wᵀ + c, W reordered once for each direction instead of at every call
    Joined         query, key and value (or gate and up): one product forward, one backward

oneDNN's own operations know nothing of autograd, and called bare they lose the gradient, so they
are called inside autograd functions only. A packed weight can't be copied or saved; `to_dense`
gives the very bits back, and while a weight is packed its plain form is not held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers.engine.beside import side_by_side
from peftlab.layers.engine.updates import updated
from peftlab.layers.held import HeldLinear
from peftlab.layers.linear import features, is_conv1d, weight_of
from peftlab.layers.lora import LowRank


class Packed:
    """A frozen weight (out, in), reordered for x Wᵀ and, for training, for g W.

    Args:
        weight: (out, in).
        backward: whether to reorder it for g W now; else it is done when a gradient first asks.
    """

    def __init__(self, weight: Tensor, backward: bool = True) -> None:
        self.dtype = weight.dtype
        self.onward = _reorder(weight)
        # oneDNN makes a kernel of its own for a product without a bias
        self.no_bias = [weight.new_zeros(size) for size in weight.shape]
        self.back: Tensor | None = _reorder(weight.T) if backward else None

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + bias. Never inside autograd."""
        return _pointwise(x, self.onward, self.no_bias[0] if bias is None else bias)

    def gradient(self, g: Tensor) -> Tensor:
        """(*batch, out) -> (*batch, in): g W. Never inside autograd."""
        if self.back is None:
            self.back = _reorder(self.dense().T)
        return _pointwise(g, self.back, self.no_bias[1])

    def dense(self) -> Tensor:
        """The weight as it was, bit for bit."""
        return self.onward.to_dense()


def can_pack(layer: Any) -> bool:
    """Whether oneDNN packs the layer's weight to advantage: bf16 only, fp32 gains nothing."""
    return bool(
        layer.weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _reorder(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def _pointwise(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
    return y


class _Product(torch.autograd.Function):
    """x Wᵀ + c, cut along its last dimension; the gradient of x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Packed, bias: Tensor | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        y = weight.product(x, bias)
        return y.split(sizes, dim=-1) if len(sizes) > 1 else (y,)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.weight.gradient(side_by_side(gradients)), None, None, None


class PackedLinear(HeldLinear):
    """The place of a frozen linear layer while its weight is packed, alone or with its siblings.

    Args:
        plain: the layer; its weight is emptied, until `restore` fills it again.
        joined: what computes it.
        index: which of the joined layers this one is.
    """

    def __init__(self, plain: Any, joined: Joined, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = joined.features[index]
        self.bias = plain.bias
        self.compute, self.plain_kind = joined.weight.dtype, type(plain)
        # past nn.Module's own bookkeeping: what is packed is no part of the model's state
        self.__dict__["plain"], self.__dict__["joined"] = plain, joined
        self.index = index
        self.train(plain.training)

    @property
    def weight(self) -> Tensor:
        """Empty: some models ask a layer's weight for its dtype."""
        weight: Tensor = self.__dict__["plain"].weight
        return weight

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        joined: Joined = self.__dict__["joined"]
        if joined.adapters[self.index] is not None:  # not asked for by its adapter
            return joined.outputs(x, joined.bias)[self.index]
        return joined.output(x, self.index)

    def updated(self, x: Tensor) -> Tensor | None:
        joined: Joined = self.__dict__["joined"]
        if joined.adapters[self.index] is None:
            return None
        return joined.output(x, self.index)

    def product(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""
        joined: Joined = self.__dict__["joined"]
        return joined.outputs(x, None)[self.index]

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        joined: Joined = self.__dict__["joined"]
        dense: Tensor = joined.weight.dense().split(joined.sizes)[self.index]
        return dense


class Joined:
    """Frozen linear layers of one input, computed together when the first of them is asked.

    The others take what waits for them, if they are given the very same tensor; given another,
    all are computed anew, so the result never depends on the order of calls.

    Args:
        layers: the plain layers.
        backward: whether there will be backward passes.
        adapters: what gives each layer's low-rank update, if it has one to be computed with it.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        backward: bool = True,
        adapters: Sequence[LowRank | None] | None = None,
    ) -> None:
        self.layers = list(layers)
        self.adapters = list(adapters or [None] * len(layers))
        self.features = [features(layer) for layer in layers]
        self.sizes = [size.outside for size in self.features]
        self.weight = Packed(torch.cat([weight_of(layer) for layer in layers]), backward)
        self.bias = _joined_bias(layers, self.sizes, self.weight.dtype)
        self.waiting: dict[int, Tensor] = {}
        self.input: Tensor | None = None

    def empty(self) -> None:
        """Let go of the layers' own weights."""
        for layer in self.layers:
            layer.weight.data = torch.empty(0, dtype=self.weight.dtype)

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
            return self.outputs(x, self.bias)
        pairs = [None if adapter is None else adapter.pair() for adapter in self.adapters]
        return updated(x, self.weight, self.bias, self.sizes, pairs)

    def outputs(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Product.apply(x, self.weight, bias, self.sizes)  # type: ignore[no-untyped-call]
        return found

    def restore(self) -> None:
        """Give every layer its weight back, as it was."""
        for layer, weight in zip(self.layers, self.weight.dense().split(self.sizes), strict=True):
            held = weight.T if is_conv1d(layer) else weight
            layer.weight.data = held.clone(memory_format=torch.contiguous_format)


def _joined_bias(layers: Sequence[Any], sizes: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            torch.zeros(size, dtype=dtype) if layer.bias is None else layer.bias.detach()
            for layer, size in zip(layers, sizes, strict=True)
        ]
    )
