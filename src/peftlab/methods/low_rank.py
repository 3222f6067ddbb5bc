"""What the methods of LoRA's family share: settings, the layer, and PEFT's names for them.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank

`LowRankMethod` is a method of the family, `PeftLoRA` one whose adapters are LoRA to PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.errors import RequestError
from peftlab.layers import Adapter, Linear, LoRALinear, PreTrainedModel
from peftlab.methods.base import STRICT, Method, adapt, searched
from peftlab.methods.peft import InPeft, layers_with, refuse
from peftlab.models import Targets

# settings of PEFT's LoRA that change what it computes and that no method here has
REFUSED = {
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}
MOVED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # inits that change the base itself
NAMES = {"lora_A": "{layer}.lora_A.weight", "lora_B": "{layer}.lora_B.weight"}


@dataclass(frozen=True, config=STRICT)
class LowRankMethod(Method):
    """A low-rank update of each target layer.

    Attributes:
        rank: of the update, r in the paper.
        alpha: the update is scaled by alpha / rank.
        dropout: probability, on the update's input only.
        targets: which layers, see `peftlab.models.find_targets`.
    """

    rank: int = searched(8, 1, 64, ge=1)
    alpha: float = searched(16.0, 1, 64, gt=0)
    dropout: float = searched(0.0, 0, 0.3, log=False, ge=0, lt=1)
    targets: str = "query,value"

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def layer(self, base: Linear) -> Adapter:
        """The adapter that replaces a target layer."""
        return LoRALinear(base, self.rank, self.scaling, self.dropout)

    def inject(self, model: PreTrainedModel) -> Targets:
        return adapt(model, self.targets, self.layer)


class PeftLoRA(LowRankMethod, InPeft):
    """A method of the family whose adapters are LoRA to PEFT."""

    peft_type: ClassVar[str] = "LORA"
    peft_needs: ClassVar[Mapping[str, type]] = {"r": int}
    peft_names: ClassVar[Mapping[str, str]] = NAMES

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
        }


def lora_settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of `LowRankMethod` that a config of PEFT's LoRA means.

    Raises:
        RequestError: if the config asks for something that no method here computes.
    """
    refuse(config, REFUSED)
    if str(config.get("init_lora_weights")).lower().startswith(MOVED_BASE):
        raise RequestError(
            f"PEFT's init_lora_weights={config['init_lora_weights']!r} changes the base itself, "
            "so that these tensors do not belong to the base that the folder names"
        )
    return {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "dropout": float(config.get("lora_dropout", 0.0)),
        "targets": layers_with(tensors, ".lora_A.weight"),
    }
