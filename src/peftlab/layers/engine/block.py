"""What follows attention in a frozen post-norm block, as two functions instead of a dozen modules.

    Closing      y = LN(x + drop ∘ (z Wᵀ + c))                       attention's output
    FeedForward  y = LN(x + drop ∘ (gelu(x W₁ᵀ + c₁) W₂ᵀ + c₂))      the two wide products

Nothing here is trained, so each has the gradient of its inputs alone, with the passes over memory
that need it: dropout and sum are one, and backward the sum is the product's own. Where an adapter,
a trained norm or a hook stands inside, and where the products are not packed, the modules stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.layers.engine.masks import FastDropout
from peftlab.layers.engine.packed import Packed, PackedLinear


class Names(NamedTuple):
    """Of a block's parts: the closing of attention, where it is a module, and the wide products."""

    closing: str | None
    inner: str
    outer: str


BERT = Names("attention.output", "intermediate", "output")
NAMES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), BERT),
    "mpnet": Names(None, "intermediate", "output"),
}


class _Norm(NamedTuple):
    """A frozen LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return y, mean, rstd

    def gradient(self, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            g, x, x.shape[-1:], mean, rstd, self.weight, self.bias, [True, False, False]
        )[0]
        return found


class _Closing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        x: Tensor,
        weight: Packed,
        bias: Tensor | None,
        drop: Tensor | None,
        norm: _Norm,
    ) -> Tensor:
        added = _add_dropped(x, weight.product(z, bias), drop)
        y, mean, rstd = norm(added)
        ctx.save_for_backward(added, mean, rstd, drop)
        ctx.weight, ctx.norm = weight, norm
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        added, mean, rstd, drop = ctx.saved_tensors
        g = ctx.norm.gradient(gradients[0], added, mean, rstd)
        g_z = ctx.weight.gradient(g if drop is None else g * drop)
        return g_z, g, None, None, None, None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Packed,
        inner_bias: Tensor | None,
        outer: Packed,
        outer_bias: Tensor | None,
        drop: Tensor | None,
        norm: _Norm,
    ) -> Tensor:
        wide = inner.product(x, inner_bias)
        added = _add_dropped(x, outer.product(F.gelu(wide), outer_bias), drop)
        y, mean, rstd = norm(added)
        ctx.save_for_backward(wide, added, mean, rstd, drop)
        ctx.inner, ctx.outer, ctx.norm = inner, outer, norm
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wide, added, mean, rstd, drop = ctx.saved_tensors
        g = ctx.norm.gradient(gradients[0], added, mean, rstd)
        g_wide = ctx.outer.gradient(g if drop is None else g * drop)
        g_wide = torch.ops.aten.gelu_backward(g_wide, wide)
        return ctx.inner.gradient(g_wide, onto=g), None, None, None, None, None, None


def _add_dropped(x: Tensor, z: Tensor, drop: Tensor | None) -> Tensor:
    return x + z if drop is None else torch.addcmul(x, z, drop)


class Closing(nn.Module):
    """In the place of a module of `dense`, `dropout` and `LayerNorm`, which it keeps."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = plain.dense, plain.dropout, plain.LayerNorm
        self.norm = _Norm(plain.LayerNorm.weight, plain.LayerNorm.bias, plain.LayerNorm.eps)
        self.training = plain.training

    def mask(self, like: Tensor) -> Tensor | None:
        if not (self.training and isinstance(self.dropout, FastDropout)):
            return None
        return self.dropout.mask(like)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:  # both (*batch, hidden), as they go in
        weight, bias = self.dense.alone
        y: Tensor = _Closing.apply(z, x, weight, bias, self.mask(x), self.norm)  # type: ignore[no-untyped-call]
        return y


class FeedForward(Closing):
    """In the place of the module behind the wide products; `inner` is the one before it."""

    def __init__(self, plain: Any, inner: PackedLinear) -> None:
        super().__init__(plain)
        self.__dict__["inner"] = inner  # a part of the module before this one

    def forward(self, _: Tensor, x: Tensor) -> Tensor:  # (*batch, hidden) -> the same
        inner, outer = self.__dict__["inner"].alone, self.dense.alone
        y: Tensor = _FeedForward.apply(x, *inner, *outer, self.mask(x), self.norm)  # type: ignore[no-untyped-call]
        return y


class Passing(nn.Module):
    """In the place of the module before the wide products: `FeedForward` does its work."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.dense = plain.dense
        self.training = plain.training

    def forward(self, x: Tensor) -> Tensor:
        return x


def blocks(model: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """What of `model` can be replaced: name, module, and what to put in its place."""
    names = NAMES.get(model.config.model_type)
    if names is None:
        return
    for name, module in list(model.named_modules()):
        closing = getattr(module, "attention", None) and names.closing
        if closing and _closes(part := model.get_submodule(f"{name}.{closing}")):
            yield f"{name}.{closing}", part, Closing(part)
        inner, outer = (getattr(module, part, None) for part in (names.inner, names.outer))
        if _widens(inner) and _closes(outer):
            yield f"{name}.{names.inner}", inner, Passing(inner)
            yield f"{name}.{names.outer}", outer, FeedForward(outer, inner.dense)


def _closes(module: Any) -> bool:
    """Whether the module is dropout of a packed product, a sum and a frozen norm, and no more."""
    children = dict(module.named_children()) if isinstance(module, nn.Module) else {}
    norm, dropout = children.get("LayerNorm"), children.get("dropout")
    return bool(
        children.keys() == {"dense", "LayerNorm", "dropout"}
        and _is_packed(children["dense"])
        and type(norm) is nn.LayerNorm
        and not any(p.requires_grad for p in norm.parameters())
        and (type(dropout) is FastDropout or (type(dropout) is nn.Dropout and dropout.p == 0))
        and not _is_watched(module)
    )


def _widens(module: Any) -> bool:
    """Whether the module is gelu of a packed product."""
    children = dict(module.named_children()) if isinstance(module, nn.Module) else {}
    return bool(
        _is_packed(children.get("dense"))
        and type(getattr(module, "intermediate_act_fn", None)).__name__ == "GELUActivation"
        and not _is_watched(module)
    )


def _is_packed(module: Any) -> bool:
    return isinstance(module, PackedLinear) and module.is_alone


def _is_watched(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
