"""The methods by name: where a class makes itself known, and where a name becomes a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from peftlab.errors import RequestError, expect, unknown
from peftlab.methods.base import Method
from peftlab.methods.hooks import ManyRanks, NeedsDevice, Prepared
from peftlab.methods.peft import InPeft

METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator: make a method known by its name, wherever a name is asked for.

    Raises:
        RequestError: if the class lacks what a method has, if it has a hook that would never be
            called, or if the name is a built-in method's and the class is not.
    """
    needed = ("name", "summary", "paper", "default_lr")
    lacking = [name for name in needed if not hasattr(method, name)]
    if lacking:
        raise RequestError(
            f"{method.__name__} lacks {', '.join(lacking)}; a method has the class variables "
            f"{', '.join(needed)}"
        )
    for kind in (Prepared, ManyRanks, NeedsDevice, InPeft):
        hooks = [name for name in vars(kind) if not name.startswith("_") and hasattr(method, name)]
        if hooks and not issubclass(method, kind):
            raise RequestError(
                f"{method.__name__} has {hooks[0]}, and is no peftlab.methods.{kind.__name__}, of "
                "which alone it is called; inherit from that instead of Method"
            )
    taken = METHODS.get(method.name)
    if taken is not None and is_built_in(taken) and not is_built_in(method):
        raise RequestError(
            f"{method.__name__} can't be called {method.name!r}, as peftlab's {taken.__name__} is; "
            "give it a class variable name of its own"
        )
    METHODS[method.name] = method
    return method


def is_built_in(method: type[Method]) -> bool:
    """Whether the method is one of peftlab's own."""
    return method.__module__.startswith("peftlab.methods.")


def make(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called `name` with these settings.

    Raises:
        RequestError: for an unknown name or setting, or a value out of range.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](**(settings or {}))


def resolve_method(method: Method | str) -> Method:
    """A method by its name, or as it is.

    Raises:
        RequestError: for an unknown name, or what is no method.
    """
    if isinstance(method, type) and issubclass(method, Method):
        raise RequestError(f"method must be a value, got the class; call it: {method.__name__}()")
    expect("method", method, (str, Method), "a name, or a Method such as LoRA(rank=8)")
    return make(method) if isinstance(method, str) else method
