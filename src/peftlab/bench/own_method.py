"""A method of the user's own: how its class reaches a cell, and what stands for its code there.

A cell is a process that never runs the user's script. The class goes to it by value, with what it
uses of its own file; what that imports is found where the caller finds it. In a cell's identity,
and in its record, the class is a hash of its source and of what it uses in its file, or in all of a
notebook, so that a cell is run again when the method was changed, and not when the rest was.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import inspect
import linecache
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from peftlab.errors import RequestError
from peftlab.methods import Method, is_built_in, register

SETTERS = ("setattr", "delattr")


class OwnMethod(BaseModel, extra="forbid", frozen=True):
    """The class of a method that is not peftlab's, as an order to a worker carries it."""

    pickled: str  # base64
    path: list[str]  # where its imports are looked for, after the worker's own

    def receive(self) -> None:
        """Make the method known in this process."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        register(pickle.loads(base64.b64decode(self.pickled)))


def own_method(method: type[Method]) -> OwnMethod | None:
    """What a cell needs to know the method; None for one of peftlab's own.

    Raises:
        RequestError: if its source is nowhere to be read, or it can't leave this process.
    """
    if is_built_in(method):
        return None
    if source_hash(method) is None:
        raise RequestError(
            f"the source of {method.__name__} can't be found, and without it nobody can tell "
            "whether a finished cell was of this method; define it in a file or a notebook's cell"
        )
    import cloudpickle

    try:
        with _by_value(sys.modules.get(method.__module__)):
            pickled = cloudpickle.dumps(method)
    except Exception as error:  # whatever the class holds on to raises when it is pickled
        raise RequestError(
            f"{method.__name__} can't be sent to a cell's process: {error}; define it in a module "
            "of its own, which holds nothing but the method"
        ) from error
    path = [str(Path(folder).resolve()) for folder in sys.path]
    return OwnMethod(pickled=base64.b64encode(pickled).decode(), path=path)


@contextlib.contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Classes of `module` are pickled whole, as those of a script always are."""
    import cloudpickle

    if module is None or module.__name__ == "__main__":
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def source_hash(method: type[Method]) -> str | None:
    """SHA-256 of a method's source and of all that it uses in its file; None if it has no file.

    None for peftlab's own too, whose source the record's commit or version says.
    """
    if is_built_in(method):
        return None
    found = _source(method)
    if not found:
        return None
    module = sys.modules.get(method.__module__)
    if module is not None and not hasattr(module, "__file__"):
        found = "\n".join([found, *_of_other_cells(found, module)])
    return hashlib.sha256(found.encode()).hexdigest()


def _source(thing: Any) -> str:
    """A class or function as its file, or its notebook's cell, defines it; empty if none does."""
    for file in _files(thing):
        linecache.checkcache(file)  # else what was read once in this process is never read again
        text = "".join(linecache.getlines(file))
        found = definitions(text, thing.__qualname__.partition(".")[0])
        if found:
            return found
    return ""


def _files(thing: Any) -> list[str]:
    """Where it may be written: its module's file, or the notebook's cell of a function."""
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    functions = [thing, *(vars(thing).values() if inspect.isclass(thing) else ())]
    cells = [value.__code__.co_filename for value in functions if inspect.isfunction(value)]
    return [*([file] if file else []), *cells]


def _of_other_cells(text: str, module: ModuleType) -> list[str]:
    """What `text` uses of a notebook's other cells, and what this uses in turn.

    Functions and classes as they are written, plain values as they are now.
    """
    found: list[str] = []
    seen: set[str] = set()
    texts = [text]
    while texts:
        statements = ast.parse(texts.pop()).body
        used = {name for statement in statements for name in _used(statement)}
        for name in sorted(used - set().union(*map(_bound, statements)) - seen):
            seen.add(name)
            given: Any = vars(module).get(name)
            value = inspect.unwrap(given)
            if getattr(value, "__module__", None) == module.__name__ and callable(value):
                found.append(f"{name}: {_source(value)}")
                texts.append(_source(value))
            elif _is_plain(value):
                found.append(f"{name} = {value!r}")
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is all that its text says."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | bytes)


def definitions(text: str, name: str) -> str:
    r"""What defines `name` in a file's text, and all that this uses in turn, in the file's order.

    >>> print(definitions("a = 1; b = a; c = 3\ndef f():\n    return b\nprint(f())", "f"))
    a = 1
    b = a
    def f():
        return b
    """
    statements = ast.parse(text).body
    binding: dict[str, list[int]] = {}
    imported: set[str] = set()
    for index, statement in enumerate(statements):
        bound = _bound(statement)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imported |= bound
        # what a module's function does is the rest of a script, peftlab.compare(...) for one
        for own in bound | (_changed(statement) - imported):
            binding.setdefault(own, []).append(index)
    wanted: set[int] = set()
    names = [name] if name in binding else []
    while names:
        for index in binding.get(names.pop(), []):
            if index not in wanted:
                wanted.add(index)
                names += _used(statements[index])
    return "\n".join(ast.unparse(statements[index]) for index in sorted(wanted))


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a file defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and _is_set(node):
            found |= _root(node)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


def _is_set(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _changed(statement: ast.stmt) -> set[str]:
    """The names whose value a statement may change by a call alone: CONFIG.update(...)."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            named = getattr(call.func, "id", None)  # of a function, not of a method
            found |= _root(call.args[0] if named in SETTERS and call.args else call.func)
    return found


def _root(node: ast.expr) -> set[str]:
    """The name at the start of an expression such as a.b[0].c, if there is one."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _used(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
