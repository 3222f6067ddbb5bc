"""The unit of a regression's labels: train in standard units, answer in the label's own.

    in training     the head's last layer gives z = (y - mean) / sd, mean and sd of train's labels
    outside of it   W ← sd · W, c ← sd · c + mean, so that the same layer gives y

Otherwise training would depend on whether a label is in metres or in millimetres, since a head is
drawn small and a learning rate takes steps of one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from peftlab.errors import RequestError
from peftlab.layers import PreTrainedModel, is_linear
from peftlab.models.architectures import head_names
from peftlab.models.state import state_of

MAX_MEAN_IN_SD = 3e5  # fp32's numbers there, 2⁻²³ of their size apart, lie .04 sd apart


@dataclass(frozen=True)
class Unit:
    """Mean and standard deviation of train's labels."""

    mean: float
    sd: float

    @classmethod
    def of(cls, labels: Sequence[float]) -> Self:
        """The unit of `labels`.

        Raises:
            RequestError: if they are all the same, or differ so little for their size that
                answers in fp32 would be coarse.

        >>> Unit.of([1.0, 3.0])
        Unit(mean=2.0, sd=1.0)
        """
        if min(labels) == max(labels):
            raise RequestError(
                f"every label of train is {labels[0]:g}: there is nothing to learn; "
                "a regression needs labels that differ"
            )
        values = np.asarray(labels, np.float64)
        unit = cls(float(values.mean()), float(values.std()))
        if abs(unit.mean) > MAX_MEAN_IN_SD * unit.sd:
            raise RequestError(
                f"the labels of train lie around {unit.mean:.9g} and differ by {unit.sd:.3g} (sd), "
                f"and fp32's numbers are {np.spacing(np.float32(unit.mean)):.3g} apart there; "
                "subtract what the labels have in common"
            )
        return unit

    def standardise(self, labels: Sequence[float]) -> list[float]:
        """The labels in standard units."""
        values: list[float] = ((np.asarray(labels, np.float64) - self.mean) / self.sd).tolist()
        return values

    def restore(self, outputs: Tensor) -> Tensor:
        """`outputs` in standard units, of any shape, converted to the label's own, in float64."""
        return outputs.double() * self.sd + self.mean


def unit_of(model: PreTrainedModel, labels: Sequence[float]) -> Unit:
    """The unit of `labels` that `model` can be trained in.

    For a head without a bias, as decoders' heads are, labels are scaled and not centred: nothing
    could add the mean again.
    """
    unit = Unit.of(labels)
    return unit if last_layer(model).bias is not None else Unit(0.0, unit.sd)


@contextmanager
def standard_unit(model: PreTrainedModel, unit: Unit) -> Iterator[None]:
    """Let `model` answer in standard units inside, and in the label's own unit afterwards.

    A head that answers in the label's own unit already, after an earlier training or from the
    checkpoint that `load_model` read, is converted to standard units first. Any other is taken to
    be in standard units, as one just drawn is; it stays as it was if nothing trains it inside.
    """
    state, layer = state_of(model), last_layer(model)
    if state.own_unit:
        _rescale(model, 1 / unit.sd, -unit.mean / unit.sd)
    before = layer.weight.detach().clone()
    try:
        yield
    finally:
        if state.own_unit or not torch.equal(layer.weight, before):
            _rescale(model, unit.sd, unit.mean)
            state.own_unit = True


def last_layer(model: PreTrainedModel) -> Any:
    """The linear layer that gives the logits."""
    head = model.get_submodule(head_names(model)[-1])
    return [module for module in head.modules() if is_linear(module)][-1]


@torch.no_grad()
def _rescale(model: PreTrainedModel, factor: float, shift: float) -> None:
    """W ← factor · W and c ← factor · c + shift, in float64, rounded once.

    On the CPU, since not every device has float64 (mps).
    """
    layer = last_layer(model)
    layer.weight.copy_(layer.weight.cpu().double() * factor)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.cpu().double() * factor + shift)
