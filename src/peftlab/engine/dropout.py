"""Dropout, alone or with residual sum and LayerNorm, in C++ where a compiler is found.

    s = x ∘ M + r,   y = LayerNorm(s)        x: output of the last layer;  r: residual input

Torch's own takes three passes forward and back, and keeps M beside s. Here it is one pass, and M is
drawn again (bits.py), so that only s and two numbers a row are kept: LoRA on MPNet-base takes an
eighth less memory, and up to two hundredths less time (LOG.md). All is computed in fp32, and s is
rounded once, where torch rounds x ∘ M too.

BERT's modules do this in their `forward`, and transformers copies that from model to model. So a
module is recognised by its bytecode, which equals that of `_bert_forward` in some forty
architectures.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.engine.bits import ROWS, Bits, Counter
from peftlab.engine.replace_method import replace_method
from peftlab.layers import native
from peftlab.layers.precision import is_unmodified, output_dtype

KERNEL = native.Kernel(__file__, without="dropout, residual sum and LayerNorm are three passes")
# the precisions of x and r that the kernel takes; bf16 beside fp32 comes from autocast
TYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
)


class NormOptions(NamedTuple):
    """The arguments of `residual_norm` beside its tensors.

    Attributes:
        eps: LayerNorm's ε.
        p: dropout's probability.
        counter: the start of its random bits.
    """

    eps: float
    p: float
    counter: Counter


class FastDropout(nn.Dropout):
    """Dropout of probability `p` that draws from `bits`."""

    def __init__(self, p: float, bits: Bits) -> None:
        super().__init__(p)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if (x.dtype, x.dtype) in TYPES and x.shape[-1] % native.WIDEST == 0 and KERNEL.is_built():
            y: Tensor = _Dropout.apply(x, self.p, self.bits.counter())  # type: ignore[no-untyped-call]
            return y
        return x * self.bits.mask(x.shape, self.p, x.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, counter: Counter) -> Tensor:
        ctx.draw_args = (p, *counter)
        y: Tensor = torch.ops.peftlab.dropout(x.contiguous(), *ctx.draw_args)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.peftlab.dropout(gradients[0].contiguous(), *ctx.draw_args), None, None


def residual_norm(
    x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, options: NormOptions
) -> Tensor:
    """LayerNorm(dropout(x) + r), in the precision of `r`.

    `x` and `r` are (*batch, width) in one of `TYPES`; `width` is a multiple of `native.WIDEST`.
    """
    y: Tensor = _ResidualNorm.apply(x, r, weight, bias, options)  # type: ignore[no-untyped-call]
    return y


def add_and_norm(
    x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, options: NormOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """`residual_norm` outside of autograd; then s and its moments, for the gradients."""
    y, s, moments = torch.ops.peftlab.residual_norm(
        x.contiguous(), r.contiguous(), weight, bias, options.eps, options.p, *options.counter
    )
    return y, s, moments


def add_and_norm_gradients(
    g: Tensor,
    s: Tensor,
    moments: Tensor,
    weight: Tensor,
    options: NormOptions,
    x_type: torch.dtype,
    needs_affine: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and r, which may be one tensor, and parts of those of weight and bias.

    The last are (blocks, 2, width), to be summed over the blocks; none unless `needs_affine`.
    """
    g_x, g_r, g_affine = torch.ops.peftlab.residual_norm_gradient(
        g.contiguous(), s, moments, weight, x_type, needs_affine, options.p, *options.counter
    )
    return g_x if g_x.numel() else g_r, g_r, g_affine


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, options: NormOptions
    ) -> Tensor:
        y, s, moments = add_and_norm(x, r, weight, bias, options)
        ctx.save_for_backward(s, moments, weight)
        ctx.options, ctx.x_type, ctx.bias_type = options, x.dtype, bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s, moments, weight = ctx.saved_tensors
        needs_affine = any(ctx.needs_input_grad[2:4])
        g_x, g_r, g_affine = add_and_norm_gradients(
            gradients[0], s, moments, weight, ctx.options, ctx.x_type, needs_affine
        )
        if not needs_affine:
            return g_x, g_r, None, None, None
        g_weight, g_bias = g_affine.sum(0)
        return g_x, g_r, g_weight.to(weight.dtype), g_bias.to(ctx.bias_type), None


@KERNEL.shapes_of("dropout")
def _shape(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


@KERNEL.shapes_of("residual_norm")
def _shapes(x: Tensor, r: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    moments = r.new_empty(r.numel() // r.shape[-1], 2, dtype=torch.float32)
    return torch.empty_like(r), torch.empty_like(r), moments


@KERNEL.shapes_of("residual_norm_gradient")
def _gradient_shapes(
    g: Tensor,
    s: Tensor,
    moments: Tensor,
    weight: Tensor,
    x_type: torch.dtype,
    needs_affine: bool,
    p: float,
    *counter: int,
) -> tuple[Tensor, Tensor, Tensor]:
    g_x = s.new_empty(s.shape if p else 0, dtype=x_type)
    blocks = -(-len(moments) // ROWS) if needs_affine else 0
    return g_x, torch.empty_like(s), moments.new_empty(blocks, 2, s.shape[-1])


def serves(model: nn.Module) -> bool:
    """Whether the kernel computes a part of `model`, seen as it is outside of the engine."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    drops = (type(module) is nn.Dropout and module.p > 0 for module in model.modules())
    has_work = any(drops) or any(map(_is_bert_output, model.modules()))
    return has_work and dtypes <= {dtype for pair in TYPES for dtype in pair} and KERNEL.is_built()


def fuse_residuals(model: nn.Module, bits: Bits, undo: ExitStack) -> None:
    """Compute the end of each half of a block of `model` in one pass, where its code is BERT's."""
    modules = [module for module in model.modules() if _is_bert_output(module)]
    if modules and KERNEL.is_built():
        for module in modules:
            replace_method(module, "forward", _fused_forward, undo, bits)


def _bert_forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    hidden_states = self.dense(hidden_states)
    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)
    return hidden_states


def _is_bert_output(module: nn.Module) -> bool:
    """Whether the code of `module` is `_bert_forward`, and nobody has replaced its `forward`."""
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    is_copy = code is not None and _bytecode(code) == _bytecode(_bert_forward.__code__)
    return is_copy and "forward" not in vars(module)


def _bytecode(code: Any) -> tuple[Any, ...]:
    return code.co_code, code.co_names, code.co_consts, code.co_varnames, code.co_argcount


def _fused_forward(
    module: Any, original: Any, bits: Bits, hidden_states: Tensor, input_tensor: Tensor
) -> Tensor:
    return dropout_add_norm(module, module.dense(hidden_states), input_tensor, bits)


def dropout_add_norm(module: Any, x: Tensor, r: Tensor, bits: Bits) -> Tensor:
    """LayerNorm(dropout(x) + r) by the `LayerNorm` and `dropout` of `module`; draws from `bits`."""
    norm, dropout, p = module.LayerNorm, module.dropout, 0.0
    if type(dropout) is FastDropout and is_unmodified(dropout) and _is_fusible(norm, x, r):
        p = dropout.p if dropout.training else 0.0
    else:  # an adapter, or a hook that reads its output
        x = dropout(x)
        if not _is_fusible(norm, x, r):
            y: Tensor = norm(x + r)
            return y
    counter = bits.counter() if p else Counter(0, 0)
    return residual_norm(x, r, norm.weight, norm.bias, NormOptions(norm.eps, p, counter))


def _is_fusible(norm: nn.Module, x: Tensor, r: Tensor) -> bool:
    """Whether `norm` is a plain LayerNorm, and the kernel takes rows like those of `x` and `r`."""
    return (
        type(norm) is nn.LayerNorm
        and norm.bias is not None
        and norm.normalized_shape == x.shape[-1:]
        and x.shape == r.shape
        and x.shape[-1] % native.WIDEST == 0
        and (x.dtype, r.dtype) in TYPES
        and output_dtype(norm, r.dtype) == r.dtype
    )
