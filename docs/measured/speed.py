"""LoRA's speed and memory beside HF PEFT with Trainer, from benchmarks/results.

README has the measurements of today's engine, docs/engine.md those of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plan
from ratios import (
    LEARNS,
    Line,
    best_first,
    groups_of_a_sample,
    labelled,
    least_of_peer,
    median,
    paired,
)

from measured.text import markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# one for each kind of processor, and one of a host that gave it a third of its speed
FILES = ("amd", "avx2", "avx512", "amx", "amx-slow")
PACKED = "2026-11-27"  # since then the engine packs batches
MEMORY = "peak_mib"  # of the process that trains
TASKS = {"cola": "CoLA", "mrpc": "MRPC"}


def speed_table() -> str:
    """Every setting on every kind of processor, with our speed over theirs in parentheses."""
    return _table(lambda date: date >= PACKED)


def older_table() -> str:
    """The same for the engine that padded its batches."""
    return _table(lambda date: date < PACKED)


def _table(is_shown: Callable[[str], bool]) -> str:
    columns = ["model", "task", "processor", "peftlab", "fastest", "fastest not shown to lose"]
    columns += ["as installed", "HF PEFT's settings tried", "memory, MiB", "measured"]
    return markdown(columns, (row for row in _rows() if is_shown(row[-1])))


def _rows() -> Iterator[list[str]]:
    for name in FILES:
        file = RESULTS / f"{name}.json"
        sections = json.loads(file.read_text(encoding="utf-8"))["sections"]
        for setting in plan.LORA:
            if setting.name in sections:
                yield _row(setting, sections[setting.name])


def _row(setting: plan.Setting, section: dict[str, Any]) -> list[str]:
    lines = best_first(section["runs"])
    ours = labelled(lines, "ours")
    least = least_of_peer(lines, MEMORY, ours[0]["settings"]["examples"])
    speed, memory = median(ours, "examples_per_s"), median(ours, MEMORY)
    assert least is not None and speed is not None and memory is not None
    return [
        f"`{setting.model}`",
        TASKS[setting.task],
        _processor(section["machine"]),
        f"{speed:.0f}",
        *(_theirs(lines, label) for label in ("best", LEARNS, "defaults")),
        str(len(labelled(lines, "screen"))),
        f"{memory:,.0f} / {least[0]:,.0f} ({memory / least[0]:.2f})",
        section["machine"]["date"][:10],
    ]


def _theirs(lines: list[Line], label: str) -> str:
    speed = median(labelled(lines, label), "examples_per_s")
    ratio = paired(lines, "ours", label, "examples_per_s")
    mark = "†" if any(map(groups_of_a_sample, labelled(lines, label))) else ""
    return "–" if ratio is None else f"{speed:.0f} ({ratio.median:.2f} ×){mark}"


def _processor(machine: dict[str, Any]) -> str:
    """The processor's name, and its widest instruction set: Intel Xeon, avx512f."""
    name = machine["processor"].replace("(R)", "").removesuffix(" Processor")
    return f"{name}, {machine['flags'][0]}"
