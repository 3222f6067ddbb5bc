"""What ends each half of a block, in one pass in C++ where a compiler is found.

    s = x ∘ M + r,   y = LayerNorm(s)        x: of the last layer;  r: what went around it

Torch's own takes three passes forward and back, and keeps M beside s. Here M is drawn again from a
counter (philox.py), so that s and two numbers a row are all that is kept: LoRA on MPNet-base takes
an eighth less memory for it, and 1 to 4 % less time (LOG.md). All is computed in fp32, and s
rounded once, where torch rounds x ∘ M too.

BERT's modules do this in their `forward`, and transformers copies those from model to model. What
is the same as BERT's, is so to the instruction: that is how such a module is known.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftlab.engine.attention import Bits, FastDropout
from peftlab.engine.philox import Counter
from peftlab.engine.stand_in import stand_in
from peftlab.layers import native

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-ffp-contract=fast",)
LANES = 16  # numbers of a row that the kernel takes at once
# x's and r's precisions that residual.cpp takes; the second pair is autocast's
DTYPES = {
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
}


class How(NamedTuple):
    """The pass beside its tensors.

    Attributes:
        eps: LayerNorm's ε.
        p: of dropout.
        counter: of its bits.
    """

    eps: float
    p: float
    counter: Counter


def is_built() -> bool:
    """Whether residual.cpp is there for this process; builds it if need be."""
    if not native.is_built(SOURCE, *FLAGS):
        return False
    _register_shapes()
    return True


@functools.cache
def _register_shapes() -> None:
    """Let the operations take tensors that have only shapes."""
    torch.library.register_fake("peftlab::residual_norm", _shapes)
    torch.library.register_fake("peftlab::residual_norm_gradient", _gradient_shapes)


def residual_norm(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, how: How) -> Tensor:
    """Two (*batch, width) -> y, like `r`; `width` is a multiple of 16."""
    found: Tensor = _ResidualNorm.apply(x, r, weight, bias, how)  # type: ignore[no-untyped-call]
    return found


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, how: How) -> Tensor:
        rows = (part.reshape(-1, part.shape[-1]).contiguous() for part in (x, r))
        y, s, moments = torch.ops.peftlab.residual_norm(
            *rows, weight, bias, how.eps, how.p, *how.counter
        )
        ctx.save_for_backward(s, moments, weight)
        ctx.how, ctx.dtypes = how, (x.dtype, bias.dtype)
        found: Tensor = y.view(r.shape)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        s, moments, weight = ctx.saved_tensors
        how: How = ctx.how
        x_dtype, bias_dtype = ctx.dtypes
        (g,) = gradients
        rows, learns = g.reshape(s.shape).contiguous(), any(ctx.needs_input_grad[2:4])
        g_x, g_r, learned = torch.ops.peftlab.residual_norm_gradient(
            rows, s, moments, weight, x_dtype, learns, how.p, *how.counter
        )
        g_r = g_r.view(g.shape)
        g_x = g_x.view(g.shape) if g_x.numel() else g_r
        if not learns:
            return g_x, g_r, None, None, None
        g_weight, g_bias = learned.sum(0)
        return g_x, g_r, g_weight.to(weight.dtype), g_bias.to(bias_dtype), None


def _shapes(x: Tensor, r: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    moments = r.new_empty(len(r), 2, dtype=torch.float32)
    return torch.empty_like(r), torch.empty_like(r), moments


def _gradient_shapes(
    g: Tensor, s: Tensor, moments: Tensor, weight: Tensor, dtype: torch.dtype, learns: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    learned = moments.new_empty(-(-len(s) // 8) if learns else 0, 2, s.shape[1])
    return s.new_empty(s.shape, dtype=dtype), torch.empty_like(s), learned


def join_residuals(model: nn.Module, bits: Bits, undo: ExitStack) -> None:
    """Let what ends each half of a block of `model` be one pass, where it is written as BERT's."""
    for module in model.modules():
        if _is_berts(module):
            stand_in(module, "forward", _forward, undo, bits)


def _is_berts(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    if names != {"dense", "dropout", "LayerNorm"}:
        return False
    from transformers.models.bert.modeling_bert import BertOutput

    return _instructions(type(module)) == _instructions(BertOutput)


def _instructions(kind: type[nn.Module]) -> tuple[Any, ...] | None:
    code: CodeType | None = getattr(kind.forward, "__code__", None)
    return None if code is None else (code.co_code, code.co_names, code.co_consts)


def _forward(
    module: Any, theirs: Any, bits: Bits, hidden_states: Tensor, input_tensor: Tensor
) -> Tensor:
    return end(module, module.dense(hidden_states), input_tensor, bits)


def end(module: Any, x: Tensor, r: Tensor, bits: Bits) -> Tensor:
    """LayerNorm(dropout(x) + r), as `module` has the two; dropout draws from `bits`."""
    norm, dropout = module.LayerNorm, module.dropout
    if not _is_taken(norm) or (x.dtype, r.dtype) not in DTYPES:
        y: Tensor = norm(dropout(x) + r)
        return y
    p = 0.0
    if type(dropout) is FastDropout and not _is_hooked(dropout):
        p = dropout.p if dropout.training else 0.0
    else:  # an adapter ends the half
        x = dropout(x).to(x.dtype)
    return residual_norm(x, r, norm.weight, norm.bias, How(norm.eps, p, bits.counter()))


def _is_taken(norm: nn.Module) -> bool:
    """Whether it is LayerNorm and no more, of rows that the kernel takes."""
    return (
        type(norm) is nn.LayerNorm
        and not _is_hooked(norm)
        and norm.bias is not None
        and len(norm.normalized_shape) == 1
        and norm.normalized_shape[0] % LANES == 0
    )


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
