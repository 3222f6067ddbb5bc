"""The training loop: one readable pass over epochs and steps, the same for every method.

    at the start:         the widest part of a batch, without an update
    for epoch, batch: before_step · forward · backward · before_update · clip · step · after_step
    after an epoch:       the outputs for dev
    once a minute:        the run's state is written to a file, if there is one (checkpoint.py)

A batch may be taken in several parts (passes.py), each a forward and a backward pass; their
gradients add up to the batch's.

The loop knows a method only by the hooks of `Trainee`, and no metric at all: the caller scores the
model's outputs.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peftlab.engine import fast, model_tensors
from peftlab.engine.heap import gc_frozen
from peftlab.layers import PreTrainedModel, adapter_state
from peftlab.naming import counted
from peftlab.training.batches import Batch, Encoded
from peftlab.training.checkpoint import Checkpoint, State
from peftlab.training.graphs import CAPTURED_AT, Graphs
from peftlab.training.guard import TrainingCheck, check_finite, check_groups, check_loss
from peftlab.training.meters import MemoryMeter, Peaks, SavedMeter, SpeedMeter
from peftlab.training.passes import (
    Step,
    Trainee,
    TrainingPlan,
    batch_loss,
    batches_in,
    outputs,
    parts_in,
    parts_of,
    widest,
    without_cache,
)
from peftlab.training.resume import restore, snapshot

Line = dict[str, Any]  # of a curve: a step or an epoch


@dataclass
class FitResult:
    """The results of a run beside the trained model: its curve, notes, speed and memory."""

    curve: list[Line] = field(default_factory=list)  # one row a step, and one an epoch
    notes: list[str] = field(default_factory=list)  # for a reader of the scores
    speed: SpeedMeter = field(default_factory=SpeedMeter)
    memory: Peaks | None = None
    parts: float | None = None  # mean number of parts that a batch was taken in
    train_s: float = 0.0
    eval_s: float = 0.0
    stops: list[int] = field(default_factory=list)  # the steps after which it was resumed
    earlier_s: float = 0.0  # seconds of train_s and eval_s from before the last stop


class Loop:
    """One run in progress: the model, its optimizer and the results so far.

    Args:
        model: injected with `method`.
        method: decides which parameters are trained, and how.
        train: the split to train on.
        plan: the run's plan.
        steps: how many updates to plan for, if not the plan's epochs of `train`.

    Raises:
        Untrained: if a parameter that should be trained is in no group, or in two.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        method: Trainee,
        train: Encoded,
        plan: TrainingPlan,
        steps: int | None = None,
    ) -> None:
        self.model, self.method, self.train, self.plan = model, method, train, plan
        settings = plan.settings
        groups = method.parameter_groups(
            model, settings.lr, settings.head_lr, settings.weight_decay
        )
        check_groups(model, groups)
        self.parameters: list[Tensor] = [
            parameter for group in groups for parameter in group["params"]
        ]
        self.adapter_tensors = adapter_state(model)  # the same tensors through the whole run
        n_batches = math.ceil(len(train) / settings.batch_size)
        self.mean_size = len(train) / n_batches  # of a batch; each differs by less than one
        self.total = settings.epochs * n_batches if steps is None else steps
        self.warmup = math.ceil(settings.warmup * self.total)
        self.optimizer = method.make_optimizer(groups)
        self.schedule = warmup_and_decay(self.optimizer, self.warmup, self.total)
        self.guard = TrainingCheck(model, self.total, plan.unread)
        captures = settings.graphs and method.steps_alike
        self.graphs = Graphs(plan.device) if captures else None
        # a seed of no step: the engine notices a new seed only if it differs from the one on entry
        seed_generators(step_seed(plan.seed, -1), plan.device)
        self.index = 0
        self.n_parts = 0  # of all batches so far
        self.saved_mib: float | None = None  # for the backward pass of the widest part
        self.losses: list[float] = []
        self.reached_lr = 0.0  # the largest learning rate so far, in the group with the smallest
        self.highest_lr = max(group["initial_lr"] for group in self.optimizer.param_groups)
        self.speed = SpeedMeter()
        self.elapsed_s = 0.0

    def epoch(self, epoch: int) -> Iterator[Line]:
        """Train for the rest of this epoch; yields a row of the curve after each step."""
        self.model.train()
        lengths = self.train.lengths
        epoch_batches = batches_in(epoch, self.train, self.plan)
        n_done = self.index - epoch * len(epoch_batches)
        for number, indices in enumerate(epoch_batches[n_done:], start=n_done + 1):
            started = time.perf_counter()
            lr = self.schedule.get_last_lr()[0]
            parts = parts_of(indices, self.train, self.plan)
            batches = (self.train.batch(part, self.plan.device) for part in parts)
            loss = self.step(batches, len(indices), self.mean_size)
            seconds = time.perf_counter() - started
            self.elapsed_s += seconds
            self.speed.add(seconds, len(indices), sum(lengths[i] for i in indices))
            yield {
                "step": self.index,
                "epoch": epoch + number / len(epoch_batches),
                "loss": loss,
                "lr": lr,
                "time_s": round(self.elapsed_s, 4),
            }

    def state_dict(self) -> State:
        """The run's state between two steps, for `load_state_dict` of a new run.

        The tensors are not copied: they change with the next step.
        """
        return {
            "index": self.index,
            "n_parts": self.n_parts,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "elapsed_s": self.elapsed_s,
            "unused": self.guard.unused,
            "model": self.adapter_tensors,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    @property
    def state_bytes(self) -> int:
        """About the size of `state_dict` after some steps: parameters and Adam's two moments."""
        return 3 * sum(parameter.nbytes for parameter in self.parameters)

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Resume a run of the same model, method, data and plan; its speed is measured from here.

        Raises:
            ValueError: if that run had other tensors.
        """
        if _shapes(state["model"]) != _shapes(self.adapter_tensors):
            raise ValueError("the checkpoint is of another model or method")
        for name, tensor in self.adapter_tensors.items():
            tensor.copy_(state["model"][name])
        moments = state["optimizer"]["state"]  # by the parameter's number, in JSON a string
        by_number = {int(number): values for number, values in moments.items()}
        self.optimizer.load_state_dict(state["optimizer"] | {"state": by_number})
        self.schedule.load_state_dict(state["schedule"])
        self.guard.finish(state["unused"])
        self.index, self.n_parts = state["index"], state["n_parts"]
        self.losses, self.elapsed_s = state["losses"].tolist(), state["elapsed_s"]

    def try_widest(self) -> None:
        """Forward and backward through the widest part of the first epoch, without an update.

        A lack of memory shows now instead of hours later, and a heap laid out for the widest part
        grows less afterwards (LOG.md). The size of the activations is measured on the way.
        """
        self.model.train()
        part = widest(parts_in(0, self.train, self.plan), self.train, self.plan)
        batch = self.train.batch(part, self.plan.device)
        excluded = (*model_tensors(self.model), *batch.inputs.values(), batch.labels)
        with SavedMeter(excluded) as saved:
            loss = batch_loss(self.model, batch, self.plan)
        self.saved_mib = saved.mib()
        loss.backward()
        del loss  # a graph may not be captured while this pass's own is kept (torch's message)
        if self.graphs is not None:  # a failure to capture shows now, too
            for _ in range(CAPTURED_AT):
                self._run_pass(batch, 1.0)
        self._clear_gradients()

    def step(self, parts: Iterable[Batch], n: int, mean_size: float) -> float:
        """One update on a batch of `n` examples, taken in parts; returns its mean loss.

        The summed gradient is divided by the `mean_size` of a batch, not by this one's size: every
        example weighs the same in every epoch.
        """
        step = Step(self.index, self.warmup, self.total, self.plan.seed)
        seed_generators(step_seed(step.seed, step.index), self.plan.device)
        self.method.before_step(self.model, step)
        loss = self._accumulate(parts, n, mean_size)
        # reading the loss delays the launch of the rest; at the first step, which no speed counts,
        # it is read before an update could hide the cause
        is_deferred = self.plan.device_type != "cpu" and self.index > 0
        loss_value = 0.0 if is_deferred else self._check_loss(loss)
        self.method.before_update(self.model, step)
        self.guard.note_gradients(self.model)
        nn.utils.clip_grad_norm_(self.parameters, self.plan.settings.clip)
        self.optimizer.step()
        self.method.after_step(self.model, step)
        self._clear_gradients()
        self.reached_lr = max(self.reached_lr, float(min(self.schedule.get_last_lr())))
        self.schedule.step()
        loss_value = self._check_loss(loss) if is_deferred else loss_value
        self.index += 1
        self.losses.append(loss_value)
        self.guard.check(self.model, self.index, self.reached_lr)
        return loss_value

    def _accumulate(self, parts: Iterable[Batch], n: int, mean_size: float) -> Tensor:
        loss = torch.zeros((), device=self.plan.device)
        for part in parts:
            self.n_parts += 1
            size = len(part.labels)
            loss += self._run_pass(part, size / mean_size) * (size / n)
        return loss

    def _run_pass(self, part: Batch, weight: float) -> Tensor:
        if self.graphs is None:
            return self._forward_backward(part, weight)
        return self.graphs(
            self._forward_backward, part, torch.full((), weight, device=self.plan.device)
        )

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=self.graphs is None)  # graphs add to the same tensors

    def _forward_backward(self, part: Batch, weight: float | Tensor) -> Tensor:
        loss = batch_loss(self.model, part, self.plan)
        (loss * weight).backward()
        return loss.detach()

    def _check_loss(self, loss: Tensor) -> float:
        loss_value = loss.item()
        check_loss(loss_value, self.index + 1, self.losses, self.highest_lr, self.model)
        return loss_value


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def try_one_example(model: PreTrainedModel, train: Encoded, plan: TrainingPlan) -> None:
    """Forward and backward through one example; leaves no gradient and no draw behind."""
    model.train()
    devices = [model.device] if plan.device_type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            batch_loss(model, train.batch([0], plan.device), plan).backward()
    finally:
        model.zero_grad()


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's dropout. It depends on no earlier draw: resuming needs no state."""
    return random.Random(f"{seed}/step/{step}").getrandbits(63)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's own generators, the CPU's and that of `device`.

    `torch.manual_seed` seeds devices of all kinds and records a stack trace for each absent kind,
    which takes a hundredth of a small model's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda" and device.index is not None:  # else it would be the current device's
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def fit(
    loop: Loop,
    dev: Encoded,
    on_row: Callable[[Line, int], None],
    on_epoch: Callable[[int, Tensor], None],
    memory: MemoryMeter,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train to the end of `loop`'s plan, and compute the outputs for dev after every epoch.

    A state of the same run in `checkpoint` is resumed, and `on_epoch` is called again for its
    epochs.

    Args:
        loop: a run that has not begun.
        dev: the split to evaluate on.
        on_row: called with each step's row of the curve and the total number of steps.
        on_epoch: called after each epoch with its number, from 1, and the outputs for dev,
            (n_dev, num_labels).
        memory: a meter that was started before the model was loaded.
        checkpoint: the file that the run's state is written to from time to time.

    Raises:
        Diverged: if a loss or an output is not finite.
        Untrained: if a parameter that should be trained is not.
    """
    fitted, dev_outputs = FitResult(speed=loop.speed), list[Tensor]()
    if checkpoint is not None and restore(checkpoint, loop, fitted, dev_outputs, memory):
        checkpoint.tell(f"goes on after step {loop.index} of {loop.total}, where it was stopped")
        for epoch, logits in enumerate(dev_outputs, start=1):
            on_epoch(epoch, logits)
        on_row(fitted.curve[-1], loop.total)
    if loop.guard.exempt:
        updates = counted(loop.total, "update")
        fitted.notes.append(f"{updates}: too few to check that all is trained")
    settings = loop.plan.settings
    with gc_frozen(), fast(loop.model, settings.fast), without_cache(loop.model):
        loop.try_widest()
        if checkpoint is not None:
            checkpoint.start(loop.state_bytes)
        for epoch in range(len(dev_outputs) + 1, settings.epochs + 1):
            for row in loop.epoch(epoch - 1):
                fitted.curve.append(row | {"memory_mib": memory.now()})
                on_row(fitted.curve[-1], loop.total)
                if checkpoint is not None and checkpoint.is_due() and loop.guard.has_checked:
                    checkpoint.write(snapshot(loop, fitted, dev_outputs, memory))
            started = time.perf_counter()
            logits = compute_outputs(loop.model, dev, loop.plan)
            check_finite(logits, epoch)
            fitted.eval_s += time.perf_counter() - started
            fitted.curve.append({"epoch": epoch})
            dev_outputs.append(logits)
            on_epoch(epoch, logits)
        fitted.memory = memory.measure(loop.model, loop.optimizer, loop.saved_mib)
    loop.optimizer.zero_grad()
    if settings.graphs and loop.graphs is None:
        fitted.notes.append("no CUDA graphs: the method does something before each step")
    if loop.guard.unused:
        names = ", ".join(loop.guard.unused[:3])
        fitted.notes.append(f"the model does not compute with {names}, so training leaves it")
    if fitted.stops:
        steps = ", ".join(map(str, fitted.stops))
        fitted.notes.append(f"stopped, and went on after step {steps} of {loop.total}")
    fitted.train_s = loop.elapsed_s
    fitted.parts = loop.n_parts / loop.index
    return fitted


def compute_outputs(model: PreTrainedModel, data: Encoded, plan: TrainingPlan) -> Tensor:
    """The outputs for `data`, (n, num_labels), computed as the plan's training is."""
    settings = plan.settings
    return outputs(
        model,
        data,
        autocast=plan.autocast,
        fast=settings.fast,
        batch_size=settings.batch_size,
    )


def warmup_and_decay(optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """Linear warm-up over `warmup` steps, then linear decay to 0 at step `total`.

    Every group is scaled by the same factor, so their ratios hold through the run.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
