"""LoRA: learn a low-rank difference beside each frozen weight.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank, or alpha / sqrt(rank)

Paper      Hu et al. 2021, arXiv:2106.09685, section 4.1, eq. 3
           Kalajdzievski 2023, arXiv:2312.03732, for s = alpha / sqrt(rank) (rsLoRA)
Reference  github.com/microsoft/LoRA, loralib/layers.py; parity: tests/methods/test_parity_peft.py
Shapes     W (out, in) frozen · A (rank, in), B (out, rank) trained
Init       A ~ U(±1/sqrt(in)), B = 0  =>  y = x Wᵀ + c at step 0
Cost       rank · (in + out) trained numbers a layer; no cost after merging W + s·B A
Departs    A is drawn as in the authors' code (Kaiming uniform), not the paper's Gaussian
Raises     RequestError if a target matches no layer, or rank exceeds a layer's smaller side
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from peftlab.layers import LoRALinear, replace_linears
from peftlab.methods.base import STRICT, Method, register, train_head_only
from peftlab.models import Targets, find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, config=STRICT)
@register
class LoRA(Method):
    """Low-rank adaptation of the target layers.

    Attributes:
        rank: of the update, r in the paper.
        alpha: the update is scaled by alpha / rank.
        dropout: probability, on the update's input only.
        targets: which layers, see `peftlab.models.find_targets`.
        rank_stabilised: scale by alpha / sqrt(rank) instead; at equal alpha a larger scale.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "a low-rank update of each target layer"
    paper: ClassVar[str] = "arXiv:2106.09685"
    default_lr: ClassVar[float] = 5e-4

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str = "query,value"
    rank_stabilised: bool = False

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def inject(self, model: PreTrainedModel) -> Targets:
        targets = find_targets(model, self.targets)
        train_head_only(model)
        replace_linears(
            model,
            targets.names,
            lambda base: LoRALinear(base, self.rank, self.scaling, self.dropout),
        )
        return targets

    def peft_config(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rank_stabilised,
        }
