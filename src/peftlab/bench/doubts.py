"""What a score hides: predictions that are all the same, a class that never comes, a collapse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftlab.records.rows import COLLAPSED, merit
from peftlab.tasks import Task

NAMED = 5  # classes, before the rest are counted
LEAST = 0.01  # of the labels' standard deviation: predictions that differ less are one
SAME = "every prediction is"  # how these doubts begin, or are
NO_BETTER = f"{COLLAPSED}: no better than always giving one answer"


def doubts(
    task: Task,
    predictions: Sequence[float],
    scores: dict[str, float],
) -> list[str]:
    """What a reader of `scores` must know, in words; nothing for a run that learnt.

    Args:
        task: with its labels.
        predictions: one an example of dev: indices of classes, or numbers.
        scores: theirs, by metric.
    """
    found = []
    if _same(task, predictions):
        what = f"{task.labels[int(predictions[0])]!r}" if task.labels else "the same"
        found.append(f"{SAME} {what}")
    elif never := _never_predicted(task, predictions):
        more = f" and {len(never) - NAMED} more" if len(never) > NAMED else ""
        found.append(f"never predicts {', '.join(map(repr, never[:NAMED]))}{more}")
    if _collapsed(task, predictions, scores):
        found.append(NO_BETTER)
    return found


def _same(task: Task, predictions: Sequence[float]) -> bool:
    if task.kind == "classes":
        return len(set(predictions)) == 1
    return bool(np.std(predictions) <= LEAST * np.std(task.train.labels))


def _never_predicted(task: Task, predictions: Sequence[float]) -> list[str]:
    """The classes that occur in dev and never among the answers to it."""
    if task.kind == "regression":
        return []
    missing = set(task.dev.labels) - set(predictions)
    return [name for index, name in enumerate(task.labels) if index in missing]


def _collapsed(task: Task, predictions: Sequence[float], scores: dict[str, float]) -> bool:
    main = task.main_metric
    constant = task.score([task.constant(main)] * len(task.dev))
    is_one_class = task.kind == "classes" and _same(task, predictions)
    return is_one_class or merit(main, scores[main]) <= merit(main, constant[main])
