"""A linear layer of the base that multiplies in a way of its own: from four bits, or joined."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn


class BaseLinear(nn.Module, abc.ABC):
    """What the readers of a linear layer ask of one that is no plain one.

    Attributes:
        in_features, out_features: its sizes.
        bias: (out,), or None.
        compute: the precision of its inputs and its bias.
        plain_kind: the class that the layer had, `nn.Linear` or GPT-2's `Conv1D`.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    compute: torch.dtype
    plain_kind: type[nn.Module]

    @abc.abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """The weight (out, in), as exactly as it is held."""

    @abc.abstractmethod
    def updated(self, x: Tensor) -> Tensor | None:
        """(*batch, in) -> (*batch, out): the output with its adapter's low-rank update.

        None, unless the layer was told of the adapter.
        """
