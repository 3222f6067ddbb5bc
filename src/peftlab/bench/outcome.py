"""From what a cell's process tells to its record. Scores are computed here, by whoever asked.

A cell's own process trains and answers, and knows no metric: scikit-learn and scipy would be as
large as a small training, and what a cell's process holds is to be what its method needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from peftlab import atomic
from peftlab.bench.cell import Cell
from peftlab.bench.score_warnings import score_warnings
from peftlab.records.record import (
    Best,
    Environment,
    Failure,
    Memory,
    Record,
    Speed,
    Trainable,
)
from peftlab.records.rows import merit
from peftlab.records.store import Store, lines_of
from peftlab.tasks import Task, groups

Row = dict[str, Any]
Outputs = list[list[float]]  # (n_dev, num_labels)


class Trained(BaseModel, extra="forbid", frozen=True):
    """What a training leaves beside its answers; an epoch's row of the curve lacks its score."""

    n_truncated: int
    n_trainable: Trainable
    speed: Speed
    memory: Memory | None
    parts: float | None
    curve: list[Row]
    notes: list[str]
    prepare_s: float | None
    train_s: float
    eval_s: float
    total_s: float
    environment: Environment


class Failed(BaseModel, extra="forbid", frozen=True):
    """How a training ended that came to no end."""

    failure: Failure
    total_s: float | None = None
    environment: Environment


@dataclass(frozen=True)
class Outcome:
    """A cell's end: its record, and the rows of its curve and predictions, none if it failed."""

    record: Record
    curve: list[Row]
    predictions: list[Row]

    def write(self, store: Store) -> None:
        """Write the cell's files; its record last, since that is what makes it done."""
        cell = self.record.cell
        if self.record.is_done:
            atomic.write(store.curve(cell), lines_of(self.curve))
            atomic.write(store.predictions(cell), lines_of(self.predictions))
        store.write_record(self.record)


class CellScorer:
    """What a cell has told so far, scored as it comes.

    Args:
        task: with its data.
        on_step: called with each step's row of the curve and the total number of steps.
        on_epoch: called with each epoch and its scores on dev.
        on_note: called with each line that a user should know.
    """

    def __init__(
        self,
        task: Task,
        on_step: Callable[[Row, int], None] = lambda row, total: None,
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, score: None,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.task, self.on_step, self.on_epoch, self.on_note = task, on_step, on_epoch, on_note
        self.scores: list[dict[str, float]] = []  # one an epoch
        self.by_rank: dict[str, dict[str, float]] = {}
        self.outputs: Outputs = []  # of the last epoch
        self.scoring_s = 0.0

    def step(self, row: Row, total: int) -> None:
        """A step of `total` is done, with its row of the curve."""
        self.on_step(row, total)

    def note(self, line: str) -> None:
        """There is something that a user should know."""
        self.on_note(line)

    def epoch(self, epoch: int, outputs: Outputs) -> None:
        """An epoch is done, and dev answered."""
        self.outputs = outputs
        self.scores.append(self._score(outputs))
        self.on_epoch(epoch, self.scores[-1])

    def rank(self, rank: int, outputs: Outputs) -> None:
        """Dev is answered at this rank."""
        self.by_rank[str(rank)] = self._score(outputs)

    def _score(self, outputs: Outputs) -> dict[str, float]:
        started = time.perf_counter()
        scores = self.task.score(predictions_of(self.task.kind, outputs))
        self.scoring_s += time.perf_counter() - started
        return scores

    def outcome(self, cell: Cell, end: Trained | Failed) -> Outcome:
        """The cell's record, with the scores of all that was answered."""
        if isinstance(end, Failed):
            return Outcome(failed(cell, end), [], [])
        main = cell.task.main_metric
        best = max(range(len(self.scores)), key=lambda i: merit(main, self.scores[i][main]))
        predictions = predictions_of(self.task.kind, self.outputs)
        record = Record(
            **cell.asked
            | {
                "task": cell.task.model_copy(update={"n_truncated": end.n_truncated}),
                "method": cell.method.model_copy(
                    update={"notes": [*cell.method.notes, *end.notes]}
                ),
            },
            status="done",
            score=self.scores[-1],
            best=Best(epoch=best + 1, score=self.scores[best]),
            score_by_rank=self.by_rank or None,
            warnings=score_warnings(self.task, predictions, self.scores[-1]),
            n_trainable=end.n_trainable,
            speed=end.speed,
            memory=end.memory,
            parts=end.parts,
            prepare_s=end.prepare_s,
            train_s=end.train_s,
            eval_s=end.eval_s + self.scoring_s,
            total_s=end.total_s,
            environment=end.environment,
        )
        return Outcome(record, self._curve(end.curve), self._predictions(predictions))

    def _curve(self, rows: list[Row]) -> list[Row]:
        return [
            row if "step" in row else row | {"score": self.scores[row["epoch"] - 1]} for row in rows
        ]

    def _predictions(self, predictions: list[int] | list[float]) -> list[Row]:
        dev = self.task.dev
        rows = zip(dev.labels, predictions, self.outputs, groups(dev.texts), strict=True)
        return [
            {"index": index, "label": label, "prediction": answer, "logits": logits}
            | ({} if first == index else {"same_text_as": first})
            for index, (label, answer, logits, first) in enumerate(rows)
        ]


def predictions_of(kind: str, outputs: Outputs) -> list[int] | list[float]:
    """The class of the largest output, or the one output itself, never clipped."""
    if kind == "regression":
        return [value for (value,) in outputs]
    return [row.index(max(row)) for row in outputs]


def failed(cell: Cell, end: Failed) -> Record:
    """The record of a cell that failed."""
    return Record(
        **cell.asked,
        status="failed",
        total_s=end.total_s,
        environment=end.environment,
        failure=end.failure,
    )
