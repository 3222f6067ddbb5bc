"""BitFit: train the biases and leave every weight as it is.

    y = x Wᵀ + c      W frozen, c trained; so too β of every norm, γ frozen

Paper      Ben Zaken, Ravfogel, Goldberg 2022, arXiv:2106.10199, section 3 (all bias terms)
Shapes     a BERT layer has 4d + d + 4d + d + d biases, the embeddings' norm d more
Cost       11·d·L + d trained parameters; the backward pass goes through the whole base
Departs    weights are held in the base's precision, biases in fp32 beside them, and are added in
           the precision of x; a norm with a bias is held in fp32 whole; a bias that is no
           module's `bias`, such as q_bias of the first DeBERTa, stays frozen. A pooler is a part
           of the head and trained whole, where the authors' code freezes its matrix
Raises     RequestError if the backbone has no bias to train
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.errors import RequestError
from peftlab.layers import (
    Adapter,
    Linear,
    PreTrainedModel,
    exact,
    is_conv1d,
    is_linear,
    keep_in_fp32,
    replace_linears,
)
from peftlab.methods.base import STRICT, Method, train_head_only
from peftlab.methods.registry import register
from peftlab.models import backbone_modules, unread_modules


@dataclass(frozen=True, config=STRICT)
@register
class BitFit(Method):
    """Train every bias of the backbone. No settings."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "every bias of the backbone"
    paper: ClassVar[str] = "arXiv:2106.10199"
    default_lr: ClassVar[float] = 1e-3
    published_lr: ClassVar[float | None] = 1e-3  # the default of the authors' script

    def inject(self, model: PreTrainedModel) -> None:
        biased = _biased_modules(model)
        if not biased:
            kind = model.config.model_type
            raise RequestError(
                f"bitfit trains biases and this backbone ({kind}) has none; "
                "choose another method, such as lora"
            )
        train_head_only(model)
        replace_linears(model, [n for n, layer in biased.items() if is_linear(layer)], BiasedLinear)
        for layer in biased.values():
            if is_linear(layer):
                continue
            if next(layer.parameters()).dtype.itemsize < 4:
                keep_in_fp32(layer, inside=True)
            layer.get_parameter("bias").requires_grad_(True)


def _biased_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the backbone that have a bias, without those that no answer depends on."""
    excluded = {*unread_modules(model)}
    return {
        name: module
        for name, module in backbone_modules(model).items()
        if isinstance(getattr(module, "bias", None), nn.Parameter) and name not in excluded
    }


class BiasedLinear(Adapter):
    """A linear layer whose bias is trained, in fp32; it is moved here from the base."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.bias = nn.Parameter(exact(base.bias.detach()))  # (out,)
        zeros = nn.Parameter(torch.zeros_like(base.bias), requires_grad=False)
        base.bias = zeros if is_conv1d(base) else None  # GPT-2's layer can't do without one
        self.base = base

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        y: Tensor = self.base(x)
        return y + self.bias.to(y.dtype)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> the same
        return weight

    def merged_bias(self) -> Tensor:
        return self.bias
