"""Delta-LoRA: LoRA whose frozen weight follows the change of its update.

    y = x Wᵀ + c + s · x Aᵀ Bᵀ                      s = alpha / rank
    after step t > K:  W ← W + λ·s·(Bₜ₊₁Aₜ₊₁ - BₜAₜ)

Paper      Zi et al. 2023, arXiv:2309.02411, algorithm 1 (GLUE: λ = 0.5, K = the warm-up)
Reference  none published by the authors; the formula in float64: tests/methods/test_delta_lora.py
Shapes     W (out, in) moved without a gradient · A (rank, in), B (out, rank) trained
Init       as LoRA; no dropout in the update, whose gradient stands for that of W
Cost       as LoRA, and a pass through both pairs of factors; no gradient or state for W
Departs    the sum telescopes, W_T = W₀ + λ·s·(B_TA_T - B_KA_K), so W stays as it was and the
           difference is kept as two pairs of factors: a W in bf16 would swallow single increments.
           With K = 0 under AdamW it is LoRA at (1+λ)·alpha but for AdamW's epsilon and clipping;
           control=true trains just that, for comparison.
           In a second training the weight follows from the first step on: K and B_KA_K stay the
           first training's, so that no change of the weight is lost
Raises     as LoRA, and RequestError on a quantised base
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.errors import RequestError
from peftlab.layers import (
    QUANTISED,
    Adapter,
    Linear,
    LoRALinear,
    PreTrainedModel,
    WeightAdapter,
    add_low_rank,
    new_pair,
    weight_precision,
)
from peftlab.methods.base import STRICT, Method, Step, adapt, searched
from peftlab.methods.registry import register
from peftlab.models import Targets


@dataclass(frozen=True, config=STRICT)
@register
class DeltaLoRA(Method):
    """LoRA that moves the weight beside it.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        targets: which layers, see `peftlab.models.find_targets`.
        delta: λ, how much of the update's change the weight takes.
        start: K, the steps before the weight begins to move; the warm-up's if not given.
        control: train LoRA at (1+λ)·alpha instead, which Delta-LoRA has to beat.
    """

    name: ClassVar[str] = "delta-lora"
    summary: ClassVar[str] = "LoRA, the frozen weight follows its change"
    paper: ClassVar[str] = "arXiv:2309.02411"
    default_lr: ClassVar[float] = 1.5e-3

    rank: int = searched(8, 1, 64, ge=1)
    alpha: float = searched(16.0, 1, 64, gt=0)
    targets: str = "query,value"
    delta: float = Field(default=0.5, ge=0)
    start: int | None = Field(default=None, ge=0)
    control: bool = False

    def inject(self, model: PreTrainedModel) -> Targets:
        if (precision := weight_precision(model)) in QUANTISED:
            raise RequestError(
                f"delta-lora moves the base's weights, and in {precision} they can't be; "
                "hold the base in fp32 or bf16"
            )
        return adapt(model, self.targets, self.layer)

    def layer(self, base: Linear) -> Adapter:
        """The adapter that replaces a target layer."""
        scaling = self.alpha / self.rank
        if self.control:
            return LoRALinear(base, self.rank, (1 + self.delta) * scaling)
        return DeltaLoRALinear(base, self.rank, scaling, self.delta)

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        start = step.warmup if self.start is None else self.start
        if step.index == start:  # `start` updates are done
            for layer in model.modules():
                if isinstance(layer, DeltaLoRALinear):
                    layer.follow()


class DeltaLoRALinear(WeightAdapter):
    """A linear layer with a low-rank update and, once the weight follows that, its own change."""

    def __init__(self, base: Linear, rank: int, scaling: float, delta: float) -> None:
        super().__init__()
        self.base = base
        self.scaling, self.delta = scaling, delta
        self.lora_A, self.lora_B = new_pair(base, rank)
        for name, factor in {"start_A": self.lora_A, "start_B": self.lora_B}.items():
            self.register_buffer(name, torch.zeros_like(factor))  # A_K and B_K
        self.register_buffer("follows", self.lora_A.new_zeros(()))  # 0 or 1
        self.start_A: Tensor
        self.start_B: Tensor
        self.follows: Tensor

    @torch.no_grad()
    def follow(self) -> None:
        """Let the weight take λ of the update's change from now on, unless it does already."""
        if self.follows:
            return
        self.start_A.copy_(self.lora_A)
        self.start_B.copy_(self.lora_B)
        self.follows.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        # in LoRALinear's order: with λ = 0, outside the engine, it is LoRA bit for bit
        out = add_low_rank(self.base(x), x, self.lora_A, self.lora_B, self.scaling)
        pairs = torch.cat([self.lora_A.detach(), self.start_A])  # (2·rank, in)
        signed = torch.cat([self.lora_B.detach(), -self.start_B], dim=1)  # (out, 2·rank)
        return add_low_rank(out, x, pairs, self.follows * signed, self.delta * self.scaling)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        update, start = self.lora_B @ self.lora_A, self.start_B @ self.start_A
        return weight + self.scaling * (update + self.delta * self.follows * (update - start))
