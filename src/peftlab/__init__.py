"""peftlab: train, measure and compare parameter-efficient fine-tuning methods.

>>> import peftlab
>>> peftlab.LoRA(rank=4).settings["alpha"]
16.0
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors: the names in _HOMES
    from peftlab.adapters import load as load
    from peftlab.adapters import merge as merge
    from peftlab.adapters import save as save
    from peftlab.adapters import unmerge as unmerge
    from peftlab.api.compare import compare as compare
    from peftlab.api.export import export as export
    from peftlab.api.fit import fit as fit
    from peftlab.api.inference import evaluate as evaluate
    from peftlab.api.inference import predict as predict
    from peftlab.api.plan import plan as plan
    from peftlab.api.push import push as push
    from peftlab.api.reproduce import reproduce as reproduce
    from peftlab.api.results import load_records as load_records
    from peftlab.api.results import show as show
    from peftlab.api.train import train as train
    from peftlab.api.verdicts import verdicts as verdicts
    from peftlab.errors import RequestError as RequestError
    from peftlab.methods import Method as Method
    from peftlab.methods import inject as inject
    from peftlab.methods import register as register
    from peftlab.models import load_model as load_model
    from peftlab.records.record import Record as Record
    from peftlab.tasks import Examples as Examples
    from peftlab.tasks import Task as Task
    from peftlab.tasks import make_task as make_task
    from peftlab.training import Diverged as Diverged
    from peftlab.training import Untrained as Untrained

__version__ = "0.1.0"

# the module of each public name, imported at first use so that `import peftlab` stays quick
_HOMES = {
    "Diverged": "peftlab.training",
    "Examples": "peftlab.tasks",
    "Method": "peftlab.methods",
    "Record": "peftlab.records.record",
    "RequestError": "peftlab.errors",
    "Task": "peftlab.tasks",
    "Untrained": "peftlab.training",
    "compare": "peftlab.api.compare",
    "evaluate": "peftlab.api.inference",
    "export": "peftlab.api.export",
    "fit": "peftlab.api.fit",
    "inject": "peftlab.methods",
    "load": "peftlab.adapters",
    "load_model": "peftlab.models",
    "load_records": "peftlab.api.results",
    "make_task": "peftlab.tasks",
    "merge": "peftlab.adapters",
    "plan": "peftlab.api.plan",
    "predict": "peftlab.api.inference",
    "push": "peftlab.api.push",
    "register": "peftlab.methods",
    "reproduce": "peftlab.api.reproduce",
    "save": "peftlab.adapters",
    "show": "peftlab.api.results",
    "train": "peftlab.api.train",
    "unmerge": "peftlab.adapters",
    "verdicts": "peftlab.api.verdicts",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    # the class of a method, such as LoRA: a new file in methods/ adds its name here
    if name[:1].isupper():
        methods = importlib.import_module("peftlab.methods")
        if name in methods.__all__:
            return getattr(methods, name)
    raise AttributeError(f"module 'peftlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(
        {*(name for name in globals() if name.startswith("__")), *__all__, *_method_classes()}
    )


def _method_classes() -> list[str]:
    """The names of the methods' classes, parsed from their files: to import them imports torch."""
    files = Path(__file__).with_name("methods").glob("*.py")
    return [
        node.name
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(decorator) == "register" for decorator in node.decorator_list)
    ]
