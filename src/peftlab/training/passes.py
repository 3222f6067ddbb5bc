"""A run's plan, the hooks it calls of a method, and its passes through the model.

A batch may be taken in parts, each a forward and a backward pass: as many as `accumulation` says,
or as many as keep the activations small that a CPU holds for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.engine import fast as engine
from peftlab.layers import PreTrainedModel
from peftlab.settings import Resolved
from peftlab.training.batches import Batch, Encoded, batches_by_length, cut, draw, split_evenly

# The tokens of a batch that a CPU takes at once. A part saves less for its backward pass; but each
# repeats the many small operations, and in full fine-tuning a sum over all gradients (LOG.md).
PART_TOKENS = 1024
EVALUATED_TOKENS = 2048  # the most taken at once in evaluation, where no activations are saved
# tokens from which evaluation enters the engine, which costs as much as 1,000 and saves a tenth
WORTH_ENTERING = 8192


@dataclass(frozen=True)
class TrainingPlan:
    """A run with everything decided.

    Attributes:
        settings: the training's settings.
        kind: "classes" or "regression".
        seed: the seed of data order and dropout.
        autocast: whether fp32 weights compute in bf16.
        packed: whether a batch's tokens are laid end to end, without padding.
        weights: the weight of each class in the loss; empty if each has 1.
        index: the device's number among those of its kind; None for torch's current one.
        unread: full names of modules on which no output depends, so that they have no gradient.
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
        """The kind of device: cpu, cuda or mps."""
        return self.settings.device

    @property
    def device(self) -> torch.device:
        """The device on which tensors lie."""
        kind = self.settings.device
        return torch.device(kind) if self.index is None else torch.device(kind, self.index)

    @property
    def by_tokens(self) -> bool:
        """Whether the number of a batch's tokens decides on its parts: on a CPU, in the engine."""
        return self.settings.parts and self.settings.fast and self.device_type == "cpu"


@dataclass(frozen=True)
class Step:
    """The step at which a method's hook is called, counted from 0; `warmup`, `total` in steps."""

    index: int
    warmup: int
    total: int
    seed: int


class Trainee(Protocol):
    """The part of a method that the loop uses."""

    @property
    def steps_alike(self) -> bool: ...
    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]: ...
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...
    def before_step(self, model: PreTrainedModel, step: Step) -> None: ...
    def before_update(self, model: PreTrainedModel, step: Step) -> None: ...
    def after_step(self, model: PreTrainedModel, step: Step) -> None: ...


def batches_in(epoch: int, train: Encoded, plan: TrainingPlan) -> list[list[int]]:
    """The indices of an epoch's batches; epochs are counted from 0."""
    settings = plan.settings
    is_grouped = settings.batches == "grouped"
    return draw(train.lengths, settings.batch_size, plan.seed, epoch, is_grouped)


def parts_in(epoch: int, train: Encoded, plan: TrainingPlan) -> list[list[int]]:
    """The indices of the parts of an epoch's batches."""
    batches = batches_in(epoch, train, plan)
    return [part for batch in batches for part in parts_of(batch, train, plan)]


def n_tokens(indices: Sequence[int], data: Encoded, plan: TrainingPlan) -> int:
    """The tokens that a pass through the examples at `indices` computes."""
    if plan.packed:
        return sum(data.lengths[index] for index in indices)
    return len(indices) * data.width(indices)


def widest(parts: list[list[int]], train: Encoded, plan: TrainingPlan) -> list[int]:
    """The part with the most tokens."""
    return max(parts, key=lambda part: n_tokens(part, train, plan))


def parts_of(indices: list[int], train: Encoded, plan: TrainingPlan) -> list[list[int]]:
    """The parts of a batch of the examples at `indices`."""
    count = n_parts(len(indices), n_tokens(indices, train, plan), plan)
    if count > 1:  # sorted by length, so that not every part is padded to the batch's longest
        indices = sorted(indices, key=train.lengths.__getitem__)
    return cut(indices, split_evenly(len(indices), count))


def n_parts(size: int, tokens: int, plan: TrainingPlan) -> int:
    """The number of parts for a batch of `size` examples and `tokens` tokens."""
    parts = plan.settings.accumulation
    if plan.by_tokens:
        parts = max(parts, math.ceil(tokens / PART_TOKENS))
    return min(size, parts)


def batch_loss(model: PreTrainedModel, batch: Batch, plan: TrainingPlan) -> Tensor:
    """The mean loss of a batch: cross-entropy, or squared error for a regression.

    If classes have weights, it is the mean of weight · loss, not divided by the batch's weights: an
    example counts the same whichever others share its batch or its part.
    """
    with torch.autocast(plan.device_type, torch.bfloat16, enabled=plan.autocast):
        logits = model(**batch.inputs).logits.float()
    if plan.kind == "regression":
        return F.mse_loss(logits.squeeze(-1), batch.labels.float())
    if plan.weights:
        weight = logits.new_tensor(plan.weights)
        return F.cross_entropy(logits, batch.labels, weight, reduction="sum") / len(batch.labels)
    return F.cross_entropy(logits, batch.labels)


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a decoder keeps no keys and values for a next token.

    They are a copy of all layers' keys and values, held as long as the outputs are (LOG.md).
    """
    config = model.config.get_text_config()
    used = getattr(config, "use_cache", False)
    if used:
        config.use_cache = False
    try:
        yield
    finally:
        if used:
            config.use_cache = used


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
        data: a tokenised split.
        autocast: whether fp32 weights compute in bf16.
        fast: whether to compute in `peftlab.engine`.
        batch_size: the training's batch size; evaluation takes up to twice as many at once.
        on_batch: called with the size of each batch after it is done.
    """
    model.eval()
    rows: list[tuple[int, Tensor]] = []
    device = model.device
    is_worth_entering = fast and sum(data.lengths) >= WORTH_ENTERING
    autocasting = torch.autocast(device.type, torch.bfloat16, enabled=autocast)
    with (
        engine(model, is_worth_entering),
        without_cache(model),
        torch.inference_mode(),
        autocasting,
    ):
        for indices in batches_by_length(data.lengths, 2 * batch_size, EVALUATED_TOKENS):
            logits = model(**data.batch(indices, device).inputs).logits.float().cpu()
            rows += zip(indices, logits, strict=True)
            on_batch(len(indices))
    return torch.stack([logits for _, logits in sorted(rows, key=lambda row: row[0])])
