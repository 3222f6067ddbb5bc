"""gelu of a base in bf16, in C++ where a compiler is found.

    gelu(x) = x Φ(x)        Φ: the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415)

Torch's computes Φ by an exponential and a division, more exactly than bf16 can hold where it
matters. gelu.cpp takes a polynomial for Φ, within 5e-7, and one for the derivative, within 8e-6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import GELUActivation

from peftlab.layers import native
from peftlab.layers.precision import is_unmodified

KERNEL = native.Kernel(__file__, without="torch computes gelu in bf16")


class FastGelu(nn.Module):
    """gelu of x (*batch, width): by gelu.cpp in bf16, else by torch.

    A view such as a gated layer's half goes to torch, too, which saves it without a copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.is_contiguous() and x.numel() % native.WIDEST == 0:
            y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
            return y
        return F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y: Tensor = torch.ops.peftlab.gelu(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        g_x: Tensor = torch.ops.peftlab.gelu_gradient(gradients[0].contiguous(), x)
        return g_x


@KERNEL.shapes_of("gelu")
def _output_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@KERNEL.shapes_of("gelu_gradient")
def _gradient_shape(g: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def gelus_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The names and modules of `model` that `FastGelu` can stand in for; none in fp32."""
    if not any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        return []
    return [(name, module) for name, module in model.named_modules() if _is_gelu(module)]


def serves(model: nn.Module) -> bool:
    """Whether the kernel computes a part of `model`, seen as it is outside of the engine."""
    return bool(gelus_of(model)) and KERNEL.is_built()


def _is_gelu(module: Any) -> bool:
    if not is_unmodified(module):
        return False
    if type(module) is GELUActivation:
        return module.act is F.gelu
    return type(module) is nn.GELU and module.approximate == "none"
