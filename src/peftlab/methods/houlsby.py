"""Houlsby adapters: two small bottlenecks in every block, each before its residual add.

    h ← h + gelu(h Dᵀ + b_D) Uᵀ + b_U

Paper      Houlsby et al. 2019, arXiv:1902.00751, section 2.1 and figure 2
           Pfeiffer et al. 2021, arXiv:2005.00247, for the variant with one bottleneck a block
Reference  github.com/google-research/adapter-bert, modeling.py; the formula in float64:
           tests/methods/test_houlsby.py
Shapes     D (size, d), b_D (size,), U (d, size), b_U (d,) trained; so too every norm's γ and β
Init       D, U ~ N(0, init_std²) cut at two standard deviations, b = 0: close to the identity
Cost       2·size·d + size + d trained parameters a bottleneck; it can't be merged, so its latency
           stays (measured in docs/methods/houlsby.md)
Departs    a bottleneck follows the last module before the residual add: the dropout if there is
           one, else the projection. init_std is the paper's 1e-2 (its code: 1e-3). A pooler is a
           part of the head and trained, which the authors' code freezes.
           The variant "pfeiffer" has the FFN's bottleneck alone and frozen norms; AdapterHub's
           has ReLU for gelu and follows the residual add
Raises     RequestError for an architecture whose blocks are not known
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.layers import (
    PreTrainedModel,
    Wrapper,
    adapter_dtype,
    device_of,
    keep_in_fp32,
    where_drawn,
)
from peftlab.methods.base import STRICT, Method, searched, train_head_only
from peftlab.methods.registry import register
from peftlab.models import Targets, find_blocks, norms


@dataclass(frozen=True, config=STRICT)
@register
class Houlsby(Method):
    """Bottleneck adapters inside each block.

    Attributes:
        size: of the bottleneck, m in the paper.
        variant: "houlsby", two a block and the norms; "pfeiffer", the FFN's alone.
        init_std: standard deviation of D and U at the start.
    """

    name: ClassVar[str] = "houlsby"
    summary: ClassVar[str] = "two bottlenecks a block, and the norms"
    paper: ClassVar[str] = "arXiv:1902.00751"
    default_lr: ClassVar[float] = 9e-4
    published_lr: ClassVar[float | None] = 3e-4
    mergeable: ClassVar[bool] = False

    size: int = searched(64, 8, 256, ge=1)
    variant: Literal["houlsby", "pfeiffer"] = "houlsby"
    init_std: float = Field(default=1e-2, gt=0)

    def inject(self, model: PreTrainedModel) -> Targets:
        blocks = find_blocks(model, ffn_only=self.variant == "pfeiffer")
        train_head_only(model)
        backbone = model.get_submodule(model.base_model_prefix)
        width: int = model.config.hidden_size
        options: dict[str, Any] = {"dtype": adapter_dtype(backbone), "device": device_of(backbone)}
        for name in blocks.names:
            base = model.get_submodule(name)
            bottleneck = Bottleneck(base, width, self.size, self.init_std, **options)
            model.set_submodule(name, bottleneck.train(base.training))
        if self.variant == "houlsby":
            dtype = next(backbone.parameters()).dtype
            for norm in norms(model):
                if dtype.itemsize < 4:
                    keep_in_fp32(norm, inside=True)
                norm.requires_grad_(True)
        return blocks


class Bottleneck(Wrapper):
    """A module of the base and, on its output, a bottleneck with a residual of its own.

    `options` are the bottleneck's dtype and device; the base keeps its own.
    """

    def __init__(
        self, base: nn.Module, width: int, size: int, init_std: float, **options: Any
    ) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(size, width, **options))
        self.down_bias = nn.Parameter(torch.zeros(size, **options))
        self.up = nn.Parameter(torch.empty(width, size, **options))
        self.up_bias = nn.Parameter(torch.zeros(width, **options))
        for weight in (self.down, self.up):
            drawn = torch.empty_like(weight, device=where_drawn(weight.device))
            nn.init.trunc_normal_(drawn, std=init_std, a=-2 * init_std, b=2 * init_std)
            weight.data.copy_(drawn)

    def forward(self, *inputs: Tensor) -> Tensor:  # ... -> (*batch, width)
        h: Tensor = self.base(*inputs)
        inner = F.gelu(F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        return h + F.linear(inner, self.up.to(h.dtype), self.up_bias.to(h.dtype))
