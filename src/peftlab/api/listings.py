"""Rows of text that list the methods, the tasks, the models and the state of this machine."""

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
from peftlab.machine import default_threads, processor
from peftlab.methods import METHODS, Method, inject, make
from peftlab.models import ARCHITECTURES, PACKAGED, linear_names
from peftlab.network import hub_problem
from peftlab.records.record import Trainable
from peftlab.tasks import listing
from peftlab.training import KERNELS

ListedRow = tuple[str, ...]
METHODS_HEAD = ("method", "trains", "adapter", "head", "paper")


def methods() -> list[ListedRow]:
    """The rows under `METHODS_HEAD`; adapter and head are trained parameters on RoBERTa-base."""
    return [
        (name, method.summary, *_trained_counts(method), method.paper)
        for name, method in METHODS.items()
    ]


def _trained_counts(method: type[Method]) -> tuple[str, str]:
    """The trained parameters of the adapter and of the head, as text."""
    try:
        counts = trained_on_roberta(method())
    except RequestError:  # a user's own method, which needs a setting or is for other models
        return "-", "-"
    return f"{counts.adapter:,}", f"{counts.head:,}"


def method_settings(name: str) -> list[ListedRow]:
    """A row for each setting and learning rate of a method: its name and its default.

    Raises:
        RequestError: for an unknown name.
    """
    method = make(name)
    rates = {"lr": method.default_lr, "head_lr": method.default_head_lr}
    return [(key, format_setting(value)) for key, value in (method.settings | rates).items()]


def format_setting(value: Any) -> str:
    """A setting's value as a user writes it.

    >>> [format_setting(value) for value in (16.0, None, False, "query,value")]
    ['16', 'none', 'false', 'query,value']
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def trained_on_roberta(method: Method) -> Trainable:
    """The parameters that `method` trains on RoBERTa-base with two labels, counted without weights.

    LoRA-drop's are those of its first stage, since data decides how many layers share a pair.
    """
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    if method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "fp32")
    return count(inject(model, method))


def tasks(data_dir: Path | None) -> list[ListedRow]:
    """Rows of name, question, metrics with the main one first, and whether the data is here."""
    return [
        (
            task.name,
            task.summary,
            ", ".join(task.metrics),
            "yes" if task.is_here(data_dir) else "no",
        )
        for task in listing()
    ]


def models() -> list[ListedRow]:
    """Rows of what can be given as a model, what it needs, and whether that is here."""
    problem = hub_problem()
    packaged = [
        (name, model.about, "here" if model.is_here() else f"not here: {model.remedy}")
        for name, model in PACKAGED.items()
    ]
    return [
        *packaged,
        ("a folder", "config.json, model.safetensors (or its shards), a tokenizer", "yours"),
        (
            "a hub name",
            "the hub, or a cached copy",
            f"not reached: {problem}" if problem else "reached",
        ),
    ]


def architectures() -> str:
    """The names of the architectures whose layers have logical names."""
    return ", ".join(sorted(ARCHITECTURES))


def machine(out: Path) -> list[ListedRow]:
    """Rows of what a run depends on: its name, the finding, and what it means."""
    checks: list[Callable[[], ListedRow]] = [_python, _torch, _device, _precision, _kernels]
    return [*(check() for check in checks), *_packaged_models(), _hub(), _disk(out)]


def _python() -> ListedRow:
    return ("python", platform.python_version(), processor())


def _torch() -> ListedRow:
    transformers = metadata.version("transformers")
    meaning = f"{default_threads()} threads; transformers {transformers}"
    return ("torch", torch.__version__, meaning)


def _device() -> ListedRow:
    device = resolve_device()
    return ("device", device.value, device.reason)


def _precision() -> ListedRow:
    precision, reason = resolve_precision("auto", resolve_device().value)
    meaning = "the base is held in it" if precision.base == "bf16" else "bf16 would be slow here"
    return ("precision", precision.base, f"{reason}: {meaning}")


def _kernels() -> ListedRow:
    states = (f"{kernel.name} {kernel.describe()}" for kernel in KERNELS)
    return ("kernels", compiler() or "none", "; ".join(states))


def _packaged_models() -> list[ListedRow]:
    return [
        (name, "here", "") if model.is_here() else (name, "not here", model.remedy)
        for name, model in PACKAGED.items()
    ]


def _hub() -> ListedRow:
    problem = hub_problem()
    if problem is None:
        return ("hub", "reached", "")
    consequence = "built-in tasks, the models above, folders and files still work"
    return ("hub", "not reached", f"{problem}; {consequence}")


def _disk(out: Path) -> ListedRow:
    folders = (out, *out.resolve().parents)
    existing = next((folder for folder in folders if folder.exists()), None)
    if existing is None:
        return ("disk", "none", f"there is no {out.resolve().anchor}")
    return ("disk", f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB free", f"at {existing}")
