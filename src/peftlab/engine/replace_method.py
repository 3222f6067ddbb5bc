"""Replaces a method of one module inside the context, and restores it afterwards."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace_method(
    module: nn.Module, name: str, replacement: Any, undo: ExitStack, *args: Any
) -> None:
    """Let `module.name(...)` call `replacement(module, original, *args, ...)`."""
    override = vars(module).get(name)  # of somebody else, on this instance
    setattr(module, name, functools.partial(replacement, module, getattr(module, name), *args))
    if override is None:
        undo.callback(delattr, module, name)
    else:
        undo.callback(setattr, module, name, override)
