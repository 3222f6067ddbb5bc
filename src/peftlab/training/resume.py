"""A run in progress as a checkpoint keeps it: taken from one run, put into a new one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.training.checkpoint import Checkpoint, State
from peftlab.training.meters import MemoryMeter

if TYPE_CHECKING:
    from peftlab.training.loop import Fitted, Loop


def snapshot(loop: Loop, fitted: Fitted, answers: list[Tensor], memory: MemoryMeter) -> State:
    """The state of the run; `answers` are the outputs for dev, (n_dev, num_labels) an epoch."""
    return {
        "loop": loop.state_dict(),
        "curve": _columns([row for row in fitted.curve if "step" in row]),
        "eval_s": fitted.eval_s,
        "stops": fitted.stops,
        "answers": answers,
        "peaks": memory.peaks(),
    }


def restore(
    checkpoint: Checkpoint, loop: Loop, fitted: Fitted, answers: list[Tensor], memory: MemoryMeter
) -> bool:
    """Put everything back as `snapshot` found it; whether there was anything to put back.

    What can't be put back is deleted, and the next command begins anew.
    """
    state = checkpoint.read()
    if state is None:
        return False
    try:
        loop.load_state_dict(state["loop"])
        answers += state["answers"]
        fitted.curve, fitted.eval_s = _curve(state["curve"], len(answers)), state["eval_s"]
        fitted.stops = [*state["stops"], loop.index]
        fitted.earlier_s = loop.elapsed_s + fitted.eval_s
        peaks = state["peaks"]
    except Exception:
        checkpoint.forget()
        raise
    del state  # the copies of what trains, as large as the model in full fine-tuning
    memory.go_on(peaks)
    return True


def _columns(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Steps' rows by column, (steps,) each: as JSON they took 24 MiB of 34,000 (LOG.md)."""
    values = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: torch.tensor([math.nan if v is None else v for v in column], dtype=torch.float64)
        for name, column in values.items()
    }


def _curve(columns: dict[str, Tensor], n_epochs: int) -> list[dict[str, Any]]:
    """The rows of the columns, and one behind each of the epochs that dev was answered after."""
    curve: list[dict[str, Any]] = []
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        row = dict(zip(columns, values, strict=True))
        memory = row["memory_mib"]
        whole = {"step": int(row["step"]), "memory_mib": None if math.isnan(memory) else memory}
        curve.append(row | whole)
        if row["epoch"].is_integer() and row["epoch"] <= n_epochs:
            curve.append({"epoch": int(row["epoch"])})
    return curve
