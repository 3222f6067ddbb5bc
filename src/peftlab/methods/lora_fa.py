"""LoRA-FA: LoRA with A frozen as it was drawn; only B is trained.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ        s = alpha / rank, A constant
    corrected:  g_B ← g_B (A Aᵀ)⁻¹ / s²        before the optimizer sees it

Paper      Zhang et al. 2023, arXiv:2308.03303 (the frozen A)
Reference  PEFT's LoraFAOptimizer for the correction ("v2"); parity: tests/methods/
           test_parity_peft.py. The authors published no code of the first version
Shapes     W (out, in), A (rank, in) frozen · B (out, rank) trained
Init       A ~ U(±1/sqrt(in)), B = 0  =>  y = x Wᵀ + c at step 0
Cost       rank · out trained parameters a layer; the backward pass of B needs x Aᵀ alone, so the
           layer's input is not kept (tests/methods/test_lora_fa.py counts the saved bytes)
Departs    A is drawn as PEFT's, not from N(0, 1): A ← kA is exactly alpha ← k·alpha here, so a
           published alpha for N(0, 1) is sqrt(3·in) times as much in ours.
           (A Aᵀ)⁻¹ is computed once, since A never moves, and in fp32; the gradient is corrected
           before it is clipped (PEFT: in the optimizer's step, behind clipping)
Raises     as LoRA
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.layers import Adapter, Linear, LoRALinear, PreTrainedModel
from peftlab.methods.base import STRICT, Step
from peftlab.methods.low_rank import PeftLoRA
from peftlab.methods.registry import register

RIDGE = 1e-8  # as in PEFT: A Aᵀ + RIDGE·I is inverted


@dataclass(frozen=True, config=STRICT)
@register
class LoRAFA(PeftLoRA):
    """LoRA that trains B alone.

    Attributes:
        rank, alpha, dropout, targets: LoRA's, see `LowRankMethod`.
        correct_gradient: whether to use the second version's gradient of B.
    """

    name: ClassVar[str] = "lora-fa"
    summary: ClassVar[str] = "LoRA with A frozen"
    paper: ClassVar[str] = "arXiv:2308.03303"
    default_lr: ClassVar[float] = 5e-3
    published_lr: ClassVar[float | None] = 5e-4  # LoRA's: the paper has none for this size

    correct_gradient: bool = False

    def layer(self, base: Linear) -> Adapter:
        layer = LoRALinear(base, self.rank, self.scaling, self.dropout)
        layer.lora_A.requires_grad_(False)
        layer.register_load_state_dict_post_hook(_drop_correction)  # type: ignore[no-untyped-call]
        return layer

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        if not self.correct_gradient:
            return
        for layer in model.modules():
            if not isinstance(layer, LoRALinear):
                continue
            if not hasattr(layer, "correction"):
                layer.register_buffer("correction", correction(layer), persistent=False)
            if (grad := layer.lora_B.grad) is not None:  # in place: a CUDA graph adds to it
                grad.copy_(grad @ layer.get_buffer("correction"))


def _drop_correction(layer: LoRALinear, _: object) -> None:
    """Let the correction be computed anew, after another A has been loaded into the layer."""
    layer._buffers.pop("correction", None)


def correction(layer: LoRALinear) -> Tensor:
    """(A Aᵀ)⁻¹ / s²: (rank, rank)."""
    gram = layer.lora_A @ layer.lora_A.T
    ridge = RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.pinv(gram + ridge)
    return inverse / layer.scaling**2
