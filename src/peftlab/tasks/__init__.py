"""Tasks: built-in synthetic ones, GLUE, a user's own file or table, and any data set of the hub.

Adding a built-in task is adding one file to builtin/ that defines `TASK = BuiltIn(...)`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pkgutil
from pathlib import Path

from peftlab.errors import RequestError, unknown
from peftlab.labels import AnyKind
from peftlab.tasks import builtin, files, glue, hub
from peftlab.tasks.base import BuiltIn, Examples, Task
from peftlab.tasks.baseline import Baselines, baselines
from peftlab.tasks.files import NoColumn, Sheet, answer_file, check_out, read_sheet
from peftlab.tasks.glue import GLUE, Glue
from peftlab.tasks.hub import is_on_hub
from peftlab.tasks.split import carve, draws, group_indices
from peftlab.tasks.table import make_task

__all__ = [
    "Baselines",
    "Examples",
    "NoColumn",
    "Sheet",
    "Task",
    "answer_file",
    "baselines",
    "built_in",
    "carve",
    "check_out",
    "draws",
    "group_indices",
    "is_on_hub",
    "listing",
    "load",
    "load_file",
    "make_task",
    "names",
    "read_sheet",
]


@functools.cache
def built_in() -> dict[str, BuiltIn]:
    """The built-in tasks by name: the `TASK` of every module in builtin/ that has one."""
    tasks = {}
    for module in pkgutil.iter_modules(builtin.__path__):
        task = getattr(importlib.import_module(f"{builtin.__name__}.{module.name}"), "TASK", None)
        if isinstance(task, BuiltIn):
            tasks[task.name] = task
    return tasks


def names() -> list[str]:
    """The names that `load` accepts, the built-in tasks first."""
    return [*built_in(), *GLUE]


def load(name: str, data_dir: Path | None = None) -> Task:
    """Load a built-in task, or one of GLUE from its files or else from the hub.

    Args:
        name: one of `names()`.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR if not given.

    Raises:
        RequestError: no task has this name, or its data can't be loaded (see `glue.load`).
    """
    if name in GLUE:
        return glue.load(name, data_dir or _data_dir_from_environment())
    if name in built_in():
        return built_in()[name].load()
    raise unknown("task", name, names(), "A file of your own is given with --data.")


def _data_dir_from_environment() -> Path | None:
    """The folder that PEFTLAB_DATA_DIR names; None if it is not set."""
    folder = os.environ.get("PEFTLAB_DATA_DIR")
    return Path(folder) if folder else None


def load_file(
    path: Path,
    text: list[str],
    label: str,
    dev: Path | None = None,
    kind: AnyKind = "auto",
) -> Task:
    """Make a task from a user's own file, or from the data set that `path` names as hub:OWNER/NAME.

    See `files.load` and `hub.load`. A task whose name is taken by one of `names()` gets the suffix
    -file or -hub.

    Raises:
        RequestError: the file or data set, a column or a row is not as it must be; or `dev` is
            given beside a data set, which has its own.
    """
    path = Path(path)
    if not is_on_hub(path):
        task, origin = files.load(path, text, label, Path(dev) if dev else None, kind), "file"
    elif dev is None:
        task, origin = hub.load(path, text, label, kind), "hub"
    else:
        raise RequestError(
            f"--dev goes with a file; {path} is judged on its split validation, or on a fifth of "
            "train if it has none."
        )
    return dataclasses.replace(task, name=f"{task.name}-{origin}") if task.name in names() else task


def listing() -> list[BuiltIn | Glue]:
    """What is known of each task before its data is loaded, in the order of `names()`."""
    return [*built_in().values(), *GLUE.values()]
