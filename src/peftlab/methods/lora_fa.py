"""LoRA-FA: LoRA with A frozen as it was drawn; only B is trained.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank, A constant
    corrected:  g_B ← g_B (A Aᵀ)⁻¹ / s²        before the optimizer sees it

Paper      Zhang et al. 2023, arXiv:2308.03303 (the frozen A)
Reference  PEFT's LoraFAOptimizer for the correction ("v2"); parity: tests/methods/
           test_parity_peft.py. The authors published no code of the first version
Shapes     W (out, in), A (rank, in) frozen · B (out, rank) trained
Init       A ~ U(±1/sqrt(in)), B = 0  =>  y = x Wᵀ + c at step 0
Cost       rank · out trained numbers a layer; the backward pass of B needs x Aᵀ alone, so the
           layer's input is not kept (tests/methods/test_lora_fa.py counts the saved bytes)
Departs    A is drawn as PEFT's, not from N(0, 1): A ← kA is exactly alpha ← k·alpha here, so a
           published alpha for N(0, 1) is sqrt(3·in) times as much in ours.
           (A Aᵀ)⁻¹ is computed once, since A never moves, and in fp32; the gradient is corrected
           before it is clipped (PEFT: in the optimizer's step, behind clipping)
Raises     as LoRA
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.layers import LoRALinear, replace_linears
from peftlab.methods.base import STRICT, Method, Step, register, train_head_only
from peftlab.models import Targets, find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RIDGE = 1e-8  # as in PEFT: A Aᵀ + RIDGE·I is inverted


@dataclass(frozen=True, config=STRICT)
@register
class LoRAFA(Method):
    """LoRA that trains B alone.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: probability, on the update's input only.
        targets: which layers, see `peftlab.models.find_targets`.
        correct_gradient: use the second version's gradient of B.
    """

    name: ClassVar[str] = "lora-fa"
    summary: ClassVar[str] = "LoRA with A frozen"
    paper: ClassVar[str] = "arXiv:2308.03303"
    default_lr: ClassVar[float] = 1e-3

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str = "query,value"
    correct_gradient: bool = False

    def inject(self, model: PreTrainedModel) -> Targets:
        targets = find_targets(model, self.targets)
        train_head_only(model)
        replace_linears(
            model,
            targets.names,
            lambda base: LoRALinear(base, self.rank, self.alpha / self.rank, self.dropout),
        )
        for layer in _layers(model):
            layer.lora_A.requires_grad_(False)
        return targets

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        if not self.correct_gradient:
            return
        for layer in _layers(model):
            if not hasattr(layer, "correction"):
                layer.register_buffer("correction", correction(layer), persistent=False)
            if layer.lora_B.grad is not None:
                layer.lora_B.grad = layer.lora_B.grad @ layer.get_buffer("correction")

    def peft_config(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
        }


def correction(layer: LoRALinear) -> Tensor:
    """(A Aᵀ)⁻¹ / s²: (rank, rank)."""
    gram = layer.lora_A @ layer.lora_A.T
    ridge = RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.pinv(gram + ridge)
    return inverse / layer.scaling**2


def _layers(model: PreTrainedModel) -> list[LoRALinear]:
    return [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
