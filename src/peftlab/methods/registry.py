"""The methods by name: classes are registered here, and text becomes a method.

    lora    lora[rank=16,lr=1e-3]    a list of them with commas between

Methods from outside come from a script, or from an installed package that names them:

    peftlab compare --plugin scaled.py --methods lora,scaled
    [project.entry-points."peftlab.methods"]        in the pyproject.toml of a package
    scaled = "my_package.scaled"

Either is imported, and registers its classes by `@peftlab.register`.
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
GROUP = "peftlab.methods"  # of entry points


def register(method: M) -> M:
    """Class decorator: make a method known by its name, wherever a name is taken.

    Raises:
        RequestError: if the class lacks a class variable that a method has, if it has a hook that
            would never be called, or if the name is a built-in method's and the class is not.
    """
    expect("method", method, type, "a class, such as one that inherits from Method")
    required = ("name", "summary", "paper", "default_lr")
    missing = [name for name in required if not hasattr(method, name)]
    if missing:
        raise RequestError(
            f"{method.__name__} lacks {', '.join(missing)}; a method has the class variables "
            f"{', '.join(required)}"
        )
    for kind in (Prepared, ManyRanks, NeedsDevice, InPeft):
        names = (name for name in vars(kind) if not name.startswith("_"))
        hooks = [name for name in names if callable(getattr(method, name, None))]
        if hooks and not issubclass(method, kind):
            raise RequestError(
                f"{method.__name__} has {hooks[0]}, and is no peftlab.methods.{kind.__name__}, of "
                "which alone it is called; inherit from that instead of Method"
            )
    holder = METHODS.get(method.name)
    if holder is not None and is_built_in(holder) and not is_built_in(method):
        raise RequestError(
            f"{method.__name__} can't be called {method.name!r}, as peftlab's {holder.__name__} "
            "is; give it a class variable name of its own"
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
    """The method that a text such as `lora` or `lora[rank=16]` names; a `Method` as it is.

    Raises:
        RequestError: for an unknown name or setting, or a value that is no method.
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
    settings = parse_method(method)
    return make(settings.pop("name"), settings)


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
        RequestError: if the text is not NAME or NAME[field=value,...], or has a field twice.

    >>> parse_method("lora[rank=16,lr=1e-3,targets=query,value]")
    {'name': 'lora', 'rank': 16, 'lr': 0.001, 'targets': 'query,value'}
    """
    match = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?", text.strip())
    if match is None:
        raise RequestError(f"a method is NAME or NAME[field=value,...], got {text!r}")
    name, brackets = match.groups(default="")
    table: dict[str, Any] = {"name": name}
    # a comma begins a new field only where NAME= follows: targets=query,value is one field
    for part in re.split(r",(?=\s*\w+\s*=)", brackets):
        if not part.strip():
            continue
        field, equals, value = part.partition("=")
        field = field.strip()
        if not equals:
            raise RequestError(f"{part!r} in {text!r} must be field=value")
        if field == "name":
            raise RequestError(f"the name of a method stands before its brackets, got {text!r}")
        if field in table:
            raise RequestError(f"{field} stands twice in {text!r}; give it one value")
        table[field] = parse_value(value.strip())
    return table


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
    """Import a script, which registers methods; it may import the files of its folder.

    Raises:
        RequestError: if it does not exist, fails on import, or registers no method.
    """
    with system_refusals(f"plugin {file} can't be read"):
        exists = file.is_file()
    if not exists:
        raise RequestError(f"there is no plugin {file}; give a Python file that registers a method")
    file, methods_before = file.resolve(), dict(METHODS)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    name = re.sub(r"\W", "_", str(file))  # no other module has it
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        METHODS.clear()
        METHODS.update(methods_before)  # without those that it registered before it failed
        raise RequestError(
            f"plugin {file} can't be imported: {type(error).__name__}: {error}"
        ) from error
    if methods_before == METHODS:
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
