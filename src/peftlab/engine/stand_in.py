"""A method of one module replaced inside the context, and its own again behind it."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from torch import nn


def stand_in(module: nn.Module, name: str, ours: Any, undo: ExitStack, *known: Any) -> None:
    """Let `module.name(...)` be `ours(module, theirs, *known, ...)`."""
    own = vars(module).get(name)  # what somebody else has put there
    setattr(module, name, functools.partial(ours, module, getattr(module, name), *known))
    undo.callback(*((delattr, module, name) if own is None else (setattr, module, name, own)))
