"""Numbers scaled by a learned gain each, and the norms that DoRA's gains are over.

    scaled          gain ∘ x
    rescaled        c + gain ∘ (x - c)        gains near 1; c: a bias that is not scaled
    squared_norms   ‖W + s·B A‖² of each row, without making the matrix

gain.cpp, where there is a compiler, makes one pass of each and sums in fp32, whatever the precision
of x and W. Torch's own operations take two passes and more for an output, five for the gradients
(LOG.md has what that costs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.layers import native
from peftlab.layers.linear import (
    Adapter,
    Linear,
    base_dtype,
    is_stored_transposed,
    not_a_view,
    product,
)
from peftlab.layers.lora import Pair

KERNEL = native.Kernel(__file__, without="torch scales by learned gains")
DTYPES = {torch.float32, torch.bfloat16}
LARGEST_RANK = 16  # beyond it torch's products are as fast


def serves(model: nn.Module) -> bool:
    """Whether the kernels scale by a gain of one of `model`'s adapters; builds them if so."""
    return any(
        vector.ndim == 1 and base_dtype(module.base) in DTYPES and _is_native(vector, vector)
        for module in model.modules()
        if isinstance(module, Adapter) and module.has_gain
        for vector in module.parameters(recurse=False)
    )


def scaled(x: Tensor, gain: Tensor) -> Tensor:
    """Gain ∘ x, in the precision of x: x (*batch, width), gain (width,)."""
    if _is_native(x, gain):
        y: Tensor = _Scaled.apply(x, gain, None)  # type: ignore[no-untyped-call]
        return y
    return x * gain.to(x.dtype)


def rescaled(x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """`bias` + gain ∘ (x - bias) with gains near 1, in the precision of x.

    x is (*batch, width), gain and bias (width,); no bias is 0. In bf16 all that is within .002 of 1
    is 1, so torch's operations hold not the gain but gain - 1.
    """
    function = _Scaled if _is_native(x, gain) else _Rescaled
    y: Tensor = function.apply(x, gain, bias)  # type: ignore[no-untyped-call]
    return y


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gain = gain.contiguous()
        bias = None if bias is None else bias.float().contiguous()
        ctx.save_for_backward(rows, gain, bias)
        return not_a_view(torch.ops.peftlab.scaled(rows, gain, bias).view(x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain, bias = ctx.saved_tensors
        g = gradients[0].reshape(rows.shape)
        g = g if g.stride(-1) == 1 else g.contiguous()
        g_x, g_gain = torch.ops.peftlab.scaled_gradient(g, rows, gain, bias)
        return g_x.view(gradients[0].shape), g_gain, None


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        unbiased = x if bias is None else x - bias.to(x.dtype)
        ctx.dtype = gain.dtype
        excess = (gain - 1).to(x.dtype)
        ctx.save_for_backward(unbiased, excess)
        return torch.addcmul(x, excess, unbiased)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        unbiased, excess = ctx.saved_tensors
        products = g.reshape(-1, g.shape[-1]) * unbiased.reshape(-1, unbiased.shape[-1])
        return torch.addcmul(g, excess, g), products.sum(0, dtype=ctx.dtype), None


@torch.no_grad()
def squared_norms(base: Linear, squares: Tensor, pair: Pair) -> Tensor:
    """‖W + s·B A‖² of each row (out,), from `squares` = ‖W‖²; a constant to autograd.

    ‖W + s·B A‖² = ‖W‖² + s · Σ B ∘ (2 W Aᵀ + s·B A Aᵀ), summed over the rank.
    """
    lora_A, lora_B, scaling = pair
    weight = base.weight  # on "meta" if it is held as codes
    is_plain = not is_stored_transposed(base) and len(lora_A) <= LARGEST_RANK
    if is_plain and _is_native(weight, squares, lora_A, lora_B):
        norms: Tensor = torch.ops.peftlab.squared_norms(
            weight, squares, lora_A.contiguous(), lora_B.contiguous(), scaling
        )
        return norms
    cross = product(base, lora_A.to(base_dtype(base))).T  # W Aᵀ: (out, rank)
    gram = lora_A @ lora_A.T
    inner = torch.addmm(cross.to(gram.dtype), lora_B, gram, beta=2, alpha=scaling)
    change = inner.mul_(lora_B).sum(dim=1)
    return torch.add(squares, change, alpha=scaling)


def _is_native(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take x (*batch, width), and beside it `others`."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and all(other.dtype == torch.float32 for other in others)
        and x.stride(-1) == 1
        and x.shape[-1] % native.WIDEST == 0
        and KERNEL.is_built()
    )


@KERNEL.shapes_of("scaled")
def _scaled_shape(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


@KERNEL.shapes_of("scaled_gradient")
def _gradient_shapes(g: Tensor, x: Tensor, gain: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(gain)


@KERNEL.shapes_of("squared_norms")
def _norms_shape(weight: Tensor, squares: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(squares)
