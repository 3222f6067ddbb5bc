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
    own = functools.partial(replacement, module, getattr(module, name), *args)
    setattr(module, name, own)

    def restore() -> None:
        if vars(module).get(name) is not own:  # a caller's, put in or taken out meanwhile
            return
        if override is None:
            delattr(module, name)
        else:
            setattr(module, name, override)

    undo.callback(restore)
