"""AdamW on a method's parameter groups, and the linear schedule that scales all of them."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def adamw(groups: list[dict[str, Any]]) -> AdamW:
    """AdamW with β (.9, .999), ε 1e-8; each group brings its lr and its weight decay."""
    return AdamW(groups, fused=True)


def warmup_and_decay(optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """Linear warm-up over `warmup` steps, then linear decay to 0 at step `total`.

    Every group is scaled by the same factor, so their ratios hold through the run.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
