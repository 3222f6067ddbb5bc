"""An adapter: a frozen linear layer and what a method adds to it.

    forward(x)   the layer in training and evaluation
    merged()     the plain layer that it equals: the paper's equation, written once

The two are two readings of one formula, and a test holds them together away from the start.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Adapter(nn.Module, abc.ABC):
    """A frozen linear layer `base` plus what a method adds to it."""

    base: nn.Linear

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out)."""

    @abc.abstractmethod
    def merged(self) -> nn.Linear:
        """The plain layer this adapter equals in eval mode. A new layer; `self` is not touched."""


def linear_like(base: nn.Linear, weight: Tensor) -> nn.Linear:
    """A frozen layer with `base`'s bias, dtype and device and another weight (out, in)."""
    out_features, in_features = weight.shape
    with torch.device("meta"):
        layer = nn.Linear(in_features, out_features, bias=base.bias is not None)
    layer.weight = nn.Parameter(weight.detach().to(base.weight), requires_grad=False)
    if base.bias is not None:
        layer.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return layer.train(base.training)


def replace_linears(
    model: nn.Module, names: Iterable[str], make: Callable[[nn.Linear], Adapter]
) -> None:
    """Put `make(layer)` in the place of every linear layer of `model` named in `names`.

    Raises:
        TypeError: if a name is not that of an `nn.Linear`.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is a {type(layer).__name__}; adapters go on nn.Linear")
        model.set_submodule(name, make(layer).train(layer.training))
