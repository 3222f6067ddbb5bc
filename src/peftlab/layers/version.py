"""Whether a tensor is the very one that a result was computed from, and unchanged since."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple, Self

from torch import Tensor


class TensorVersion(NamedTuple):
    """A tensor at one time: which it was, and how often it had been changed in place by then.

    It keeps no tensor alive.
    """

    tensor: Callable[[], Tensor | None]
    version: int | None

    @classmethod
    def of(cls, x: Tensor) -> Self:
        # a tensor of inference mode counts no changes: there it is always the same
        return cls(weakref.ref(x), None if x.is_inference() else x._version)

    def is_still(self, x: Tensor) -> bool:
        return self.tensor() is x and self.version == TensorVersion.of(x).version
