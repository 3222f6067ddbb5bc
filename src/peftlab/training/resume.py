"""The state of a run in progress: taken for a checkpoint, and put into a new run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.training.checkpoint import Checkpoint, State
from peftlab.training.meters import MemoryMeter

if TYPE_CHECKING:
    from peftlab.training.loop import FitResult, Loop


def snapshot(
    loop: Loop, fitted: FitResult, dev_outputs: list[Tensor], memory: MemoryMeter
) -> State:
    """The run's state; `dev_outputs` holds the outputs for dev, (n_dev, num_labels) an epoch."""
    return {
        "loop": loop.state_dict(),
        "curve": _columns([row for row in fitted.curve if "step" in row]),
        "eval_s": fitted.eval_s,
        "stops": fitted.stops,
        "answers": dev_outputs,
        "peaks": memory.peaks(),
    }


def restore(
    checkpoint: Checkpoint,
    loop: Loop,
    fitted: FitResult,
    dev_outputs: list[Tensor],
    memory: MemoryMeter,
) -> bool:
    """Put back the state that `snapshot` took; returns whether there was one.

    A state that can't be put back is deleted, so that the next command starts from the beginning.
    """
    state = checkpoint.read()
    if state is None:
        return False
    try:
        loop.load_state_dict(state["loop"])
        dev_outputs += state["answers"]
        fitted.curve, fitted.eval_s = _curve(state["curve"], len(dev_outputs)), state["eval_s"]
        fitted.stops = [*state["stops"], loop.index]
        fitted.earlier_s = loop.elapsed_s + fitted.eval_s
        peaks = state["peaks"]
    except Exception:
        checkpoint.delete()
        raise
    del state  # copies of the trainable tensors: in full fine-tuning as large as the model
    memory.resume_from(peaks)
    return True


def _columns(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The steps' rows as columns, (steps,) each: 34,000 rows as JSON took 24 MiB (LOG.md)."""
    values = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: torch.tensor([math.nan if v is None else v for v in column], dtype=torch.float64)
        for name, column in values.items()
    }


def _curve(columns: dict[str, Tensor], n_epochs: int) -> list[dict[str, Any]]:
    """The rows of the columns, with an epoch's row after each of the `n_epochs` evaluated ones."""
    curve: list[dict[str, Any]] = []
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        row = dict(zip(columns, values, strict=True))
        memory = row["memory_mib"]
        typed = {"step": int(row["step"]), "memory_mib": None if math.isnan(memory) else memory}
        curve.append(row | typed)
        if row["epoch"].is_integer() and row["epoch"] <= n_epochs:
            curve.append({"epoch": int(row["epoch"])})
    return curve
