"""Passes through the model: the loss of a batch, and the outputs for a split in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.engine import fast as engine
from peftlab.training.batches import Batch, Encoded, by_length
from peftlab.training.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATED_TOKENS = 2048  # the most at once where nothing is saved
WORTH_ENTERING = (
    8192  # tokens to evaluate; entering the engine costs what 1,000 do, a tenth is saved
)


def batch_loss(model: PreTrainedModel, batch: Batch, plan: Plan) -> Tensor:
    """The mean loss of a batch: cross-entropy, or squared error for a regression.

    Where classes have weights it is the mean of weight · loss, not divided by the batch's weights:
    an example counts the same whichever others are in its batch, or in its part of one.
    """
    with torch.autocast(plan.device, torch.bfloat16, enabled=plan.autocast):
        logits = model(**batch.inputs).logits.float()
    if plan.kind == "regression":
        return F.mse_loss(logits.squeeze(-1), batch.labels.float())
    if plan.weights:
        weight = logits.new_tensor(plan.weights)
        return F.cross_entropy(logits, batch.labels, weight, reduction="sum") / len(batch.labels)
    return F.cross_entropy(logits, batch.labels)


def outputs(
    model: PreTrainedModel,
    data: Encoded,
    *,
    autocast: bool = False,
    fast: bool = True,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Outputs in eval mode, in the order of `data`: (n, num_labels), fp32, on the CPU.

    Args:
        model: on any device.
        data: a split as tokens.
        autocast: whether fp32 weights compute in bf16.
        fast: whether to compute as `peftlab.engine` does.
        batch_size: of training; twice as many are taken at once here.
        on_batch: called with the size of each batch that is done.
    """
    model.eval()
    rows: list[tuple[int, Tensor]] = []
    device = model.device.type
    worth_it = fast and sum(data.lengths) >= WORTH_ENTERING
    computing = torch.autocast(device, torch.bfloat16, enabled=autocast)
    with engine(model, worth_it), torch.inference_mode(), computing:
        for indices in by_length(data.lengths, 2 * batch_size, EVALUATED_TOKENS):
            logits = model(**data.batch(indices, device).inputs).logits.float().cpu()
            rows += zip(indices, logits, strict=True)
            on_batch(len(indices))
    return torch.stack([logits for _, logits in sorted(rows, key=lambda row: row[0])])
