"""A run by its task's main metric: its score, and the influence of each dev text on it."""

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

EXACT = 1e-6  # of a score: predictions of another run than the record's are not taken for its own


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run by its task's main metric.

    Attributes:
        score: of all dev examples.
        influence: of each dev text on it, (m,); None where there are no predictions, or not those
            that the score is of.
        grain: by how much another answer to one text changes it, of classes.
    """

    score: float
    influence: Array | None
    grain: float = 0.0


def scored_run(record: Record, folders: Iterable[Path]) -> ScoredRun | None:
    """The run as one of `folders` has it; None if the record has no score, as of a failed cell."""
    metric = record.task.main_metric
    score = (record.score or {}).get(metric)
    if score is None or not math.isfinite(score):
        return None
    found = (Store(folder).predictions(record.cell) for folder in folders)
    file = next((path for path in found if path.is_file()), None)
    answers = read(file, record.task.n_dev) if file and metric in METRICS else []
    if not answers:
        return ScoredRun(score, None)
    labels, predictions, texts = np.array(answers, dtype=np.float64).T
    n_classes = len(record.task.labels)
    again, u = influences(metric, labels, predictions, n_classes)
    if not math.isclose(float(again), score, rel_tol=EXACT, abs_tol=EXACT):
        return ScoredRun(score, None)
    return ScoredRun(
        score, of_texts(u, texts), grain(metric, labels, predictions, texts, n_classes)
    )


def of_texts(u: Array, texts: Array) -> Array:
    """The influences (n,) of examples as those (m,) of the m texts that differ among them.

    Equal texts are answered alike, so that they are one draw and not several: 29 texts in 290 rows
    were taken for 290, and intervals were a third as wide as they had to be. The mean stays.
    """
    _, text = np.unique(texts, return_inverse=True)
    m = int(text.max()) + 1
    of_each: Array = np.bincount(text, weights=u, minlength=m).astype(np.float64)
    return of_each * (m / len(u))
