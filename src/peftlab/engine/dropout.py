"""Dropout, alone and with what stands behind it in a block, in C++ where a compiler is found.

    s = x ∘ M + r,   y = LayerNorm(s)        x: of the last layer;  r: what went around it

Torch's own takes three passes forward and back, and keeps M beside s. Here it is one, and M is
drawn again (bits.py), so that s and two numbers a row are all that is kept: LoRA on MPNet-base
takes an eighth less memory for it, and up to two hundredths less time (LOG.md). All is computed in
fp32, and s rounded once, where torch rounds x ∘ M too.

BERT's modules do this in their `forward`, and transformers copies those from model to model. So a
module is known by its code, which is `_berts`, to the instruction, in some forty architectures.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.engine.bits import ROWS, Bits, Counter
from peftlab.engine.stand_in import stand_in
from peftlab.layers import native
from peftlab.layers.precision import is_bare, outputs_of

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-ffp-contract=fast",)
STEP = 16  # numbers, the widest vector: a row has a multiple of it
# x's precision and r's that the kernel takes; bf16 beside fp32 is autocast's
TYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
)


class How(NamedTuple):
    """A pass beside its tensors.

    Attributes:
        eps: LayerNorm's ε.
        p: of dropout.
        counter: of its bits.
    """

    eps: float
    p: float
    counter: Counter


def is_built() -> bool:
    """Whether dropout.cpp is there for this process; builds it if need be."""
    shapes = {
        "dropout": _shape,
        "residual_norm": _shapes,
        "residual_norm_gradient": _gradient_shapes,
    }
    return native.is_built(SOURCE, *FLAGS, **shapes)


class FastDropout(nn.Dropout):
    """Dropout of probability `p` that draws from `bits`."""

    def __init__(self, p: float, bits: Bits) -> None:
        super().__init__(p)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if (x.dtype, x.dtype) in TYPES and x.shape[-1] % STEP == 0 and is_built():
            y: Tensor = _Dropout.apply(x, self.p, self.bits.counter())  # type: ignore[no-untyped-call]
            return y
        return x * self.bits.mask(x.shape, self.p, x.dtype)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, counter: Counter) -> Tensor:
        ctx.drawn = (p, *counter)
        y: Tensor = torch.ops.peftlab.dropout(x.contiguous(), *ctx.drawn)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.peftlab.dropout(gradients[0].contiguous(), *ctx.drawn), None, None


def residual_norm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, how: How) -> Tensor:
    """Two (*batch, width) in one of `TYPES` -> y, in r's; `width` is a multiple of `STEP`."""
    y: Tensor = _ResidualNorm.apply(x, r, weight, bias, how)  # type: ignore[no-untyped-call]
    return y


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, how: How) -> Tensor:
        y: Tensor
        y, s, moments = torch.ops.peftlab.residual_norm(
            x.contiguous(), r.contiguous(), weight, bias, how.eps, how.p, *how.counter
        )
        ctx.save_for_backward(s, moments, weight)
        ctx.drawn, ctx.x_type, ctx.bias_type = (how.p, *how.counter), x.dtype, bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s, moments, weight = ctx.saved_tensors
        learns = any(ctx.needs_input_grad[2:4])
        g_x, g_r, learned = torch.ops.peftlab.residual_norm_gradient(
            gradients[0].contiguous(), s, moments, weight, ctx.x_type, learns, *ctx.drawn
        )
        g_x = g_x if g_x.numel() else g_r
        if not learns:
            return g_x, g_r, None, None, None
        g_weight, g_bias = learned.sum(0)
        return g_x, g_r, g_weight.to(weight.dtype), g_bias.to(ctx.bias_type), None


def _shape(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def _shapes(x: Tensor, r: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    moments = r.new_empty(r.numel() // r.shape[-1], 2, dtype=torch.float32)
    return torch.empty_like(r), torch.empty_like(r), moments


def _gradient_shapes(
    g: Tensor,
    s: Tensor,
    moments: Tensor,
    weight: Tensor,
    x_type: torch.dtype,
    learns: bool,
    p: float,
    *counter: int,
) -> tuple[Tensor, Tensor, Tensor]:
    g_x = s.new_empty(s.shape if p else 0, dtype=x_type)
    blocks = -(-len(moments) // ROWS) if learns else 0
    return g_x, torch.empty_like(s), moments.new_empty(blocks, 2, s.shape[-1])


def serves(model: nn.Module) -> bool:
    """Whether the kernel computes something of `model`, as it is outside of the engine."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    drops = (type(module) is nn.Dropout and module.p > 0 for module in model.modules())
    found = any(drops) or any(map(_is_berts, model.modules()))
    return found and dtypes <= {dtype for pair in TYPES for dtype in pair} and is_built()


def join_residuals(model: nn.Module, bits: Bits, undo: ExitStack) -> None:
    """Let what ends each half of a block of `model` be one pass, where it is written as BERT's."""
    found = [module for module in model.modules() if _is_berts(module)]
    if found and is_built():
        for module in found:
            stand_in(module, "forward", _forward, undo, bits)


def _berts(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    hidden_states = self.dense(hidden_states)
    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)
    return hidden_states


def _is_berts(module: nn.Module) -> bool:
    """Whether `module` computes what `_berts` says, and nobody has put something in its place."""
    own = getattr(getattr(type(module), "forward", None), "__code__", None)
    is_same = own is not None and _read(own) == _read(_berts.__code__)
    return is_same and "forward" not in vars(module)


def _read(code: Any) -> tuple[Any, ...]:
    return code.co_code, code.co_names, code.co_consts, code.co_varnames, code.co_argcount


def _forward(
    module: Any, theirs: Any, bits: Bits, hidden_states: Tensor, input_tensor: Tensor
) -> Tensor:
    return ended(module, module.dense(hidden_states), input_tensor, bits)


def ended(module: Any, x: Tensor, r: Tensor, bits: Bits) -> Tensor:
    """LayerNorm(dropout(x) + r), as `module` has the two; dropout draws from `bits`."""
    norm, dropout, p = module.LayerNorm, module.dropout, 0.0
    if type(dropout) is FastDropout and is_bare(dropout) and _is_taken(norm, x, r):
        p = dropout.p if dropout.training else 0.0
    else:  # an adapter, or somebody looks at what it gives
        x = dropout(x)
        if not _is_taken(norm, x, r):
            y: Tensor = norm(x + r)
            return y
    counter = bits.counter() if p else Counter(0, 0)
    return residual_norm(x, r, norm.weight, norm.bias, How(norm.eps, p, counter))


def _is_taken(norm: nn.Module, x: Tensor, r: Tensor) -> bool:
    """Whether it is LayerNorm and no more, and the kernel takes such rows."""
    return (
        type(norm) is nn.LayerNorm
        and norm.bias is not None
        and norm.normalized_shape == x.shape[-1:]
        and x.shape == r.shape
        and x.shape[-1] % STEP == 0
        and (x.dtype, r.dtype) in TYPES
        and outputs_of(norm, r.dtype) == r.dtype
    )
