"""predictions/CELL.jsonl: what a run answered to every dev example, as numbers.

A row has the example's place, its label, the answer and the model's outputs; of a text that dev has
before also where: `same_text_as`. What is answered to equal texts is no two independent answers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.errors import JSON_ERRORS


class Answer(NamedTuple):
    """One example's: indices of classes, or numbers; and its place, or that of an equal text."""

    label: float
    prediction: float
    text: int


def read(file: Path, n_dev: int) -> list[Answer]:
    """The answers to each of the `n_dev` examples, in order.

    Empty if the file is absent or not whole: a part of the answers would pass for all of them.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found = [
            Answer(row["label"], row["prediction"], row.get("same_text_as", index))
            for index, row in enumerate(rows)
        ]
    except (*JSON_ERRORS, OSError, KeyError, TypeError):
        return []
    numbers = all(_is_number(value) for one in found for value in one)
    whole = numbers and all(0 <= one.text <= index for index, one in enumerate(found))
    return found if whole and len(found) == n_dev else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
