"""A method of the user's own: how its class reaches a cell, and what stands for its code there.

A cell is a process that never runs the user's script. The class goes to it by value, with what it
uses of its own file; what that imports is found where the caller finds it. In a cell's identity,
and in its record, the class is a hash of its source and of what it uses in its file, or in all of a
notebook, so that a cell is run again when the method was changed, and not when the rest was.
"""

from __future__ import annotations

import ast
import base64
import builtins
import contextlib
import hashlib
import inspect
import linecache
import pickle
import symtable
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

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
    name = method.__qualname__.partition(".")[0]
    for text in _texts(method):
        found = definitions(text, name)
        if found:
            return hashlib.sha256(found.encode()).hexdigest()
    return None


def _texts(method: type[Method]) -> Iterator[str]:
    """Where the class may be written: its notebook, its module's file, the cell of a function."""
    module = sys.modules.get(method.__module__)
    cells = getattr(module, "In", None)  # IPython's: what ran so far
    if isinstance(cells, list):
        yield notebook(cells)
    file = getattr(module, "__file__", None)
    functions = [value for value in vars(method).values() if inspect.isfunction(value)]
    for name in [*([file] if file else []), *(one.__code__.co_filename for one in functions)]:
        linecache.checkcache(name)  # else what was read once in this process is never read again
        yield "".join(linecache.getlines(name))


def notebook(cells: Sequence[str]) -> str:
    r"""The cells of a notebook as one text, which running a cell again leaves as it is.

    What was defined again stands where it was first, as it was defined last.

    >>> print(notebook(["a = [1]", "a += [2]; b = 1", "a = [3]", "a += [4]", "b ="]))
    a = [3]
    b = 1
    a += [4]
    """
    kept: list[tuple[ast.stmt, set[str]]] = []
    for statement in [one for cell in cells for one in _statements(cell)]:
        bound, place = _bound(statement) | _changed(statement), len(kept)
        if bound and bound <= _defined_anew(statement):
            old = [index for index, (_, names) in enumerate(kept) if names and names <= bound]
            kept = [one for index, one in enumerate(kept) if index not in old[1:]]
            if old:
                del kept[old[0]]
                place = old[0]
        kept.insert(place, (statement, bound))
    return "\n".join(ast.unparse(statement) for statement, _ in kept)


def _statements(cell: str) -> Iterator[ast.stmt]:
    """A cell's, each import by itself: another cell may have some of them too."""
    with contextlib.suppress(SyntaxError):  # such a cell never ran
        for statement in ast.parse(cell).body:
            if isinstance(statement, ast.Import):
                yield from (ast.Import([name]) for name in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                module, level = statement.module, statement.level
                yield from (ast.ImportFrom(module, [name], level) for name in statement.names)
            else:
                yield statement


def _defined_anew(statement: ast.stmt) -> set[str]:
    """The names that a statement binds whatever they were before."""
    of: Sequence[ast.AST | None]
    match statement:
        case ast.Import() | ast.ImportFrom():
            of = []
        case ast.ClassDef():
            of = [*statement.decorator_list, *statement.bases, *statement.keywords]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            arguments = statement.args
            of = [*statement.decorator_list, *arguments.defaults, *arguments.kw_defaults]
        case ast.Assign() if all(isinstance(one, ast.Name) for one in statement.targets):
            of = [statement.value]
        case ast.AnnAssign() if isinstance(statement.target, ast.Name) and statement.value:
            of = [statement.value]
        case _:
            return set()
    nodes = (node for one in of if one is not None for node in ast.walk(one))
    return _bound(statement) - {node.id for node in nodes if isinstance(node, ast.Name)}


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
    return found - vars(builtins).keys()  # print(...) changes nothing of what prints


def _root(node: ast.expr) -> set[str]:
    """The name at the start of an expression such as a.b[0].c, if there is one."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _used(statement: ast.stmt) -> set[str]:
    """The names of the file, or of Python itself, that a statement reads."""
    found = set()
    tables = [symtable.symtable(ast.unparse(statement), "", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        is_module = table.get_type() == "module"
        found |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (is_module or symbol.is_global())
        }
    return found
