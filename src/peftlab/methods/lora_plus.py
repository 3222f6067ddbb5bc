"""LoRA+: LoRA whose B learns faster than its A.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank,   lr(B) = ratio · lr(A)

Paper      Hayou, Ghosh, Yu 2024, arXiv:2402.12354, section 4 and its recommendation ratio = 2⁴
Reference  github.com/nikhil-ghosh-berkeley/loraplus; PEFT's create_loraplus_optimizer
           (parity of ten steps: tests/methods/test_parity_peft.py)
Shapes     as LoRA; only the optimizer's groups differ
Init       as LoRA
Cost       as LoRA
Departs    the head has a learning rate of its own; in the reference its weights learn at lr and,
           being vectors, its biases at ratio · lr
Raises     as LoRA
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from peftlab.layers import LoRALinear, PreTrainedModel
from peftlab.methods.base import STRICT, searched
from peftlab.methods.low_rank import PeftLoRA
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class LoRAPlus(PeftLoRA):
    """LoRA with one learning rate for A and a higher one for B.

    Attributes:
        rank, alpha, dropout, targets: LoRA's, see `LowRankMethod`.
        ratio: lr(B) / lr(A); 1 is LoRA.
    """

    name: ClassVar[str] = "lora-plus"
    summary: ClassVar[str] = "LoRA, B with a higher learning rate than A"
    paper: ClassVar[str] = "arXiv:2402.12354"
    default_lr: ClassVar[float] = 1.5e-4
    published_lr: ClassVar[float | None] = 5e-5  # A's, beside a ratio of 80

    ratio: float = searched(16.0, 1, 64, gt=0)

    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """The default groups, with B moved from the adapter's to one that learns faster."""
        fast = [layer.lora_B for layer in model.modules() if isinstance(layer, LoRALinear)]
        fast_ids = {id(parameter) for parameter in fast}
        groups = super().parameter_groups(model, lr, head_lr, weight_decay)
        slow = [
            group | {"params": [p for p in group["params"] if id(p) not in fast_ids]}
            for group in groups
        ]
        return [
            *slow,
            {"params": fast, "lr": self.ratio * lr, "weight_decay": weight_decay},
        ]
