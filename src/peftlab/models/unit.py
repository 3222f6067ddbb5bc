"""The unit of a regression's labels: trained on in standard units, answered in the label's own.

    in training     the head's last layer gives z = (y - mean) / sd, mean and sd of train's labels
    outside of it   W ← sd · W, c ← sd · c + mean, so that the very same layer gives y

Without it what is learned depends on whether a label is in metres or in millimetres, since a head
is drawn small and learning rates are steps of one size.
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

FARTHEST = 3e5  # from 0, in sd: there fp32's numbers, 2⁻²³ of what they are, lie .04 sd apart


@dataclass(frozen=True)
class Unit:
    """Mean and standard deviation of train's labels."""

    mean: float
    sd: float

    @classmethod
    def of(cls, labels: Sequence[float]) -> Self:
        """The unit of `labels`.

        Raises:
            RequestError: if they are all the same, or differ by so little beside what they are
                that answers in fp32 would be coarse.

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
        if abs(unit.mean) > FARTHEST * unit.sd:
            raise RequestError(
                f"the labels of train lie around {unit.mean:.9g} and differ by {unit.sd:.3g} (sd), "
                f"and fp32's numbers are {np.spacing(np.float32(unit.mean)):.3g} apart there; "
                "subtract what the labels have in common"
            )
        return unit

    def standardised(self, labels: Sequence[float]) -> list[float]:
        """The labels in standard units."""
        values: list[float] = ((np.asarray(labels, np.float64) - self.mean) / self.sd).tolist()
        return values

    def restored(self, outputs: Tensor) -> Tensor:
        """Outputs in standard units, any shape, in the label's own: the same shape, in float64."""
        return outputs.double() * self.sd + self.mean


def unit_of(model: PreTrainedModel, labels: Sequence[float]) -> Unit:
    """The unit that `model` can be trained in: where its head has no bias, as decoders' have none,
    labels are scaled and not centred, since nothing could add the mean again.
    """  # noqa: D205
    unit = Unit.of(labels)
    return unit if last_layer(model).bias is not None else Unit(0.0, unit.sd)


@contextmanager
def standard_unit(model: PreTrainedModel, unit: Unit) -> Iterator[None]:
    """Let `model` answer in standard units inside, and in the label's own behind it.

    A head that has answered in the label's own unit before, from an earlier training or from the
    checkpoint that `load_model` read, goes on from there; any other is taken to be small in
    standard units, as one is that was just drawn, and if nothing was trained left as it was.
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
