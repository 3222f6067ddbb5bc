"""Low-rank updates of layers that have one product, in C++ where a compiler is found.

    y[:, columns of i] += sᵢ x Aᵢᵀ Bᵢᵀ        i: the layers that have an update

    StackedUpdates   by torch's products: all Aᵢ in one matrix, all sᵢ Bᵢᵀ blocks of another
    NativeUpdates    by low_rank.cpp, which goes over x and y once, and over their gradients

Updates of small rank have a hundredth of a step's operations, and torch's products, six for all
updates, took a tenth of its time (LOG.md).
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.layers import native

KERNEL = native.Kernel(__file__, without="torch adds low-rank updates")
LARGEST_RANK = 16  # of all updates together; beyond it torch is as fast (LOG.md)


def serves(pairs: Sequence[Tensor], width: int, dtype: torch.dtype) -> bool:
    """Whether low_rank.cpp adds updates with `pairs` = A₁, B₁, A₂, B₂, … to a product's output.

    Args:
        pairs: the matrices.
        width: of the output, Σ out.
        dtype: of the output and the layers' input.
    """
    rank = sum(lora_A.shape[0] for lora_A in pairs[::2])
    widths = (width, pairs[0].shape[1], *(lora_B.shape[0] for lora_B in pairs[1::2]))
    return (
        dtype == torch.bfloat16
        and all(matrix.dtype == torch.float32 and matrix.is_contiguous() for matrix in pairs)
        and pairs[0].device.type == "cpu"
        and rank <= LARGEST_RANK
        and not any(one % native.WIDEST for one in widths)
        and KERNEL.is_built()
    )


class Updates(abc.ABC):
    """Updates at `columns` of a product's output, each with its factor s."""

    def __init__(
        self, pairs: Sequence[Tensor], columns: Sequence[slice], scalings: Sequence[float]
    ) -> None:
        self.ranks = [lora_A.shape[0] for lora_A in pairs[::2]]
        self.dtype = pairs[0].dtype
        self.columns, self.scalings = list(columns), list(scalings)

    @abc.abstractmethod
    def add(self, y: Tensor, x: Tensor, pairs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Add the updates of x (n, in) to y (n, Σ out) in place; returns what `gradients` needs."""

    @abc.abstractmethod
    def gradients(
        self, g: Tensor, x: Tensor | None, g_x: Tensor | None, added: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of A₁, B₁, A₂, B₂, …; adds that of x to `g_x` in place.

        Args:
            g: the gradient of y, (n, Σ out).
            x: None if no A needs a gradient.
            g_x: None if x needs none.
            added: what `add` returned.
        """


class StackedUpdates(Updates):
    """All sᵢ Bᵢᵀ as blocks of one matrix, zero elsewhere, and all Aᵢ one below the other.

    So any number of updates takes two products forward and four backward, and no sum takes a pass
    of its own.
    """

    def add(self, y: Tensor, x: Tensor, pairs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        a = torch.cat(list(pairs[::2])).to(x.dtype)  # (Σ rank, in)
        bt = x.new_zeros(len(a), y.shape[-1])
        for (block, s), lora_B in zip(self._blocks(), pairs[1::2], strict=True):
            torch.mul(lora_B.T, s, out=bt[block])
        with torch.autocast(x.device.type, enabled=False):  # not a caller's: y is in x's precision
            inner = x @ a.T  # (n, Σ rank)
            y.addmm_(inner, bt)
        return inner, a, bt

    def gradients(
        self, g: Tensor, x: Tensor | None, g_x: Tensor | None, added: Sequence[Tensor]
    ) -> list[Tensor | None]:
        inner, a, bt = added
        g_inner = g @ bt.T
        if g_x is not None:
            g_x.addmm_(g_inner, a)
        gradients: list[Tensor | None] = [None] * (2 * len(self.ranks))
        if x is not None:
            gradients[::2] = (g_inner.T @ x).to(self.dtype).split(self.ranks)
        g_bt = (inner.T @ g).to(self.dtype)
        gradients[1::2] = [g_bt[block].T.mul_(s) for block, s in self._blocks()]
        return gradients

    def _blocks(self) -> list[tuple[tuple[slice, slice], float]]:
        """Each update's rows and columns in the matrix of all sᵢ Bᵢᵀ, and its s."""
        places = zip(slices(self.ranks), self.columns, strict=True)
        return list(zip(places, self.scalings, strict=True))


class NativeUpdates(Updates):
    """In C++; A, B and x Aᵀ are multiplied in fp32.

    A and B themselves are kept for the backward pass: like a layer of torch's it refuses them if
    they were changed meanwhile.
    """

    def add(self, y: Tensor, x: Tensor, pairs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        inner = torch.ops.peftlab.low_rank(y, x.contiguous(), list(pairs), *self._options)
        return inner, *pairs

    def gradients(
        self, g: Tensor, x: Tensor | None, g_x: Tensor | None, added: Sequence[Tensor]
    ) -> list[Tensor | None]:
        inner, *pairs = added
        rows = None if x is None else x.contiguous()
        gradients: list[Tensor | None] = torch.ops.peftlab.low_rank_gradient(
            g.contiguous(), rows, inner, g_x, pairs, *self._options
        )
        if x is None:  # an operation's list has no None: those of A are empty
            gradients[::2] = [None] * len(self.ranks)
        return gradients

    @property
    def _options(self) -> tuple[list[int], list[float]]:
        return [columns.start for columns in self.columns], self.scalings


def slices(sizes: Sequence[int]) -> list[slice]:
    """The slices of consecutive parts of these sizes.

    >>> slices([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [
        slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)
    ]


@KERNEL.shapes_of("low_rank")
def _inner_shape(y: Tensor, x: Tensor, pairs: Sequence[Tensor], *others: Any) -> Tensor:
    rank = sum(len(lora_A) for lora_A in pairs[::2])
    return x.new_empty(len(x), rank, dtype=torch.float32)


@KERNEL.shapes_of("low_rank_gradient")
def _gradient_shapes(
    g: Tensor, x: Any, inner: Tensor, g_x: Any, pairs: Sequence[Tensor], *others: Any
) -> list[Tensor]:
    gradients = [torch.empty_like(matrix) for matrix in pairs]
    if x is None:
        gradients[::2] = [one[:0] for one in gradients[::2]]
    return gradients
