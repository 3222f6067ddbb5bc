"""Head only: the whole base is frozen and the head is trained on its outputs.

    logits = head(base(x)),   only the head's weights move

Paper      the baseline that BitFit's authors call "frozen" (Ben Zaken et al. 2022)
Cost       the head's parameters; nothing is stored for a backward pass through the base
Departs    the base's dropout stays on in training, as in every method here, so that the
           methods differ in what they train and in nothing else
"""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from peftlab.layers import PreTrainedModel
from peftlab.methods.base import HEAD_LR, STRICT, Method, train_head_only
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class HeadOnly(Method):
    """Train the head alone. No settings."""

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "the head alone"
    paper: ClassVar[str] = "baseline"
    default_lr: ClassVar[float] = HEAD_LR
    head_alone: ClassVar[bool] = True

    def inject(self, model: PreTrainedModel) -> None:
        train_head_only(model)
