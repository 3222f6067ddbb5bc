"""The training loop: one readable pass over epochs and steps, the same for every method.

    at the start:         the widest part of a batch, without an update
    for epoch, batch: before_step · forward · backward · before_update · clip · step · after_step
    after an epoch:       the scores on dev

A batch may be taken in several parts, each a forward and a backward pass; their gradients add up to
the batch's. There are as many as are asked for (`accumulation`), or as keep what a CPU holds for
the backward pass small (`n_parts`).

The loop knows a method only by the hooks of `Trainee`, and a metric only as a function.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.engine import fast, own_tensors
from peftlab.training.batches import (
    Batch,
    Encoded,
    by_length,
    chunks,
    draw,
)
from peftlab.training.guard import Watch, check_groups, check_loss, check_outputs
from peftlab.training.meters import Memory, MemoryMeter, SavedMeter, SpeedMeter
from peftlab.training.schedule import warmup_and_decay

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]

# The tokens of a batch that a CPU takes at once, padding counted: above the first number it is
# halved, since a part saves half as much for its backward pass; above twice the second it is cut
# further, seldom, since each part costs the many small operations once more (LOG.md).
HALVED_TOKENS, PART_TOKENS = 512, 1024
EVALUATED_TOKENS = 2048  # the most at once where nothing is saved
WORTH_ENTERING = 8192  # tokens to evaluate; entering `fast` costs what 1,000 do, a tenth is saved


@dataclass(frozen=True)
class Plan:
    """All that the loop needs to know of a run, resolved.

    `warmup` is a share of the steps; `accumulation` the parts a batch is taken in; `autocast`
    whether fp32 weights compute in bf16; `parts` whether a wide batch is taken in parts though none
    were asked for; `fast` whether to train inside `peftlab.layers.fast`; `batches` whether chance
    or length decides which examples meet; `class_weights` what an example of each class counts, as
    many as classes, or none for 1 each.
    """

    kind: str  # "classes" or "regression"
    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    warmup: float
    clip: float
    seed: int
    device: str
    autocast: bool
    accumulation: int = 1
    parts: bool = True
    fast: bool = True
    batches: str = "random"  # or "grouped"
    class_weights: tuple[float, ...] = ()

    @property
    def by_tokens(self) -> bool:
        """Whether the tokens of a batch decide on its parts: on a CPU, for every method."""
        return self.parts and self.fast and self.device == "cpu"


@dataclass(frozen=True)
class Step:
    """Where in the run a method's hook is called: `index` from 0, `warmup` and `total` in steps."""

    index: int
    warmup: int
    total: int
    seed: int


class Trainee(Protocol):
    """What the loop asks of a method."""

    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]: ...
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...
    def before_step(self, model: PreTrainedModel, step: Step) -> None: ...
    def before_update(self, model: PreTrainedModel, step: Step) -> None: ...
    def after_step(self, model: PreTrainedModel, step: Step) -> None: ...


@dataclass
class Fitted:
    """What a run left: its curve, the scores and outputs of its epochs, its speed and memory."""

    curve: list[Row] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)  # one an epoch
    outputs: Tensor | None = None  # (n_dev, num_labels), of the last epoch
    notes: list[str] = field(default_factory=list)  # what a reader of the scores must know
    speed: SpeedMeter = field(default_factory=SpeedMeter)
    memory: Memory | None = None
    parts: float | None = None  # mean number that a batch was taken in
    train_s: float = 0.0
    eval_s: float = 0.0


class Loop:
    """One run in progress: the model, its optimizer and what has come out so far.

    Raises:
        Untrained: if a parameter that should be trained is in no group, or in two.
    """

    def __init__(self, model: PreTrainedModel, method: Trainee, train: Encoded, plan: Plan) -> None:
        self.model, self.method, self.train, self.plan = model, method, train, plan
        groups = method.parameter_groups(model, plan.lr, plan.head_lr, plan.weight_decay)
        check_groups(model, groups)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        n_batches = math.ceil(len(train) / plan.batch_size)
        self.usual_size = len(train) / n_batches  # of a batch; none is further from it than one
        self.total = plan.epochs * n_batches
        self.warmup = math.ceil(plan.warmup * self.total)
        self.optimizer = method.make_optimizer(groups)
        self.schedule = warmup_and_decay(self.optimizer, self.warmup, self.total)
        self.watch = Watch(model, self.total)
        self.index = 0
        self.n_parts = 0  # of all batches so far
        self.saved_mib: float | None = None  # for the backward pass of the widest part
        self.losses: list[float] = []
        self.reach = 0.0  # the sum of the smallest learning rates so far
        self.speed = SpeedMeter()
        self.elapsed_s = 0.0

    def epoch(self, epoch: int) -> Iterator[Row]:
        """Train for one epoch; a row of the curve after each step."""
        self.model.train()
        lengths = self.train.lengths
        batches = self._batches(epoch)
        for number, indices in enumerate(batches, start=1):
            started = time.perf_counter()
            lr = self.schedule.get_last_lr()[0]
            loss = self.step(indices)
            seconds = time.perf_counter() - started
            self.elapsed_s += seconds
            self.speed.add(seconds, len(indices), sum(lengths[i] for i in indices))
            yield {
                "step": self.index,
                "epoch": epoch + number / len(batches),
                "loss": loss,
                "lr": lr,
                "time_s": round(self.elapsed_s, 4),
            }

    def try_widest(self) -> None:
        """Forward and backward through the widest part of the first epoch, and no update.

        What doesn't fit into memory shows now instead of hours later, and a heap that is laid out
        for the widest grows less in what follows (LOG.md). What is saved in between is counted.
        """
        self.model.train()
        begin_stream(step_seed(self.plan.seed, -1), self.plan.device)  # no step's: each begins anew
        batches = self._batches(epoch=0)
        widest = max((part for batch in batches for part in self._parts(batch)), key=self._tokens)
        batch = self.train.batch(widest, self.plan.device)
        own = (*own_tensors(self.model), *batch.inputs.values(), batch.labels)
        with SavedMeter(own) as saved:
            loss = batch_loss(self.model, batch, self.plan)
        self.saved_mib = saved.mib()
        loss.backward()
        self.optimizer.zero_grad()

    def step(self, indices: list[int]) -> float:
        """One update on the examples at `indices`; returns the loss."""
        step = Step(self.index, self.warmup, self.total, self.plan.seed)
        begin_stream(step_seed(step.seed, step.index), self.plan.device)
        self.method.before_step(self.model, step)
        loss = self._gradients(indices)
        waits = self.plan.device != "cpu"  # reading the loss would hold up the launch of the rest
        value = 0.0 if waits else self._check(loss)
        self.method.before_update(self.model, step)
        self.watch.look(self.model)
        nn.utils.clip_grad_norm_(self.trained, self.plan.clip)
        self.optimizer.step()
        self.method.after_step(self.model, step)
        self.optimizer.zero_grad()
        self.reach += float(min(self.schedule.get_last_lr()))
        self.schedule.step()
        value = self._check(loss) if waits else value
        self.index += 1
        self.losses.append(value)
        self.watch.check(self.model, self.index, self.reach)
        return value

    def _gradients(self, indices: list[int]) -> Tensor:
        """Forward and backward, part by part; returns the batch's mean loss.

        A gradient is divided by the usual size of a batch, not by this one's: every example weighs
        the same in every epoch.
        """
        value = torch.zeros((), device=self.plan.device)
        parts = self._parts(indices)
        self.n_parts += len(parts)
        for part in parts:
            batch = self.train.batch(part, self.plan.device)
            loss = batch_loss(self.model, batch, self.plan)
            value += loss.detach() * (len(part) / len(indices))
            (loss * (len(part) / self.usual_size)).backward()
        return value

    def _batches(self, epoch: int) -> list[list[int]]:
        plan = self.plan
        grouped = plan.batches == "grouped"
        return draw(self.train.lengths, plan.batch_size, plan.seed, epoch, grouped)

    def _parts(self, indices: list[int]) -> list[list[int]]:
        return parts_of(indices, self.train, self.plan.accumulation, self.plan.by_tokens)

    def _tokens(self, part: list[int]) -> int:
        return len(part) * self.train.width(part)

    def _check(self, loss: Tensor) -> float:
        value = loss.item()
        check_loss(value, self.index + 1, self.losses, self.plan.lr, self.model)
        return value


def try_one(model: PreTrainedModel, train: Encoded, plan: Plan) -> None:
    """Forward and backward through one example, and no trace of it."""
    model.train()
    devices = [model.device] if plan.device == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            batch_loss(model, train.batch([0], plan.device), plan).backward()
    finally:
        model.zero_grad()


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's dropout. No draw before it matters, so resuming needs no state."""
    return random.Random(f"{seed}/step/{step}").getrandbits(63)


def begin_stream(seed: int, device: str) -> None:
    """Seed torch's own generators, the CPU's and the one of `device`.

    `torch.manual_seed` seeds all kinds of device and writes down, for each that is absent, where it
    was called: a hundredth of a small model's step.
    """
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def parts_of(
    indices: list[int], train: Encoded, accumulation: int, by_tokens: bool
) -> list[list[int]]:
    """The parts that a batch of the examples at `indices` is taken in."""
    count = n_parts(len(indices), train.width(indices), accumulation, by_tokens)
    if count > 1:  # neighbours in length, so that a part is not padded to the whole's longest
        indices = sorted(indices, key=train.lengths.__getitem__)
    return chunks(indices, math.ceil(len(indices) / count))


def n_parts(size: int, width: int, accumulation: int, by_tokens: bool) -> int:
    """In how many parts to take a batch of `size` examples, padded to `width` tokens."""
    parts = accumulation
    if by_tokens:
        tokens = size * width
        halves = min(2, math.ceil(tokens / HALVED_TOKENS))
        parts = max(parts, halves, math.ceil(tokens / PART_TOKENS))
    return min(size, parts)


def batch_loss(model: PreTrainedModel, batch: Batch, plan: Plan) -> Tensor:
    """The mean loss of a batch: cross-entropy, or squared error for a regression.

    Where classes have weights it is the mean of weight · loss, not divided by the batch's weights:
    an example counts the same whichever others are in its batch, or in its part of one.
    """
    with _compute(plan):
        logits = model(**batch.inputs).logits.float()
    if plan.kind == "regression":
        return F.mse_loss(logits.squeeze(-1), batch.labels.float())
    if plan.class_weights:
        weight = logits.new_tensor(plan.class_weights)
        return F.cross_entropy(logits, batch.labels, weight, reduction="sum") / len(batch.labels)
    return F.cross_entropy(logits, batch.labels)


def fit(
    loop: Loop,
    dev: Encoded,
    score: Callable[[Tensor], dict[str, float]],
    on_row: Callable[[Row, int], None],
    memory: MemoryMeter,
) -> Fitted:
    """Train to the end of `loop`'s plan and evaluate after every epoch.

    Args:
        loop: a run that has not begun.
        dev: what it is evaluated on.
        score: the metrics of dev outputs (n_dev, num_labels).
        on_row: called with each row of the curve and the total number of steps.
        memory: a meter that was started before the model was loaded.

    Raises:
        Diverged: if a loss or an output is not finite.
        Untrained: if something that should be trained is not.
    """
    fitted = Fitted(speed=loop.speed)
    if loop.watch.exempt:
        fitted.notes.append(f"{loop.total} updates: too few to check that all is trained")

    def keep(row: Row) -> None:
        fitted.curve.append(row)
        on_row(row, loop.total)

    with fast(loop.model, loop.plan.fast):
        loop.try_widest()
        for epoch in range(loop.plan.epochs):
            for row in loop.epoch(epoch):
                keep(row | {"memory_mib": memory.now()})
            started = time.perf_counter()
            fitted.outputs = outputs(loop.model, dev, loop.plan)
            check_outputs(fitted.outputs, epoch + 1)
            fitted.scores.append(score(fitted.outputs))
            fitted.eval_s += time.perf_counter() - started
            keep({"epoch": epoch + 1, "score": fitted.scores[-1]})
    if loop.watch.unused:
        names = ", ".join(loop.watch.unused[:3])
        fitted.notes.append(f"the model does not compute with {names}, so training leaves it")
    fitted.train_s = loop.elapsed_s
    fitted.memory = memory.measure(loop.model, loop.optimizer, loop.saved_mib)
    fitted.parts = loop.n_parts / loop.index
    return fitted


def outputs(
    model: PreTrainedModel,
    data: Encoded,
    plan: Plan,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """Outputs in eval mode, in the order of `data`: (n, num_labels), fp32, on the CPU.

    `on_batch` is called with the size of each batch that is done.
    """
    model.eval()
    rows: list[tuple[int, Tensor]] = []
    worth_it = plan.fast and sum(data.lengths) >= WORTH_ENTERING
    with fast(model, worth_it), torch.inference_mode(), _compute(plan):
        for indices in by_length(data.lengths, 2 * plan.batch_size, EVALUATED_TOKENS):
            logits = model(**data.batch(indices, plan.device).inputs).logits.float().cpu()
            rows += zip(indices, logits, strict=True)
            on_batch(len(indices))
    return torch.stack([logits for _, logits in sorted(rows, key=lambda row: row[0])])


def _compute(plan: Plan) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(plan.device, torch.bfloat16, enabled=plan.autocast)
