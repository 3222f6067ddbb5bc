"""A run that has gone wrong stops at once, with the step and the likely cause."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Diverged(RuntimeError):
    """The loss is no number any more. The message names the step and the likely cause."""


def check_loss(loss: float, step: int, recent: list[float], lr: float, model: nn.Module) -> None:
    """Raise `Diverged` unless `loss` is finite.

    Args:
        loss: of the step.
        step: counted from 1.
        recent: the losses before it.
        lr: the highest of the schedule.
        model: searched for the first weight that is not finite.
    """
    if math.isfinite(loss):
        return
    raise Diverged(f"the loss is {loss} at step {step}; {_cause(step, recent, lr, model)}")


def check_outputs(values: Tensor, epoch: int) -> None:
    """Raise `Diverged` unless every output of an evaluation is finite."""
    if not bool(values.isfinite().all()):
        raise Diverged(
            f"the model's outputs on the dev set are not finite after epoch {epoch}; "
            "the last updates were too large: lower the learning rate"
        )


def _cause(step: int, recent: list[float], lr: float, model: nn.Module) -> str:
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if step == 1:
        where = f"the weights of {broken[0]} are not finite" if broken else "labels or weights are"
        return f"before any update, so it is not the learning rate: {where} at fault"
    history = f"it was {recent[0]:.3g} at first and {recent[-1]:.3g} just before"
    where = f"; {broken[0]} is not finite" if broken else ""
    return f"{history}{where}; likely cause: the learning rate ({lr:g} at its highest) is too high"
