"""A frozen weight and its two products: x Wᵀ for the outputs, g W for the input's gradient.

    Frozen         of a weight in bf16, by oneDNN
    FrozenCodes    of one in eight bits

Several layers' weights may be one, one below the other: theirs are parts of it then, so that none
is there twice. (Codes are, packed for oneDNN.)

oneDNN adds the bias inside its product where torch's own `linear` takes a second pass. What it does
knows nothing of autograd, and called bare it loses the gradient, so it is called inside autograd
functions only (frozen.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers.int8 import Int8Linear
from peftlab.layers.linear import is_conv1d, weight_of


class Frozen:
    """A frozen weight (out, in), in bf16, for x Wᵀ and for g W."""

    packed: Sequence[Tensor] = ()

    @classmethod
    def of(cls, layers: Sequence[Any]) -> Frozen:
        """The layers' weights (outᵢ, in) one below the other: (Σ outᵢ, in)."""
        weights = [weight_of(layer) for layer in layers]
        return cls(torch.cat(weights) if len(weights) > 1 else weights[0])

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        # oneDNN makes a kernel of its own for a product without a bias
        self.no_bias = weight.new_zeros(weight.shape[0])

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + bias. Never inside autograd."""
        bias = self.no_bias if bias is None else bias
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x.contiguous(), self.weight, bias, "none", [], ""
        )
        return y

    def gradient(self, g: Tensor) -> Tensor:
        """(*batch, out) -> (*batch, in): g W. Never inside autograd."""
        return (g.reshape(-1, g.shape[-1]) @ self.weight).view(*g.shape[:-1], -1)

    def share(self, layers: Sequence[Any], sizes: Sequence[int]) -> None:
        """Let the layers' own weights be parts of this one."""
        for layer, part in zip(layers, self.weight.split(sizes), strict=True):
            layer.weight.data = part.T if is_conv1d(layer) else part

    def renew(self) -> None:
        """Nothing is made of the weight, which is shared."""

    @staticmethod
    def part(layers: Sequence[Any]) -> None:
        """Give every layer a weight of its own again."""
        for layer in layers:
            layer.weight.data = layer.weight.clone(memory_format=torch.contiguous_format)


class FrozenCodes:
    """A frozen weight (out, in) in eight bits, for the same."""

    @classmethod
    def of(cls, layers: Sequence[Int8Linear]) -> FrozenCodes:
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
        """What oneDNN has of it beside the codes."""
        return self.layer.unregistered

    def share(self, layers: Sequence[Int8Linear], sizes: Sequence[int]) -> None:
        """Let the layers' own codes be parts of these; what they had packed is not used."""
        codes, scales = self.layer.codes.split(sizes), self.layer.scales.split(sizes)
        for layer, own, own_scales in zip(layers, codes, scales, strict=True):
            layer.hold(own, own_scales)

    def renew(self) -> None:
        """Let oneDNN pack anew: several layers' codes are joined in another layer than theirs."""
        self.layer.unpack()

    @staticmethod
    def part(layers: Sequence[Int8Linear]) -> None:
        """Give every layer codes of its own again."""
        for layer in layers:
            layer.hold(layer.codes.clone(), layer.scales.clone())


Weight = Frozen | FrozenCodes


def onednn_multiplies(layer: Any) -> bool:
    """Whether oneDNN gains by the layer's weight: a bf16 one does, fp32 doesn't."""
    return bool(
        layer.weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
