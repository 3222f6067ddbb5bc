"""Methods: what is trained and how. One file a method; adding a file here adds the method.

METHODS["lora"]             the class, by the name on the command line
inject(model, LoRA())       make a loaded model trainable by a method
"""

import importlib
import pkgutil

from peftlab.methods.base import (
    STRICT,
    ManyRanks,
    Method,
    NeedsDevice,
    Prepared,
    adapt,
    train_head_only,
)
from peftlab.methods.inject import inject, injected
from peftlab.methods.peft import InPeft
from peftlab.methods.registry import (
    METHODS,
    is_built_in,
    load_installed,
    load_plugin,
    make,
    parse_method,
    parse_methods,
    parse_value,
    register,
    resolve_method,
)

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)

# baselines first, then as the papers appeared: tables and `all` follow this order
_ordered = sorted(METHODS.items(), key=lambda item: (item[1].paper != "baseline", item[1].paper))
METHODS.clear()
METHODS.update(_ordered)

# every method's class is a name of this package: peftlab.methods.LoRA
globals().update({method.__name__: method for method in METHODS.values()})

__all__ = [
    "METHODS",
    "STRICT",
    "InPeft",
    "ManyRanks",
    "Method",
    "NeedsDevice",
    "Prepared",
    "adapt",
    "inject",
    "injected",
    "is_built_in",
    "load_plugin",
    "make",
    "parse_method",
    "parse_methods",
    "parse_value",
    "register",
    "resolve_method",
    "train_head_only",
    *(method.__name__ for method in METHODS.values()),
]

load_installed()
