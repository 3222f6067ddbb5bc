"""What there is and whether it is here: methods, tasks, models, this machine. Rows of text."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from peftlab.bench.process import count
from peftlab.errors import RequestError
from peftlab.layers import quantise_linears, resolve_device, resolve_precision
from peftlab.layers.native import compiler
from peftlab.machine import processor
from peftlab.methods import METHODS, Method, inject, make
from peftlab.models import ARCHITECTURES, PACKAGED, linear_names
from peftlab.network import hub_problem
from peftlab.records.record import Trainable
from peftlab.tasks import listing
from peftlab.training import kernels

Row = tuple[str, ...]
WITHOUT = {  # what is slower without a file of kernels
    "sentences.cpp": "batches are padded",
    "dropout.cpp": "dropout, residual sum and LayerNorm are three passes",
    "rows.cpp": "torch quantises rows for int8",
}
METHODS_HEAD = ("method", "trains", "adapter", "head", "paper")


def methods() -> list[Row]:
    """The rows under `METHODS_HEAD`; adapter and head are trained parameters on RoBERTa-base."""
    return [
        (name, method.summary, *_numbers(method), method.paper) for name, method in METHODS.items()
    ]


def _numbers(method: type[Method]) -> tuple[str, str]:
    try:
        trained = trained_on_roberta(method())
    except RequestError:  # a user's own, which asks for a setting or is for other models
        return "-", "-"
    return f"{trained.adapter:,}", f"{trained.head:,}"


def method_settings(name: str) -> list[Row]:
    """A method's settings and learning rates, and their defaults.

    Raises:
        RequestError: for an unknown name.
    """
    method = make(name)
    rates = {"lr": method.default_lr, "head_lr": method.default_head_lr}
    return [(key, shown(value)) for key, value in (method.settings | rates).items()]


def shown(value: Any) -> str:
    """A setting's value as a user writes it.

    >>> shown(16.0), shown(None), shown(False), shown("query,value")
    ('16', 'none', 'false', 'query,value')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def trained_on_roberta(method: Method) -> Trainable:
    """What `method` trains of RoBERTa-base with two labels, counted on its structure.

    LoRA-drop's are those of its first stage: how many layers share a pair is decided by data.
    """
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    if method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "fp32")
    return count(inject(model, method))


def tasks(data_dir: Path | None) -> list[Row]:
    """Name, question, metrics with the main one first, and whether its data is here."""
    return [
        (
            task.name,
            task.summary,
            ", ".join(task.metrics),
            "yes" if task.is_here(data_dir) else "no",
        )
        for task in listing()
    ]


def models() -> list[Row]:
    """What can be given as a model, what it needs, and whether that is here."""
    hub = hub_problem()
    carried = [
        (name, model.about, "here" if model.is_here() else f"not here: {model.remedy}")
        for name, model in PACKAGED.items()
    ]
    return [
        *carried,
        ("a folder", "config.json, model.safetensors (or its shards), a tokenizer", "yours"),
        ("a hub name", "the hub, or a cached copy", f"not reached: {hub}" if hub else "reached"),
    ]


def architectures() -> str:
    """The architectures whose layers have logical names."""
    return ", ".join(sorted(ARCHITECTURES))


def machine(out: Path) -> list[Row]:
    """What a run depends on: a name, the finding, and what it means."""
    checks: list[Callable[[], Row]] = [_python, _torch, _device, _precision, _kernels]
    return [*(check() for check in checks), *_packaged(), _hub(), _disk(out)]


def _python() -> Row:
    return ("python", platform.python_version(), processor())


def _torch() -> Row:
    threads = f"{torch.get_num_threads()} threads"
    return (
        "torch",
        torch.__version__,
        f"{threads}; transformers {metadata.version('transformers')}",
    )


def _device() -> Row:
    device = resolve_device()
    return ("device", device.value, device.reason)


def _precision() -> Row:
    precision, why = resolve_precision("auto", resolve_device().value)
    meaning = "the base is held in it" if precision.base == "bf16" else "bf16 would be slow here"
    return ("precision", precision.base, f"{why}: {meaning}")


def _kernels() -> Row:
    told = (
        f"{name} {standing}" + (f", so {WITHOUT[name]}" if standing.startswith("not") else "")
        for name, standing in kernels().items()
    )
    return ("kernels", compiler() or "none", "; ".join(told))


def _packaged() -> list[Row]:
    return [
        (name, "here", "") if model.is_here() else (name, "not here", model.remedy)
        for name, model in PACKAGED.items()
    ]


def _hub() -> Row:
    why = hub_problem()
    if why is None:
        return ("hub", "reached", "")
    works = "built-in tasks, the models above, folders and files still work"
    return ("hub", "not reached", f"{why}; {works}")


def _disk(out: Path) -> Row:
    places = (out, *out.resolve().parents)
    place = next((folder for folder in places if folder.exists()), None)
    if place is None:
        return ("disk", "none", f"there is no {out.resolve().anchor}")
    return ("disk", f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free", f"at {place}")
