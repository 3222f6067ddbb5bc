"""BitFit: train the biases and leave every weight as it is.

    y = x Wᵀ + c      W frozen, c trained; so too β of every norm, γ frozen

Paper      Ben Zaken, Ravfogel, Goldberg 2022, arXiv:2106.10199, section 3 (all bias terms)
Shapes     a BERT layer has 4d + d + 4d + d + d biases, the embeddings' norm d more
Cost       11·d·L + d trained numbers; the backward pass goes through the whole base
Departs    biases are held in fp32 with the rest of the base and compute in bf16 by autocast
Raises     RequestError if the backbone has no bias to train
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from peftlab.errors import RequestError
from peftlab.methods.base import STRICT, Method, register, train_head_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, config=STRICT)
@register
class BitFit(Method):
    """Train every bias of the backbone. No settings."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "every bias of the backbone"
    paper: ClassVar[str] = "arXiv:2106.10199"
    default_lr: ClassVar[float] = 3e-3
    base_precision: ClassVar[str | None] = "fp32"

    def inject(self, model: PreTrainedModel) -> None:
        train_head_only(model)
        backbone = model.get_submodule(model.base_model_prefix)
        biases = [
            module.bias
            for module in backbone.modules()
            if isinstance(getattr(module, "bias", None), nn.Parameter)
            and not module.bias.requires_grad
        ]
        if not biases:
            kind = model.config.model_type
            raise RequestError(
                f"bitfit trains biases and this backbone ({kind}) has none; "
                "choose another method, such as lora"
            )
        for bias in biases:
            bias.requires_grad_(True)
