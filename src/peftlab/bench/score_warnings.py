"""What a score hides: predictions that are all the same, a class that never comes, a collapse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftlab.naming import few
from peftlab.records.rows import COLLAPSED, LOWER_IS_BETTER, merit
from peftlab.tasks import Task

# as shares of the labels' standard deviation: predictions that vary less are one answer (ROUNDING),
# or nearly one (LEAST)
ROUNDING, LEAST = 1e-6, 0.01
SAME, NEARLY = "every prediction is", "predictions hardly differ"  # how these warnings begin
NO_BETTER = f"{COLLAPSED}: no better than always giving one answer"


def score_warnings(
    task: Task,
    predictions: Sequence[float],
    scores: dict[str, float],
) -> list[str]:
    """Warnings that belong beside `scores`; empty for a run that learnt.

    Args:
        task: the task, with its labels.
        predictions: one an example of dev: indices of classes, or numbers.
        scores: the scores of the predictions, by metric.
    """
    warnings = []
    spread = _spread(task, predictions)
    if spread <= ROUNDING:
        answer = f"{task.labels[int(predictions[0])]!r}" if task.labels else "the same"
        warnings.append(f"{SAME} {answer}")
    elif spread <= LEAST:
        share = f"{100 * spread:.2g} %"
        warnings.append(f"{NEARLY}: their standard deviation is {share} of the labels'")
    elif missing := _never_predicted(task, predictions):
        warnings.append(f"never predicts {few([repr(name) for name in missing])}")
    main = task.main_metric
    constant = task.score([task.constant(main)] * len(task.dev))
    if is_collapsed(task.kind, main, warnings, scores[main], constant[main]):
        warnings.append(NO_BETTER)
    return warnings


def is_collapsed(
    kind: str, metric: str, warnings: Sequence[str], score: float, constant: float
) -> bool:
    """Whether a run is no better than giving every example the same answer.

    `warnings` are those of `score_warnings` so far. A run that predicts a single class has
    collapsed whatever it scores; so has one whose numbers hardly differ, except under a
    correlation, which sees their order. An error can't tell: some constant may fit dev better than
    the mean of train does. Any other run has collapsed if it scores no better than `constant`, the
    score of the constant baseline.
    """
    sees_order = kind == "regression" and metric not in LOWER_IS_BETTER
    is_constant = any(warning.startswith((SAME, NEARLY)) for warning in warnings)
    return (is_constant and not sees_order) or merit(metric, score) <= merit(metric, constant)


def _spread(task: Task, predictions: Sequence[float]) -> float:
    """How much predictions vary: predicted classes minus one, or sd(predictions) / sd(labels)."""
    if task.kind == "classes":
        return len(set(predictions)) - 1
    return float(np.std(predictions) / np.std(task.train.labels))


def _never_predicted(task: Task, predictions: Sequence[float]) -> list[str]:
    """The classes that occur in dev and never among the answers to it."""
    if task.kind == "regression":
        return []
    missing = set(task.dev.labels) - set(predictions)
    return [name for index, name in enumerate(task.labels) if index in missing]
