"""Methods from outside: a user's script, and installed packages that say they bring some.

    peftlab compare --plugin scaled.py --methods lora,scaled
    [project.entry-points."peftlab.methods"]        in the pyproject.toml of a package
    scaled = "my_package.scaled"

Either is imported, and its classes make themselves known by `@peftlab.register`.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

from peftlab.errors import RequestError, system_refusals
from peftlab.methods.registry import METHODS

GROUP = "peftlab.methods"


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
