"""Plans as tests write them: a training's settings and a plan's own fields as keywords alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftlab.settings import Resolved
from peftlab.training import TrainingPlan

SHORT = Resolved(lr=1e-3, head_lr=1e-3, epochs=1, max_length=32, device="cpu", threads=1)


def plan(**fields: Any) -> TrainingPlan:
    """A plan with these fields and settings."""
    return changed(TrainingPlan(settings=SHORT, kind="classes", seed=0), **fields)


def changed(plan: TrainingPlan, **fields: Any) -> TrainingPlan:
    """The plan with these fields and settings changed; neither is validated."""
    settings = {name: fields.pop(name) for name in Resolved.model_fields if name in fields}
    return replace(plan, settings=plan.settings.model_copy(update=settings), **fields)
