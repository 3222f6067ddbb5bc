"""Tensors that lie side by side in memory, as the gradients of one joined product do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`parts` (*batch, nᵢ) along their last dimension; no copy where they already lie so."""
    first = parts[0]
    if len(parts) == 1:
        return first
    width = sum(part.shape[-1] for part in parts)
    offset = first.storage_offset()
    for part in parts:
        if (
            part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.storage_offset() != offset
            or part.stride() != first.stride()
            or part.stride()[-2] != width
        ):
            return torch.cat(list(parts), dim=-1)
        offset += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride())
