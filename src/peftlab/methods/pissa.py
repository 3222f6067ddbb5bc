"""PiSSA: LoRA that starts from the principal part of the weight instead of beside it.

    W = U S Vᵀ,  A₀ = √(S_r / s) V_rᵀ,  B₀ = U_r √(S_r / s)        of the r largest singular values
    y = x (W - s·B₀A₀)ᵀ + c + s · x Aᵀ Bᵀ                          s = alpha / rank

Paper      Meng, Wang, Zhang 2024, arXiv:2404.02948, section 3
Reference  PEFT's init_lora_weights="pissa"; parity: tests/methods/test_parity_peft.py
Shapes     W (out, in), A₀ (rank, in), B₀ (out, rank) frozen · A (rank, in), B (out, rank) trained
Init       A = A₀, B = B₀  =>  y = x Wᵀ + c at step 0
Cost       as LoRA, an update of twice the rank, and one singular value decomposition a layer
Departs    W stays as it is and A₀, B₀ are kept beside it, where PEFT puts the residual W - s·B₀A₀
           in its place: in real arithmetic the same. So merging adds to the exact W, and other
           adapters may use the same base. A base in bf16 or nf4 is rounded whole, not its residual
           (QPiSSA), whose smaller numbers would lose less.
           No dropout: it would drop what the weight knows. Weight decay, which the paper does
           without, would pull BA to 0 and the layer to W - s·B₀A₀
Raises     as LoRA
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from peftlab.layers import (
    Adapter,
    Linear,
    LowRank,
    Pair,
    PreTrainedModel,
    exact,
    skips_start,
    weight_of,
)
from peftlab.methods.base import STRICT, adapt, searched
from peftlab.methods.low_rank import NAMES
from peftlab.methods.peft import InPeft
from peftlab.methods.registry import register
from peftlab.models import Targets


@dataclass(frozen=True, config=STRICT)
@register
class PiSSA(InPeft):
    """Principal singular values and vectors adaptation of the target layers.

    Attributes:
        rank: of the part that is trained.
        alpha: that part is scaled by alpha / rank; the rank itself if not given, as in the paper.
        targets: which layers, see `peftlab.models.find_targets`.
        niter: subspace iterations of a randomised decomposition; the exact one if not given.
    """

    name: ClassVar[str] = "pissa"
    summary: ClassVar[str] = "the principal part of each target layer's weight"
    paper: ClassVar[str] = "arXiv:2404.02948"
    default_lr: ClassVar[float] = 5e-4
    peft_type: ClassVar[str] = "LORA"
    peft_names: ClassVar[Mapping[str, str]] = NAMES

    rank: int = searched(8, 1, 64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: str = "query,value"
    niter: int | None = Field(default=None, ge=1)

    @property
    def scaling(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def inject(self, model: PreTrainedModel) -> Targets:
        return adapt(
            model,
            self.targets,
            lambda base: PiSSALinear(base, self.rank, self.scaling, self.niter),
        )

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        """LoRA of twice the rank on the base as it is: B A - B₀ A₀ is one product."""
        rank = 2 * self.rank
        return {"r": rank, "lora_alpha": self.scaling * rank, "lora_dropout": 0.0, "bias": "none"}

    def peft_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        joined = dict(tensors)
        for name, tensor in tensors.items():
            start = name.replace(".lora_", ".start_")
            if name.endswith(".lora_A"):
                joined[name] = torch.cat([tensor, joined.pop(start)])
            if name.endswith(".lora_B"):
                joined[name] = torch.cat([tensor, -joined.pop(start)], dim=1)
        return joined

    def own_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        split = dict(tensors)
        for name, tensor in tensors.items():
            start = name.replace(".lora_", ".start_")
            if name.endswith(".lora_A"):
                split[name], split[start] = tensor[: self.rank], tensor[self.rank :]
            if name.endswith(".lora_B"):
                split[name], split[start] = tensor[:, : self.rank], -tensor[:, self.rank :]
        return split


class PiSSALinear(LowRank):
    """A linear layer whose update starts at zero as the difference of two equal products."""

    def __init__(self, base: Linear, rank: int, scaling: float, niter: int | None = None) -> None:
        super().__init__(base, rank)
        self.scaling = scaling
        if not skips_start():
            self._decompose(exact(weight_of(base)) / scaling, rank, niter)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())
        self.start_A: Tensor
        self.start_B: Tensor

    @torch.no_grad()
    def _decompose(self, weight: Tensor, rank: int, niter: int | None) -> None:
        start_A, start_B = principal(weight, rank, niter)
        self.lora_A.copy_(start_A)
        self.lora_B.copy_(start_B)

    def pair(self) -> Pair:
        """B A - B₀ A₀ as (B - B₀) A + B₀ (A - A₀): no large terms cancel, which matters in bf16."""
        lora_A = torch.cat([self.lora_A, self.lora_A - self.start_A])  # (2·rank, in)
        lora_B = torch.cat([self.lora_B - self.start_B, self.start_B], dim=1)  # (out, 2·rank)
        return Pair(lora_A, lora_B, self.scaling)

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        lora_A, lora_B, scaling = self.pair()
        return weight + scaling * lora_B @ lora_A


def principal(weight: Tensor, rank: int, niter: int | None) -> tuple[Tensor, Tensor]:
    """The best A (rank, in) and B (out, rank) for B A = weight (out, in), both of equal size.

    >>> weight = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> lora_A, lora_B = principal(weight, rank=1, niter=None)
    >>> (lora_B @ lora_A).tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    if niter is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, rank, niter=niter)
        vh = v.T
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root
