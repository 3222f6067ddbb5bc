"""Full fine-tuning: every parameter of the base and of the head is trained.

    W ← W - update(∇W)   for every weight, bias, norm and embedding

Paper      the baseline of Hu et al. 2021, arXiv:2106.09685, table 2 ("FT")
Cost       all parameters trained: gradients and AdamW's two moments for each
Departs    nothing: fp32 master weights, which compute in bf16 by autocast where that is fast
"""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from peftlab.layers import PreTrainedModel
from peftlab.methods.base import STRICT, Method
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class FullFineTuning(Method):
    """Train everything. No settings."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "every parameter of the model"
    paper: ClassVar[str] = "baseline"
    default_lr: ClassVar[float] = 2e-5
    published_lr: ClassVar[float | None] = 2e-5
    base_precision: ClassVar[str | None] = "fp32"
    saves_full_weights: ClassVar[bool] = True

    def inject(self, model: PreTrainedModel) -> None:
        model.requires_grad_(True)
