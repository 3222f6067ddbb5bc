"""Plans as tests write them: the settings of a training and the rest in one list of names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftlab.settings import Resolved
from peftlab.training import Plan

SHORT = Resolved(lr=1e-3, head_lr=1e-3, epochs=1, max_length=32, device="cpu", threads=1)


def plan(**fields: Any) -> Plan:
    """A plan with these fields and settings."""
    return changed(Plan(settings=SHORT, kind="classes", seed=0), **fields)


def changed(given: Plan, **fields: Any) -> Plan:
    """The plan with other fields and settings, settings unchecked as `replace` leaves fields."""
    settings = {name: fields.pop(name) for name in Resolved.model_fields if name in fields}
    return replace(given, settings=given.settings.model_copy(update=settings), **fields)
