"""peftlab: train, measure and compare parameter-efficient fine-tuning methods.

>>> import peftlab
>>> peftlab.LoRA(rank=4).settings["alpha"]
16.0
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# where each public name lives; imported when first used, so that `import peftlab` stays quick
_HOMES = {
    "RequestError": "peftlab.errors",
    "Task": "peftlab.tasks",
    "compare": "peftlab.bench.compare",
    "evaluate": "peftlab.bench.single",
    "inject": "peftlab.methods",
    "load": "peftlab.adapters",
    "load_model": "peftlab.models",
    "merge": "peftlab.adapters",
    "predict": "peftlab.bench.single",
    "save": "peftlab.adapters",
    "train": "peftlab.bench.single",
    "unmerge": "peftlab.adapters",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    # a method's class, such as LoRA: adding a method's file adds its name here
    if name[:1].isupper():
        methods = importlib.import_module("peftlab.methods")
        if name in methods.__all__:
            return getattr(methods, name)
    raise AttributeError(f"module 'peftlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
