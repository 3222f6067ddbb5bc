"""A user's own method: how its class reaches a cell, and the hash that identifies its code.

A cell is a process that never runs the user's script. The class is pickled by value, with what it
uses of its own file; imports are looked for where the caller looks for them. A cell's identity and
its record hold a hash of the class's source and of what that uses in its file, or in the whole
notebook, so that a cell is run again when the method has changed, and not when the rest has.
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
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from peftlab.errors import RequestError
from peftlab.methods import Method, is_built_in, register

SETTERS = ("setattr", "delattr")


class OwnMethod(BaseModel, extra="forbid", frozen=True):
    """The class of a user's own method, as an order to a worker carries it."""

    pickled: str  # base64
    path: list[str]  # folders where its imports are looked for, after the worker's own

    def receive(self) -> None:
        """Unpickle the class and register it in this process."""
        sys.path += [folder for folder in self.path if folder not in sys.path]
        register(pickle.loads(base64.b64decode(self.pickled)))


def own_method(method: type[Method]) -> OwnMethod | None:
    """The method's class, ready to be sent to a cell's process; None for a built-in method.

    Raises:
        RequestError: if its source can't be found, or the class can't be pickled.
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
    except Exception as error:  # whatever pickling the class's attributes raises
        raise RequestError(
            f"{method.__name__} can't be sent to a cell's process: {error}; define it in a module "
            "of its own, which holds nothing but the method"
        ) from error
    path = [str(Path(folder).resolve()) for folder in sys.path]
    return OwnMethod(pickled=base64.b64encode(pickled).decode(), path=path)


def place_of(error: Exception, method: type[Method] | None) -> str:
    """Where a user's own method led to `error`: " (line 7 of Mine's file, in inject)", or "".

    The file has no name where the class was unpickled, as it is in a cell.
    """
    if method is None or is_built_in(method):
        return ""
    files = {f.__code__.co_filename for f in vars(method).values() if inspect.isfunction(f)}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    if not frames:
        return ""
    return f" (line {frames[-1].lineno} of {method.__name__}'s file, in {frames[-1].name})"


@contextlib.contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Inside, cloudpickle writes classes of `module` whole, as it always does those of a script."""
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

    None for a built-in method too: the record's commit or version identifies its source.
    """
    if is_built_in(method):
        return None
    name = method.__qualname__.partition(".")[0]
    for text in _source_texts(method):
        source = definitions(text, name)
        if source:
            return hashlib.sha256(source.encode()).hexdigest()
    return None


def _source_texts(method: type[Method]) -> Iterator[str]:
    """Texts that may define the class: its notebook, its module's file, its functions' files."""
    module = sys.modules.get(method.__module__)
    cells = getattr(module, "In", None)  # IPython's list of the cells that have run
    if isinstance(cells, list):
        yield notebook(cells)
    file = getattr(module, "__file__", None)
    functions = [value for value in vars(method).values() if inspect.isfunction(value)]
    for name in [*([file] if file else []), *(f.__code__.co_filename for f in functions)]:
        linecache.checkcache(name)  # else a file that has changed since is not read again
        yield "".join(linecache.getlines(name))


def notebook(cells: Sequence[str]) -> str:
    r"""The cells of a notebook as one text, which does not change when a cell is run again.

    A name that was defined again keeps its first place and gets its last definition.

    >>> print(notebook(["a = [1]", "a += [2]; b = 1", "a = [3]", "a += [4]", "b ="]))
    a = [3]
    b = 1
    a += [4]
    """
    current: list[tuple[ast.stmt, set[str]]] = []  # each with the names that it sets
    for statement in [statement for cell in cells for statement in _statements(cell)]:
        names, place = _bound_names(statement) | _mutated_names(statement), len(current)
        if names and names <= _redefined_names(statement):
            replaced = [i for i, (_, others) in enumerate(current) if others and others <= names]
            if replaced:
                place = replaced[0]
                current = [pair for i, pair in enumerate(current) if i not in replaced]
        current.insert(place, (statement, names))
    return "\n".join(ast.unparse(statement) for statement, _ in current)


def _statements(cell: str) -> Iterator[ast.stmt]:
    """The statements of a cell, one for each imported name: other cells may import some too."""
    with contextlib.suppress(SyntaxError):  # a cell that does not parse has not run
        for statement in ast.parse(cell).body:
            if isinstance(statement, ast.Import):
                yield from (ast.Import([name]) for name in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                module, level = statement.module, statement.level
                yield from (ast.ImportFrom(module, [name], level) for name in statement.names)
            else:
                yield statement


def _redefined_names(statement: ast.stmt) -> set[str]:
    """The names that a statement binds without reading their earlier values."""
    inputs: Sequence[ast.AST | None]  # evaluated when the statement runs
    match statement:
        case ast.Import() | ast.ImportFrom():
            inputs = []
        case ast.ClassDef():
            inputs = [*statement.decorator_list, *statement.bases, *statement.keywords]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            arguments = statement.args
            inputs = [*statement.decorator_list, *arguments.defaults, *arguments.kw_defaults]
        case ast.Assign() if all(isinstance(target, ast.Name) for target in statement.targets):
            inputs = [statement.value]
        case ast.AnnAssign() if isinstance(statement.target, ast.Name) and statement.value:
            inputs = [statement.value]
        case _:
            return set()
    nodes = (node for tree in inputs if tree is not None for node in ast.walk(tree))
    return _bound_names(statement) - {node.id for node in nodes if isinstance(node, ast.Name)}


def definitions(text: str, name: str) -> str:
    r"""The statements of a file that define `name` and all that it uses, in the file's order.

    >>> print(definitions("a = 1; b = a; c = 3\ndef f():\n    return b\nprint(f())", "f"))
    a = 1
    b = a
    def f():
        return b
    """
    statements = ast.parse(text).body
    definers: dict[str, list[int]] = {}  # by name, the statements that set it
    imported: set[str] = set()
    for index, statement in enumerate(statements):
        bound = _bound_names(statement)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imported |= bound
        # a call such as peftlab.compare(...) is the rest of the script, and defines nothing
        for bound_name in bound | (_mutated_names(statement) - imported):
            definers.setdefault(bound_name, []).append(index)
    used: set[int] = set()
    names = [name] if name in definers else []
    while names:
        for index in definers.get(names.pop(), []):
            if index not in used:
                used.add(index)
                names += _used_names(statements[index])
    return "\n".join(ast.unparse(statements[index]) for index in sorted(used))


def _bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement of a file defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and _is_assigned(node):
            names |= _root_name(node)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
    return names


def _is_assigned(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _mutated_names(statement: ast.stmt) -> set[str]:
    """The names whose value a statement may change by a call alone: CONFIG.update(...)."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            function = getattr(call.func, "id", None)  # None where a method is called
            names |= _root_name(call.args[0] if function in SETTERS and call.args else call.func)
    return names - vars(builtins).keys()  # a call of print(...) does not change `print`


def _root_name(node: ast.expr) -> set[str]:
    """The name at the start of an expression such as a.b[0].c, if there is one."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _used_names(statement: ast.stmt) -> set[str]:
    """The names of the file, or of Python itself, that a statement reads."""
    names = set()
    tables = [symtable.symtable(ast.unparse(statement), "", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        is_module = table.get_type() == "module"
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (is_module or symbol.is_global())
        }
    return names
