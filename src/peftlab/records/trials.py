"""The trials of tuning and their scores: trials.json, in OUT/tuning beside the trials' records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from peftlab import atomic
from peftlab.errors import RequestError

Values = dict[str, int | float]  # by setting

FILE = "trials.json"


class Trial(BaseModel, extra="forbid", frozen=True):
    """One training on the part of train that is not validation. Its record lies beside the file."""

    task: str
    data: str  # sha256 of all its examples
    model: str
    label: str  # the row's
    number: int  # from 0, in the order in which they were tried
    epochs: int
    values: Values
    metric: str
    score: float | None  # None where it failed
    cell: str
    chosen: bool = False  # the row's cells on this task are trained with its values
    at_border: list[str] = []  # settings at an end of their range, which may be too narrow

    @property
    def of(self) -> tuple[str, ...]:
        """The task with its examples, the model and the row that this is a trial of."""
        return self.task, self.data, self.model, self.label


def settings_at_border(chosen: Trial, trials: Iterable[Trial]) -> list[str]:
    """The settings of a chosen trial beyond whose values nothing was tried for the row on its task.

    No trial had a higher value, or a lower one; or all had the same, where its range ends. The best
    may lie beyond.
    """
    candidates = [trial.values for trial in trials if trial.of == chosen.of]
    names = []
    for name, value in chosen.values.items():
        tried = [values[name] for values in candidates]
        varies = min(tried) < max(tried)
        if value in (min(tried), max(tried)) if varies else name in chosen.at_border:
            names.append(name)
    return names


_TRIALS = TypeAdapter(list[Trial])


def read_trials(folder: Path) -> list[Trial]:
    """The trials in a folder; empty where nothing was tuned.

    Raises:
        RequestError: if the file is damaged.
    """
    path = folder / FILE
    try:
        return _TRIALS.validate_json(path.read_bytes()) if path.exists() else []
    except ValidationError:
        raise RequestError(
            f"{path} is damaged; delete it, and the same `peftlab compare --tune` writes it anew "
            "and trains nothing"
        ) from None


def write_trials(folder: Path, trials: list[Trial]) -> None:
    """Write trials; those of the same rows on the same tasks that the file has are replaced.

    Raises:
        RequestError: if the file is damaged.
    """
    replaced = {trial.of for trial in trials}
    others = [trial for trial in read_trials(folder) if trial.of not in replaced]
    text = _TRIALS.dump_json(others + trials, indent=2).decode()
    atomic.write(folder / FILE, text + "\n")
