"""predictions/CELL.jsonl: a run's answers to all dev examples, as numbers.

A row has the example's index, its label, the answer and the model's outputs; where dev has the same
text before, also the index of that: `same_text_as`. Answers to equal texts are not independent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.records.store import rows_of


class Answer(NamedTuple):
    """The answer to one example; label and prediction are indices of classes, or numbers."""

    label: float
    prediction: float
    text: int  # index of the first example that has this text


def read(file: Path, n_dev: int) -> list[Answer]:
    """The answers to each of the `n_dev` examples, in order.

    Empty if the file is absent, damaged or not whole: a part would pass for all of the answers.
    """
    try:
        answers = [
            Answer(row["label"], row["prediction"], row.get("same_text_as", index))
            for index, row in enumerate(rows_of(file))
        ]
    except KeyError:
        return []
    if len(answers) != n_dev or not all(
        _is_number(value) for answer in answers for value in answer
    ):
        return []
    is_sound = all(0 <= answer.text <= index for index, answer in enumerate(answers))
    return answers if is_sound else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
