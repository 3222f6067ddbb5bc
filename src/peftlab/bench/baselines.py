"""Baselines of the tasks that are about to run, computed once each by the process that asks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from peftlab.bench.cell import Cell
from peftlab.bench.observer import Observer
from peftlab.tasks import Task, baselines

SILENT_S = 2.0  # a wait longer than this is explained


def with_baselines(
    cells: Sequence[Cell], tasks: Mapping[str, Task], progress: Observer
) -> list[Cell]:
    """The cells with their task's baselines, which are no part of what a cell is."""
    names = dict.fromkeys(cell.task.name for cell in cells)
    found = {name: _computed(tasks[name], progress) for name in names}
    return [
        cell.model_copy(
            update={"task": cell.task.model_copy(update={"baselines": found[cell.task.name]})}
        )
        for cell in cells
    ]


def _computed(task: Task, progress: Observer) -> dict[str, dict[str, float]]:
    waiting = threading.Timer(
        SILENT_S, progress.note, [f"task {task.name}: computing its baselines"]
    )
    waiting.start()
    try:
        found = baselines(task)
    finally:
        waiting.cancel()
    main = task.main_metric
    scores = [f"{name} {by_metric[main]:.3f}" for name, by_metric in found.scores.items()]
    progress.note(f"task {task.name}: {main} of baselines: {', '.join(scores)}")
    for note in found.notes:
        progress.note(f"task {task.name}: {note}")
    return found.scores
