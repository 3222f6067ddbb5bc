"""A run, what it asks of a method, and its passes through the model.

A batch may be taken in parts, each a forward and a backward pass: as many as are asked for
(`accumulation`), or as keep what a CPU holds for the backward pass small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.engine import fast as engine
from peftlab.layers import PreTrainedModel
from peftlab.settings import Resolved
from peftlab.training.batches import Batch, Encoded, by_length, cut, draw, evenly

# The tokens of a batch that a CPU takes at once. A part saves less for its backward pass; but each
# costs the many small operations once more, and full fine-tuning a sum over all gradients (LOG.md).
PART_TOKENS = 1024
EVALUATED_TOKENS = 2048  # the most at once where nothing is saved
# tokens to evaluate; entering the engine costs what 1,000 do, a tenth is saved
WORTH_ENTERING = 8192


@dataclass(frozen=True)
class Plan:
    """A run, all of it decided.

    Attributes:
        settings: of the training.
        kind: "classes" or "regression".
        seed: of data order and dropout.
        autocast: whether fp32 weights compute in bf16.
        packed: whether a batch's tokens are laid end to end, without padding.
        weights: what an example of each class counts; none for 1 each.
        index: of the device, where there may be several of its kind; None for torch's current one.
        unread: modules on which no answer depends, so that they have no gradient, by full name.
    """

    settings: Resolved
    kind: str
    seed: int
    autocast: bool = False
    packed: bool = False
    weights: tuple[float, ...] = ()
    index: int | None = None
    unread: tuple[str, ...] = ()

    @property
    def device_type(self) -> str:
        """The kind of device, on which decisions depend."""
        return self.settings.device

    @property
    def device(self) -> torch.device:
        """The very device, on which tensors lie."""
        kind = self.settings.device
        return torch.device(kind) if self.index is None else torch.device(kind, self.index)

    @property
    def by_tokens(self) -> bool:
        """Whether the tokens of a batch decide on its parts: on a CPU, for every method."""
        return self.settings.parts and self.settings.fast and self.device_type == "cpu"


@dataclass(frozen=True)
class Step:
    """Where in the run a method's hook is called: `index` from 0, `warmup` and `total` in steps."""

    index: int
    warmup: int
    total: int
    seed: int


class Trainee(Protocol):
    """What the loop asks of a method."""

    @property
    def steps_alike(self) -> bool: ...
    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]: ...
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...
    def before_step(self, model: PreTrainedModel, step: Step) -> None: ...
    def before_update(self, model: PreTrainedModel, step: Step) -> None: ...
    def after_step(self, model: PreTrainedModel, step: Step) -> None: ...


def batches_in(epoch: int, train: Encoded, plan: Plan) -> list[list[int]]:
    """The indices of an epoch's batches; epochs are counted from 0."""
    settings = plan.settings
    grouped = settings.batches == "grouped"
    return draw(train.lengths, settings.batch_size, plan.seed, epoch, grouped)


def parts_in(epoch: int, train: Encoded, plan: Plan) -> list[list[int]]:
    """The parts of those batches."""
    batches = batches_in(epoch, train, plan)
    return [part for batch in batches for part in parts_of(batch, train, plan)]


def n_tokens(indices: Sequence[int], data: Encoded, plan: Plan) -> int:
    """The tokens that a pass through the examples at `indices` computes."""
    if plan.packed:
        return sum(data.lengths[index] for index in indices)
    return len(indices) * data.width(indices)


def widest(parts: list[list[int]], train: Encoded, plan: Plan) -> list[int]:
    """Of the parts, the one with the most tokens."""
    return max(parts, key=lambda part: n_tokens(part, train, plan))


def parts_of(indices: list[int], train: Encoded, plan: Plan) -> list[list[int]]:
    """The parts that a batch of the examples at `indices` is taken in."""
    count = n_parts(len(indices), n_tokens(indices, train, plan), plan)
    if count > 1:  # neighbours in length, so that a part is not padded to the whole's longest
        indices = sorted(indices, key=train.lengths.__getitem__)
    return cut(indices, evenly(len(indices), count))


def n_parts(size: int, tokens: int, plan: Plan) -> int:
    """In how many parts to take a batch of `size` examples and so many tokens."""
    parts = plan.settings.accumulation
    if plan.by_tokens:
        parts = max(parts, math.ceil(tokens / PART_TOKENS))
    return min(size, parts)


def batch_loss(model: PreTrainedModel, batch: Batch, plan: Plan) -> Tensor:
    """The mean loss of a batch: cross-entropy, or squared error for a regression.

    Where classes have weights it is the mean of weight · loss, not divided by the batch's weights:
    an example counts the same whichever others are in its batch, or in its part of one.
    """
    with torch.autocast(plan.device_type, torch.bfloat16, enabled=plan.autocast):
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
    device = model.device
    worth_it = fast and sum(data.lengths) >= WORTH_ENTERING
    computing = torch.autocast(device.type, torch.bfloat16, enabled=autocast)
    with engine(model, worth_it), torch.inference_mode(), computing:
        for indices in by_length(data.lengths, 2 * batch_size, EVALUATED_TOKENS):
            logits = model(**data.batch(indices, device).inputs).logits.float().cpu()
            rows += zip(indices, logits, strict=True)
            on_batch(len(indices))
    return torch.stack([logits for _, logits in sorted(rows, key=lambda row: row[0])])
