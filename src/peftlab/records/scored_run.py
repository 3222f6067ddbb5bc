"""The score of a run by its task's main metric, and the influence of each dev text on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from peftlab.records.influence import METRICS, Array, grain, influences
from peftlab.records.predictions import read
from peftlab.records.record import Record
from peftlab.records.store import Store

TOLERANCE = 1e-6  # predictions that give a score further from the record's are of another run


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """The score of a run by its task's main metric.

    Attributes:
        score: on all dev examples, after the last epoch.
        influence: of each draw of dev on the score, (m,); None where there are no predictions, or
            those of another run.
        grain: by how much another answer to one text changes the score; 0 for a regression.
    """

    score: float
    influence: Array | None
    grain: float = 0.0


def scored_run(record: Record, folders: Iterable[Path]) -> ScoredRun | None:
    """The run, with predictions of the first of `folders` that has some; None without a score."""
    metric = record.task.main_metric
    score = (record.score or {}).get(metric)
    if score is None or not math.isfinite(score):
        return None
    files = (Store(folder).predictions(record.cell) for folder in folders)
    file = next((path for path in files if path.is_file()), None)
    answers = read(file, record.task.n_dev) if file and metric in METRICS else []
    if not answers:
        return ScoredRun(score, None)
    labels, predictions, texts, draws = np.array(answers, dtype=np.float64).T
    n_classes = len(record.task.labels)
    predicted_score, u = influences(metric, labels, predictions, n_classes)
    if not math.isclose(float(predicted_score), score, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return ScoredRun(score, None)
    return ScoredRun(
        score, _of_draws(u, draws), grain(metric, labels, predictions, texts, n_classes)
    )


def _of_draws(u: Array, draws: Array) -> Array:
    """The influences (m,) of the m draws from those (n,) of the examples; same mean.

    Equal texts are answered alike, so that they are one draw and not several: when 29 texts in 290
    rows were taken for 290, intervals were a third as wide as they had to be.
    """
    _, draw = np.unique(draws, return_inverse=True)
    m = int(draw.max()) + 1
    sums: Array = np.bincount(draw, weights=u, minlength=m).astype(np.float64)
    return sums * (m / len(u))
