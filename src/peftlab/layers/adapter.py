"""An adapter: a frozen linear layer and what a method adds to it.

    forward(x)   the layer in training and evaluation
    merged()     the plain layer that it equals: the paper's equation, written once

The two are two readings of one formula, and a test holds them together away from the start.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn

from peftlab.layers.linear import Linear, is_linear, linear_like, weight_of


class Wrapper(nn.Module):
    """A module of the base, `base`, and what a method puts around it."""

    base: nn.Module

    def idle(self, name: str) -> list[str]:
        """What should have had a gradient by now and had none, in parts of a tensor.

        `name` is the wrapper's own in the model.
        """
        return []

    def excused(self, name: str) -> set[str]:
        """The trainable tensors, by full name, that can't have had a gradient by now."""
        return set()


class Adapter(Wrapper, abc.ABC):
    """A frozen linear layer `base` plus what a method adds to it, which a subclass says.

    `base` is an `nn.Linear`, a `Conv1D` or a `BaseLinear`; see `peftlab.layers.linear`.
    """

    base: Linear

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out)."""

    @abc.abstractmethod
    def merged_weight(self, weight: Tensor) -> Tensor:
        """The paper's equation: what a frozen `weight` (out, in) becomes with this adapter."""

    @abc.abstractmethod
    def merged_bias(self) -> Tensor | None:
        """The bias (out,) of the plain layer, None if it has none."""

    @final
    def merged(self, weight: Tensor | None = None) -> Linear:
        """The plain layer this adapter equals in eval mode. A new layer; `self` is not touched.

        `weight` (out, in) is the base's, where it is known more exactly than it is held.
        """
        if weight is None:
            weight = exact(weight_of(self.base))
        with torch.no_grad():
            return linear_like(self.base, self.merged_weight(weight), self.merged_bias())

    @property
    @final
    def weight(self) -> Tensor:
        """The base's weight as it is held: some models, T5 among them, ask for its dtype."""
        weight: Tensor = self.base.weight
        return weight


class WeightAdapter(Adapter):
    """An adapter that changes the weight alone and leaves the bias as it is."""

    @final
    def merged_bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return bias


def exact(weight: Tensor) -> Tensor:
    """A weight in the precision that merging computes in: fp32, or float64 where it is held so."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def replace_linears(
    model: nn.Module, names: Iterable[str], make: Callable[[Linear], Adapter]
) -> None:
    """Put `make(layer)` in the place of every linear layer of `model` named in `names`.

    Raises:
        TypeError: if a name is not that of a linear layer.
    """
    made: dict[str, Adapter] = {}  # all of them first: a refusal leaves the model as it was
    for name in names:
        layer = model.get_submodule(name)
        if not is_linear(layer):
            raise TypeError(f"{name} is a {type(layer).__name__}; adapters go on linear layers")
        made[name] = make(layer).train(layer.training)
    for name, adapter in made.items():
        model.set_submodule(name, adapter)
