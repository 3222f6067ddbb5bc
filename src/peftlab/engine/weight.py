"""A frozen weight and its two products, which oneDNN makes in bf16.

It adds the bias inside its product where torch's own `linear` takes a second pass. Its operation
knows nothing of autograd, and called bare it loses the gradient, so it is called inside autograd
functions only. Gradients that lie side by side in memory, as a joined product's do, are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Frozen:
    """A frozen weight (out, in), in bf16, for x Wᵀ and for g W."""

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


def onednn_multiplies(layer: Any) -> bool:
    """Whether oneDNN gains by the layer's weight: a bf16 one does, fp32 doesn't."""
    return bool(
        layer.weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`parts` (*batch, nᵢ) along their last dimension; no copy where they already lie so."""
    first = parts[0]
    if len(parts) == 1:
        return first
    width = sum(part.shape[-1] for part in parts)
    offset = first.storage_offset()
    for part in parts:
        if (
            part.untyped_storage()._cdata != first.untyped_storage()._cdata  # also of mere shapes
            or part.storage_offset() != offset
            or part.stride() != first.stride()
            or part.stride()[-2] != width
        ):
            return torch.cat(list(parts), dim=-1)
        offset += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride())
