"""The columns of the table: its tasks, each with the scores of its baselines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.records.record import Record
from peftlab.records.rows import LOWER_IS_BETTER, TaskKey, task_label


@dataclasses.dataclass(frozen=True)
class Column:
    """One task. `training` holds the training fields that the task decides for all methods.

    `labels` are its classes' names; `baselines` the main metric that each cheap baseline reaches.
    """

    label: str
    task: str
    sha256: str  # of the examples
    kind: str
    metric: str
    lower_is_better: bool  # then the metric is in the label's unit, and no fraction
    source: str
    synthetic: bool
    n_train: int
    n_dev: int
    n_truncated: int | None
    labels: tuple[str, ...]
    baselines: dict[str, float | None]
    training: dict[str, Any]

    @property
    def key(self) -> TaskKey:
        return self.task, self.metric, self.sha256


def columns(
    tasks: Mapping[TaskKey, Sequence[Record]], task_fields: Mapping[str, Mapping[TaskKey, str]]
) -> dict[TaskKey, Column]:
    """A column a task; `task_fields` are the training fields that tasks decide (`rows.by_task`)."""
    columns_by_task = {}
    for key, members in tasks.items():
        task = members[0].task
        truncated = (member.task.n_truncated for member in members)
        columns_by_task[key] = Column(
            label=task_label(key, tasks),
            task=task.name,
            sha256=task.sha256,
            kind=task.kind,
            metric=task.main_metric,
            lower_is_better=task.main_metric in LOWER_IS_BETTER,
            source=task.source,
            synthetic=task.source.startswith("synthetic"),
            n_train=task.n_train,
            n_dev=task.n_dev,
            n_truncated=next((n for n in truncated if n is not None), None),
            labels=next((tuple(m.task.labels) for m in members if m.task.labels), ()),
            baselines=_baselines(members, task.main_metric),
            training={
                field.removeprefix("training."): json.loads(task_fields[field].get(key, "null"))
                for field in sorted(task_fields)
            },
        )
    return columns_by_task


def _baselines(members: Sequence[Record], metric: str) -> dict[str, float | None]:
    """The main metric of each baseline, from the latest record that has it."""
    latest = {name: scores for member in members for name, scores in member.task.baselines.items()}
    return {name: finite(scores.get(metric)) for name, scores in latest.items()}


def finite(value: float | None) -> float | None:
    """The value, or None where it is no number: the correlation with a constant is NaN."""
    return value if value is not None and math.isfinite(value) else None
