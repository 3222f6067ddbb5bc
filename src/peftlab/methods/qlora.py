"""QLoRA: LoRA on a base whose linear layers are held in four bits.

    y = x dq(W)ᵀ + c + s · dropout(x) Aᵀ Bᵀ        W in NF4, s = alpha / rank

Paper      Dettmers et al. 2023, arXiv:2305.14314, eq. 5 and 6
Reference  github.com/artidoro/qlora; the codes are bitsandbytes', see layers/nf4.py
Shapes     W (out, in) frozen, 4.127 bits a weight · A (rank, in), B (out, rank) trained
Init       as LoRA, from the dequantised base
Cost       as LoRA, and one dequantisation of W in each direction. Embeddings, norms and head are
           not quantised, and activations are as they were: peak memory falls by the weights alone
Departs    norms and embeddings are held in the precision of the products, not in fp32. The target
           layers default to query and value as for every method here (the authors adapt all linear
           layers: targets=all-linear). Gradient checkpointing is a setting of training. A merged
           layer adds the update to dq(W), which it was trained on
Raises     RequestError if the base is not held in nf4, or for optimizer="paged" without CUDA
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch._subclasses.fake_tensor import FakeTensor

from peftlab.errors import RequestError
from peftlab.layers.nf4 import has_bitsandbytes
from peftlab.methods.base import STRICT, NeedsDevice
from peftlab.methods.low_rank import PeftLoRA
from peftlab.methods.registry import register


@dataclass(frozen=True, config=STRICT)
@register
class QLoRA(PeftLoRA, NeedsDevice):
    """LoRA on an nf4 base.

    Attributes:
        rank, alpha, dropout, targets: LoRA's, see `LowRankMethod`.
        optimizer: "adamw", or "paged" for bitsandbytes' paged AdamW, on CUDA.
    """

    name: ClassVar[str] = "qlora"
    summary: ClassVar[str] = "LoRA on a base in four bits"
    paper: ClassVar[str] = "arXiv:2305.14314"
    default_lr: ClassVar[float] = 5e-4
    base_precision: ClassVar[str | None] = "nf4"

    optimizer: Literal["adamw", "paged"] = "adamw"

    def check_device(self, device: str) -> None:
        if self.optimizer == "paged" and device != "cuda":
            raise RequestError(
                "optimizer='paged' pages AdamW's state between a CUDA device and the host, and "
                f"this run is on {device}; leave it at 'adamw'"
            )
        if self.optimizer == "paged" and not has_bitsandbytes():
            raise RequestError(
                "optimizer='paged' needs bitsandbytes: pip install 'bitsandbytes>=0.50'"
            )

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        parameter = groups[0]["params"][0]
        # the paged one's kernels write where `plan`'s fake tensors have no memory; its state is
        # as large as AdamW's
        if self.optimizer == "adamw" or isinstance(parameter, FakeTensor):
            return super().make_optimizer(groups)
        self.check_device(parameter.device.type)
        optim: Any = importlib.import_module("bitsandbytes.optim")
        paged: torch.optim.Optimizer = optim.PagedAdamW32bit(groups)
        return paged
