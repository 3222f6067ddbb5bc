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
class LoRAPlus(Method):
    """LoRA with a learning rate of A and a higher one of B.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: probability, on the update's input only.
        targets: which layers, see `peftlab.models.find_targets`.
        ratio: lr(B) / lr(A); 1 is LoRA.
    """

    name: ClassVar[str] = "lora-plus"
    summary: ClassVar[str] = "LoRA, B with a higher learning rate than A"
    paper: ClassVar[str] = "arXiv:2402.12354"
    default_lr: ClassVar[float] = 1.25e-4

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str = "query,value"
    ratio: float = Field(default=16.0, gt=0)

    def inject(self, model: PreTrainedModel) -> Targets:
        targets = find_targets(model, self.targets)
        train_head_only(model)
        replace_linears(
            model,
            targets.names,
            lambda base: LoRALinear(base, self.rank, self.alpha / self.rank, self.dropout),
        )
        return targets

    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """The default groups, with B taken out of the adapter's into one that learns faster."""
        fast = [layer.lora_B for layer in model.modules() if isinstance(layer, LoRALinear)]
        ids = {id(parameter) for parameter in fast}
        groups = super().parameter_groups(model, lr, head_lr, weight_decay)
        slow = [
            group | {"params": [p for p in group["params"] if id(p) not in ids]} for group in groups
        ]
        return [
            *slow,
            {"params": fast, "lr": self.ratio * lr, "weight_decay": weight_decay},
        ]

    def peft_config(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
        }
