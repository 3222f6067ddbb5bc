"""The methods by name: where a class makes itself known, and where text becomes a method.

    lora    lora[rank=16,lr=1e-3]    a list of them with commas between

Those from outside come from a script, and from installed packages that say they bring some:

    peftlab compare --plugin scaled.py --methods lora,scaled
    [project.entry-points."peftlab.methods"]        in the pyproject.toml of a package
    scaled = "my_package.scaled"

Either is imported, and its classes make themselves known by `@peftlab.register`.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from peftlab.errors import JSON_ERRORS, RequestError, expect, system_refusals, unknown
from peftlab.methods.base import ManyRanks, Method, NeedsDevice, Prepared
from peftlab.methods.peft import InPeft
from peftlab.naming import words

METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])
GROUP = "peftlab.methods"


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
        own = (name for name in vars(kind) if not name.startswith("_"))
        hooks = [name for name in own if callable(getattr(method, name, None))]
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
    """A method by its name, `lora` or `lora[rank=16]`, or as it is.

    Raises:
        RequestError: for an unknown name or setting, or what is no method.
    """
    if isinstance(method, type) and issubclass(method, Method):
        raise RequestError(f"method must be a value, got the class; call it: {method.__name__}()")
    expect(
        "method",
        method,
        (str, Method),
        "a name such as lora[rank=8], or a Method such as LoRA(rank=8)",
    )
    if isinstance(method, Method):
        return method
    given = parse_method(method)
    return make(given.pop("name"), given)


def parse_methods(text: str) -> list[dict[str, Any]]:
    """A list of methods: `lora,lora[rank=16,lr=1e-3],dora`, or `all`.

    >>> parse_methods("lora[targets=layer.[01].query,rank=2] ,, head")
    [{'name': 'lora', 'targets': 'layer.[01].query', 'rank': 2}, {'name': 'head'}]
    """
    names = list(METHODS) if text.strip() == "all" else words(text)
    return [parse_method(name) for name in names]


def parse_method(text: str) -> dict[str, Any]:
    """A method as a table: its name, and the fields in its brackets.

    Raises:
        RequestError: if the text is not NAME or NAME[field=value,...].

    >>> parse_method("lora[rank=16,lr=1e-3,targets=query,value]")
    {'name': 'lora', 'rank': 16, 'lr': 0.001, 'targets': 'query,value'}
    """
    found = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?", text.strip())
    if found is None:
        raise RequestError(f"a method is NAME or NAME[field=value,...], got {text!r}")
    name, inside = found[1], found[2]
    given: dict[str, Any] = {"name": name}
    # a comma begins a new field only where NAME= follows: targets=query,value is one field
    for part in re.split(r",(?=\s*\w+\s*=)", inside or ""):
        field, equals, value = part.partition("=")
        if part.strip() and not equals:
            raise RequestError(f"{part!r} in {text!r} must be field=value")
        if field.strip() == "name":
            raise RequestError(f"the name of a method stands before its brackets, got {text!r}")
        if part.strip():
            given[field.strip()] = parse_value(value.strip())
    return given


def parse_value(text: str) -> Any:
    """A value as TOML reads it, else the text itself.

    >>> parse_value("16"), parse_value("1e-3"), parse_value("query,value")
    (16, 0.001, 'query,value')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except JSON_ERRORS:
        return text


def load_plugin(file: Path) -> None:
    """Import a script, so that the methods which it registers are known. Its folder's files too.

    Raises:
        RequestError: if it does not exist, fails on import, or registers nothing.
    """
    with system_refusals(f"plugin {file} can't be read"):
        there = file.is_file()
    if not there:
        raise RequestError(f"there is no plugin {file}; give a Python file that registers a method")
    file, before = file.resolve(), dict(METHODS)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    name = re.sub(r"\W", "_", str(file))  # of this file alone, and no other module's
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RequestError(
            f"plugin {file} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if before == METHODS:
        raise RequestError(
            f"plugin {file} registers no method; put @peftlab.register before its class"
        )


def load_installed() -> None:
    """Import the methods of installed packages.

    Raises:
        RequestError: if one can't be imported.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise RequestError(
                f"the method {entry.name!r} of an installed package ({entry.value}) can't be "
                f"imported: {type(error).__name__}: {error}; mend or uninstall it"
            ) from error
