"""DoRA: learn a magnitude per output and a low-rank change of the weight's direction.

    W' = m · (W + s·B A) / ‖W + s·B A‖        row norm, s = alpha / rank

Paper      Liu et al. 2024, arXiv:2402.09353, eq. 5, and section 4.3 for the constant norm
Reference  PEFT's tuners/lora/dora.py; parity test: tests/methods/test_parity_peft.py
Shapes     W (out, in) frozen · A (rank, in), B (out, rank), m (out,) trained
Init       A ~ U(±1/sqrt(in)), B = 0, m = ‖W‖  =>  W' = W at step 0
Cost       rank·(in + out) + out trained parameters a layer. The norm is taken of
           ‖W‖² + 2s⟨W, B A⟩ + s²‖B A‖² row by row, ‖W‖² once: O(out·in·rank), whatever the batch
Departs    ‖·‖ is a constant in the backward pass (paper, section 4.3); dropout acts on the update
           only (PEFT: also on the (m/‖·‖ - 1)·x Wᵀ beside it); m, a vector, never decays
Raises     as LoRA
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.layers import (
    Adapter,
    Linear,
    LowRank,
    Pair,
    exact,
    rescaled,
    squared_norms,
    weight_of,
)
from peftlab.methods.base import STRICT
from peftlab.methods.low_rank import NAMES, PeftLoRA, lora_settings
from peftlab.methods.registry import register

# least ‖·‖² of a row: a row of zeros, of m = 0, stays zero instead of becoming 0 / 0
SMALLEST = 1e-36


@dataclass(frozen=True, config=STRICT)
@register
class DoRA(PeftLoRA):
    """Weight-decomposed low-rank adaptation of the target layers. Its settings are the family's."""

    name: ClassVar[str] = "dora"
    summary: ClassVar[str] = "a low-rank update of direction, and a magnitude per output"
    paper: ClassVar[str] = "arXiv:2402.09353"
    default_lr: ClassVar[float] = 1.5e-3

    peft_names: ClassVar[Mapping[str, str]] = {
        **NAMES,
        "magnitude": "{layer}.lora_magnitude_vector",
    }

    def layer(self, base: Linear) -> Adapter:
        return DoRALinear(base, self.rank, self.scaling, self.dropout)

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        return super().peft_config(layers) | {"use_dora": True}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        if not config.get("use_dora"):
            return None
        settings = lora_settings(config, tensors)
        if config.get("use_rslora"):  # alpha / √rank is alpha' / rank for alpha' = alpha · √rank
            settings["alpha"] *= settings["rank"] ** 0.5
        return cls(**settings)


class DoRALinear(LowRank):
    """A linear layer with a magnitude and a low-rank change of direction.

    >>> DoRALinear(nn.Linear(8, 4), rank=2, scaling=2.0)(torch.zeros(3, 8)).shape
    torch.Size([3, 4])
    """

    has_gain: ClassVar[bool] = True

    def __init__(self, base: Linear, rank: int, scaling: float, dropout_p: float = 0.0) -> None:
        super().__init__(base, rank, dropout_p)
        self.scaling = scaling
        squares = exact(weight_of(base)).square().sum(dim=1)  # (out,)
        self.magnitude = nn.Parameter(squares.sqrt())
        self.register_buffer("base_squares", squares, persistent=False)  # ‖W‖², of a frozen W
        self.base_squares: Tensor
        self.register_load_state_dict_post_hook(_update_squares)  # type: ignore[no-untyped-call]

    def pair(self) -> Pair:
        return Pair(self.lora_A, self.lora_B, self.scaling)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        return rescaled(self.updated(x), self.magnitude / self.norm(), self.base.bias)

    def norm(self) -> Tensor:
        """‖W + s·B A‖ of each row: (out,), a constant to autograd."""
        squares = squared_norms(self.base, self.base_squares, self.pair())
        return squares.clamp_(min=SMALLEST).sqrt_()

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        direction: Tensor = weight + self.scaling * self.lora_B @ self.lora_A
        norm: Tensor = direction.norm(dim=1, keepdim=True).clamp(min=SMALLEST**0.5)
        return self.magnitude[:, None] * direction / norm


@torch.no_grad()
def _update_squares(layer: DoRALinear, _: object) -> None:
    """Compute ‖W‖² anew, after another base has been loaded into the layer."""
    layer.base_squares.copy_(exact(weight_of(layer.base)).square().sum(dim=1))
