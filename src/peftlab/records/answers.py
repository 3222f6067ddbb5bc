"""What a cell answered to every dev example, read from the folder that its record lies in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from peftlab.errors import JSON_ERRORS
from peftlab.records.influence import METRICS, Array, influences
from peftlab.records.record import Record

EXACT = 1e-6  # of a score: predictions of another run than the record's are not taken for its own


@dataclasses.dataclass(frozen=True)
class Judged:
    """A run by its task's main metric: its score, and the influence (n,) of each dev example.

    `influence` is None where there are no predictions, or not those that the score is of.
    """

    score: float
    influence: Array | None


def judged(record: Record, folders: Iterable[Path]) -> Judged | None:
    """The run as one of `folders` has it; None if the record has no score, as of a failed cell."""
    metric = record.task.main_metric
    score = (record.score or {}).get(metric)
    if score is None or not math.isfinite(score):
        return None
    found = (folder / "predictions" / f"{record.cell}.jsonl" for folder in folders)
    file = next((path for path in found if path.is_file()), None)
    return Judged(score, _influence(record, file, score) if file and metric in METRICS else None)


def _influence(record: Record, file: Path, score: float) -> Array | None:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        both = np.array([(row["label"], row["prediction"]) for row in rows], dtype=np.float64)
    except (*JSON_ERRORS, OSError, KeyError, TypeError):
        return None
    if both.shape != (record.task.n_dev, 2) or not np.isfinite(both).all():
        return None
    n_classes = len(record.task.labels)
    again, u = influences(record.task.main_metric, both[:, 0], both[:, 1], n_classes)
    return u if math.isclose(float(again), score, rel_tol=EXACT, abs_tol=EXACT) else None
