"""predictions/CELL.jsonl: what a run answered to every dev example, as numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peftlab.errors import JSON_ERRORS


def read(file: Path, n_dev: int) -> list[tuple[float, float]]:
    """(label, prediction) of each of the `n_dev` examples, in order; indices for classes.

    Empty if the file is absent or not whole: a part of the answers would pass for all of them.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["label"], row["prediction"]) for row in rows]
    except (*JSON_ERRORS, OSError, KeyError, TypeError):
        return []
    whole = len(pairs) == n_dev and all(_is_number(value) for pair in pairs for value in pair)
    return pairs if whole else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
