"""LoRA: learn a low-rank difference beside each frozen weight.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank, or alpha / sqrt(rank)

Paper      Hu et al. 2021, arXiv:2106.09685, section 4.1, eq. 3
           Kalajdzievski 2023, arXiv:2312.03732, for s = alpha / sqrt(rank) (rsLoRA)
Reference  github.com/microsoft/LoRA, loralib/layers.py; parity: tests/methods/test_parity_peft.py
Shapes     W (out, in) frozen · A (rank, in), B (out, rank) trained
Init       A ~ U(±1/sqrt(in)), B = 0  =>  y = x Wᵀ + c at step 0
Cost       rank · (in + out) trained parameters a layer; no cost after merging W + s·B A
Departs    A is drawn as in the authors' code (Kaiming uniform), not the paper's Gaussian
Raises     RequestError if a target matches no layer, or rank exceeds a layer's smaller side
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.layers import Adapter
from peftlab.methods.base import STRICT
from peftlab.methods.low_rank import PeftLoRA, lora_settings
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class LoRA(PeftLoRA):
    """Low-rank adaptation of the target layers.

    Attributes:
        rank, alpha, dropout, targets: the family's, see `LowRankMethod`.
        rank_stabilised: scale by alpha / sqrt(rank) instead; at equal alpha a larger scale.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "a low-rank update of each target layer"
    paper: ClassVar[str] = "arXiv:2106.09685"
    default_lr: ClassVar[float] = 1.5e-3
    published_lr: ClassVar[float | None] = 5e-4

    rank_stabilised: bool = False

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        return super().peft_config(layers) | {"use_rslora": self.rank_stabilised}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        if config.get("use_dora"):
            return None
        settings = lora_settings(config, tensors)
        return cls(**settings, rank_stabilised=bool(config.get("use_rslora")))
