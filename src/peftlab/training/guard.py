"""Checks that stop a run that has gone wrong at once, and name the step and the likely cause."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.layers import Wrapper
from peftlab.naming import few

EARLIEST, LATEST = 2, 20  # updates after which every trainable parameter must have moved


class Diverged(RuntimeError):
    """A loss or an output is not finite. The message names the step and the likely cause."""


class Untrained(RuntimeError):
    """Something that should be trained is not. The message names it."""


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raise `Untrained` unless the optimizer's groups hold every trainable parameter once."""
    grouped = Counter(id(parameter) for group in groups for parameter in group["params"])
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise Untrained("nothing in the model is trainable; inject a method first")
    missing = [name for key, name in trainable.items() if key not in grouped]
    twice = [name for key, name in trainable.items() if grouped[key] > 1]
    n_foreign = len(grouped.keys() - trainable.keys())
    if missing or twice or n_foreign:
        raise Untrained(
            f"the optimizer's groups must hold every trainable parameter once: "
            f"missing {few(missing)}; twice {few(twice)}; not trainable: {n_foreign}"
        )


class TrainingCheck:
    """Checks once in a run that every trainable parameter is trained, and that dropout is on.

    The check comes after a quarter of the run's updates, at most `LATEST`. At the first update the
    A of LoRA has no gradient, since B is 0, so a run whose quarter is less than `EARLIEST` updates
    is too short for it, and `exempt`. Parameters in a module of `unread` can't have a gradient.
    """

    def __init__(self, model: nn.Module, total: int, unread: Sequence[str] = ()) -> None:
        self.unread = tuple(f"{name}." for name in unread)
        self.due = min(LATEST, total // 4)
        self.exempt = self.due < EARLIEST
        self.start = {n: _checksum(p) for n, p in _trainable(model)} if not self.exempt else {}
        self.without_gradient = set(self.start)  # or with one of zeros
        self.outside_graph = set(self.start)  # without any gradient, not even one of zeros
        self.unused: list[str] = []

    @property
    def has_checked(self) -> bool:
        """Whether the check is over, or the run is exempt from it."""
        return not self.start

    def finish(self, unused: list[str]) -> None:
        """End the check; `unused` are the parameters that it found the model not to use."""
        self.without_gradient, self.outside_graph, self.start = set(), set(), {}
        self.unused = unused

    def note_gradients(self, model: nn.Module) -> None:
        """Note which parameters have a gradient; called when all parts' gradients are added."""
        if self.without_gradient:
            self.outside_graph -= {name for name, p in _trainable(model) if p.grad is not None}
            self.without_gradient -= {
                name
                for name, p in _trainable(model)
                if name in self.without_gradient and p.grad is not None and bool(p.grad.any())
            }

    def check(self, model: Any, updates: int, reached_lr: float = math.inf) -> None:
        """Raise `Untrained` if something is not trained, once `updates` reach the number due.

        Wrappers say which of their tensors may lack a gradient, and which parts of one do lack it.
        `reached_lr` is the largest learning rate so far: a tensor whose every number is so large
        that rounding loses a step of that size is not called stuck, however many such steps there
        were. A tensor of the base that the model does not compute with, such as an unused pooler,
        is `unused` and no error.
        """
        if self.exempt or updates != self.due:
            return
        wrappers = {n: module for n, module in model.named_modules() if isinstance(module, Wrapper)}
        in_wrappers = tuple(f"{n}." for n in wrappers)
        base = f"{getattr(model, 'base_model_prefix', '')}."
        outside_graph = (
            name
            for name in self.outside_graph
            if name.startswith(base) and not name.startswith(in_wrappers)
        )
        unread = (name for name in self.without_gradient if name.startswith(self.unread))
        unused = sorted({*outside_graph, *unread})
        excused = {name for n, wrapper in wrappers.items() for name in wrapper.excused(n)}
        untouched = sorted(self.without_gradient - excused - {*unused})
        problems = [f"{name} has had no gradient" for name in untouched]
        problems += [
            f"{name} has not moved"
            for name, p in _trainable(model)
            if name not in self.without_gradient  # those are listed above
            and _checksum(p) == self.start[name]
            and reached_lr > 8 * torch.finfo(p.dtype).eps * float(p.detach().abs().min())
        ]
        for n, wrapper in wrappers.items():
            if f"{n}.".startswith(self.unread):
                continue
            problems += [f"no gradient for {part}" for part in wrapper.idle(n)]
        problems += [
            f"dropout {name} is in evaluation mode"
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout) and module.p > 0 and not module.training
        ]
        self.finish(unused)
        if problems:
            raise Untrained(
                f"after {updates} updates something is not trained as it should be: "
                f"{few(problems, between='; ')}"
            )


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _checksum(parameter: Tensor) -> tuple[int, int]:
    """The sums of the numbers' bits, as integers: of all and of the first half. Takes no memory.

    Nearly every change of the numbers changes one of the two. The sum of all alone may stay: the
    biases of two classes have opposite gradients, and Adam moves one as far up as the other down.
    """
    dtype = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    bits = parameter.detach().contiguous().view(dtype).flatten()
    half = bits[: (len(bits) + 1) // 2]
    return int(bits.sum(dtype=torch.int64)), int(half.sum(dtype=torch.int64))


def check_loss(loss: float, step: int, earlier: list[float], lr: float, model: nn.Module) -> None:
    """Raise `Diverged` unless `loss` is finite.

    Args:
        loss: the step's loss.
        step: counted from 1.
        earlier: the losses of all steps before it.
        lr: the highest learning rate of the schedule.
        model: searched for the first weight that is not finite.
    """
    if math.isfinite(loss):
        return
    raise Diverged(f"the loss is {loss} at step {step}; {_cause(step, earlier, lr, model)}")


def check_finite(values: Tensor, epoch: int) -> None:
    """Raise `Diverged` unless every output of an evaluation is finite."""
    if not bool(values.isfinite().all()):
        raise Diverged(
            f"the model's outputs on the dev set are not finite after epoch {epoch}; "
            "the last updates were too large: lower the learning rate"
        )


def _cause(step: int, earlier: list[float], lr: float, model: nn.Module) -> str:
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if step == 1:
        where = f"the weights of {broken[0]} are not finite" if broken else "labels or weights are"
        return f"before any update, so it is not the learning rate: {where} at fault"
    history = f"it was {earlier[0]:.3g} at first and {earlier[-1]:.3g} just before"
    where = f"; {broken[0]} is not finite" if broken else ""
    return f"{history}{where}; likely cause: the learning rate ({lr:g} at its highest) is too high"
