"""predictions/CELL.jsonl: a run's answers to all dev examples, as numbers.

A row has the example's index, its label, the answer and the model's outputs. Where dev has the same
text before, `same_text_as` is the index of that: equal texts are answered alike. Where it has a
pair before that shares a text, `drawn_with` is (`peftlab.tasks.draws`): neither is independent.
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
    draw: int  # index of the first that is drawn together with it


def read(file: Path, n_dev: int) -> list[Answer]:
    """The answers to each of the `n_dev` examples, in order.

    Empty if the file is absent, damaged or not whole: a part would pass for all of the answers.
    """
    try:
        answers = [_answer(row, index) for index, row in enumerate(rows_of(file))]
    except KeyError:
        return []
    if len(answers) != n_dev or not all(
        _is_number(value) for answer in answers for value in answer
    ):
        return []
    is_sound = all(
        0 <= answer.text <= index and 0 <= answer.draw <= index
        for index, answer in enumerate(answers)
    )
    return answers if is_sound else []


def _answer(row: dict[str, Any], index: int) -> Answer:
    text = row.get("same_text_as", index)
    return Answer(row["label"], row["prediction"], text, row.get("drawn_with", text))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
