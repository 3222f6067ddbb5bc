"""A frozen weight and its two products: x Wᵀ for the outputs, g W for the input's gradient.

    FrozenWeight         a weight in bf16, multiplied by products.cpp on AMX, else by oneDNN
    FrozenCodesWeight    a weight in eight bits

The weights of several layers may be stacked in one, of which theirs become parts, so that no weight
is held twice. (Codes are, where oneDNN has them packed.)

oneDNN adds the bias inside its product where torch's own `linear` takes a second pass. Its products
know nothing of autograd and would lose the gradient, so they are called inside autograd functions
only (frozen.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers import products
from peftlab.layers.int8 import Int8Linear
from peftlab.layers.linear import is_conv1d, weight_of


class FrozenWeight:
    """A frozen weight (out, in), in bf16, for x Wᵀ and for g W."""

    packed: Sequence[Tensor] = ()

    @classmethod
    def of(cls, layers: Sequence[Any]) -> FrozenWeight:
        """The layers' weights (outᵢ, in) one below the other: (Σ outᵢ, in)."""
        weights = [weight_of(layer) for layer in layers]
        return cls(torch.cat(weights) if len(weights) > 1 else weights[0])

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.is_native = products.serves([self.weight])
        # a product without a bias would need another kernel of oneDNN's
        self.no_bias = None if self.is_native else weight.new_zeros(weight.shape[0])

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + bias. Never inside autograd."""
        if self.is_native:
            return products.product(x, self.weight, bias)
        bias = self.no_bias if bias is None else bias
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), self.weight, bias, "none", [], ""
        )
        return y

    def gradient(self, g: Tensor) -> Tensor:
        """(*batch, out) -> (*batch, in): g W. Never inside autograd."""
        if self.is_native:
            return products.gradient(g, self.weight)
        gradients = g.reshape(-1, g.shape[-1]) @ self.weight
        return gradients.view(*g.shape[:-1], self.weight.shape[1])

    def share(self, layers: Sequence[Any], sizes: Sequence[int]) -> None:
        """Make the layers' own weights parts of this one."""
        for layer, part in zip(layers, self.weight.split(sizes), strict=True):
            layer.weight.data = part.T if is_conv1d(layer) else part

    def refresh(self) -> None:
        """Nothing to do: the weight is shared, and nothing is derived from it."""

    @staticmethod
    def separate(layers: Sequence[Any]) -> None:
        """Give every layer a weight of its own again."""
        for layer in layers:
            layer.weight.data = layer.weight.clone(memory_format=torch.contiguous_format)


class FrozenCodesWeight:
    """A frozen weight (out, in) in eight bits, for x Wᵀ and for g W."""

    @classmethod
    def of(cls, layers: Sequence[Int8Linear]) -> FrozenCodesWeight:
        """The layers' weights (outᵢ, in) one below the other: (Σ outᵢ, in)."""
        return cls(type(layers[0]).stacked(layers) if len(layers) > 1 else layers[0])

    def __init__(self, layer: Int8Linear) -> None:
        self.layer = layer

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + bias. Never inside autograd."""
        return self.layer.outputs(x, bias)

    def gradient(self, g: Tensor) -> Tensor:
        """(*batch, out) -> (*batch, in): g W. Never inside autograd."""
        return self.layer.gradients(g)

    @property
    def packed(self) -> Sequence[Tensor]:
        """The copies that oneDNN has packed."""
        return self.layer.unregistered

    def share(self, layers: Sequence[Int8Linear], sizes: Sequence[int]) -> None:
        """Make the layers' own codes parts of these; copies packed of theirs are not used."""
        codes, scales = self.layer.codes.split(sizes), self.layer.scales.split(sizes)
        for layer, layer_codes, layer_scales in zip(layers, codes, scales, strict=True):
            layer.set_codes(layer_codes, layer_scales)

    def refresh(self) -> None:
        """Drop the packed copies: no load reaches the layer that holds the joined codes."""
        self.layer.drop_packed()

    @staticmethod
    def separate(layers: Sequence[Int8Linear]) -> None:
        """Give every layer codes of its own again."""
        for layer in layers:
            layer.set_codes(layer.codes.clone(), layer.scales.clone())


Weight = FrozenWeight | FrozenCodesWeight


def onednn_multiplies(layer: Any) -> bool:
    """Whether the layer is faster by oneDNN: with a weight in bf16 it is, in fp32 it is not."""
    return bool(
        layer.weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
