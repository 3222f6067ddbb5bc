"""The low-rank layer that the LoRA family shares.

    y = x Wᵀ + c + s · dropout(x) Aᵀ Bᵀ

W (out, in) and c (out,) are frozen, in the base's precision; A (rank, in) and B (out, rank)
are fp32 and are multiplied in the precision of x, as autocast would.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.errors import RequestError
from peftlab.layers.adapter import Adapter, linear_like


def low_rank_update(x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """(*batch, in) -> (*batch, out): scaling · x Aᵀ Bᵀ, in the precision of x."""
    return scaling * F.linear(F.linear(x, lora_A.to(x.dtype)), lora_B.to(x.dtype))


class LoRALinear(Adapter):
    """A linear layer with a low-rank update beside it. At the start B = 0: equal to `base`.

    Raises:
        RequestError: if the rank is larger than the layer's smaller side.

    >>> LoRALinear(nn.Linear(8, 4), rank=2, scaling=2.0)(torch.zeros(3, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(self, base: nn.Linear, rank: int, scaling: float, dropout: float = 0.0) -> None:
        super().__init__()
        limit = min(base.in_features, base.out_features)
        if rank > limit:
            raise RequestError(f"rank must be <= {limit}, the layer's smaller side, got {rank}")
        self.base = base
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        # float64 stays float64 (tests of the formula); every lower precision is trained in fp32
        like = torch.promote_types(base.weight.dtype, torch.float32)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=like, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=like, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # U(±1/sqrt(in))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        update = low_rank_update(self.dropout(x), self.lora_A, self.lora_B, self.scaling)
        out: Tensor = self.base(x) + update
        return out

    def merged(self) -> nn.Linear:
        update = self.scaling * self.lora_B @ self.lora_A  # (out, in)
        return linear_like(self.base, weight=self.base.weight + update)
