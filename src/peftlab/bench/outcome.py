"""Turn what a cell's process reports into a record. Scores are computed here, by the caller.

A cell's own process trains and answers and computes no metric: scikit-learn and scipy would take as
much memory as a small training, and that process should hold nothing but what its method needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from peftlab.tasks import Task, draws, group_indices
from peftlab.training import Line

Outputs = list[list[float]]  # (n_dev, num_labels)


class Trained(BaseModel, extra="forbid", frozen=True):
    """The result of a training beside its answers; epochs in `curve` have no scores yet."""

    n_truncated: int
    n_trainable: Trainable
    speed: Speed
    memory: Memory | None
    parts: float | None
    curve: list[Line]
    notes: list[str]
    prepare_s: float | None
    train_s: float
    eval_s: float
    total_s: float
    environment: Environment


class Failed(BaseModel, extra="forbid", frozen=True):
    """The end of a training that failed."""

    failure: Failure
    total_s: float | None = None
    environment: Environment


@dataclass(frozen=True)
class Outcome:
    """A cell's record, and the rows of its curve and its predictions; no rows if it failed."""

    record: Record
    curve: list[Line]
    predictions: list[Line]

    def write(self, store: Store) -> None:
        """Write the cell's files; the record last, since a cell with a record is done."""
        cell = self.record.cell
        if self.record.is_done:
            atomic.write(store.curve(cell), lines_of(self.curve))
            atomic.write(store.predictions(cell), lines_of(self.predictions))
        store.write_record(self.record)


class CellScorer:
    """Scores a cell's answers as they arrive, and makes its record at the end.

    Args:
        task: the cell's task, with its data.
        on_step: called with each step's row of the curve and the total number of steps.
        on_epoch: called with each epoch and its scores on dev.
        on_note: called with each line that the user should see.
    """

    def __init__(
        self,
        task: Task,
        on_step: Callable[[Line, int], None] = lambda row, total: None,
        on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, score: None,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.task, self.on_step, self.on_epoch, self.on_note = task, on_step, on_epoch, on_note
        self.scores: list[dict[str, float]] = []  # one an epoch
        self.score_by_rank: dict[str, dict[str, float]] = {}
        self.outputs: Outputs = []  # of the last epoch
        self.scoring_s = 0.0

    def step(self, row: Line, total: int) -> None:
        """Report a step out of `total`, given as its row of the curve."""
        self.on_step(row, total)

    def note(self, line: str) -> None:
        """Report a line that the user should see."""
        self.on_note(line)

    def epoch(self, epoch: int, outputs: Outputs) -> None:
        """Score and report the answers to dev after an epoch."""
        self.outputs = outputs
        self.scores.append(self._score(outputs))
        self.on_epoch(epoch, self.scores[-1])

    def rank(self, rank: int, outputs: Outputs) -> None:
        """Score the answers to dev at this rank."""
        self.score_by_rank[str(rank)] = self._score(outputs)

    def _score(self, outputs: Outputs) -> dict[str, float]:
        started = time.perf_counter()
        scores = self.task.score(predictions_of(self.task.kind, outputs))
        self.scoring_s += time.perf_counter() - started
        return scores

    def outcome(self, cell: Cell, result: Trained | Failed) -> Outcome:
        """The cell's record and rows, with the scores of its answers."""
        if isinstance(result, Failed):
            return Outcome(failure_record(cell, result), [], [])
        predictions = predictions_of(self.task.kind, self.outputs)
        notes = [*cell.method.notes, *result.notes]
        record = Record(
            **cell.record_fields
            | {
                "task": cell.task.model_copy(update={"n_truncated": result.n_truncated}),
                "method": cell.method.model_copy(update={"notes": notes}),
            },
            status="done",
            score=self.scores[-1],
            best=best_epoch(self.scores, cell.task.main_metric),
            score_by_rank=self.score_by_rank or None,
            warnings=score_warnings(self.task, predictions, self.scores[-1]),
            n_trainable=result.n_trainable,
            speed=result.speed,
            memory=result.memory,
            parts=result.parts,
            prepare_s=result.prepare_s,
            train_s=result.train_s,
            eval_s=result.eval_s + self.scoring_s,
            total_s=result.total_s,
            environment=result.environment,
        )
        return Outcome(record, self._with_scores(result.curve), self._predictions(predictions))

    def _with_scores(self, rows: list[Line]) -> list[Line]:
        """The rows of a curve, with the scores of its epochs."""
        return [
            row if "step" in row else row | {"score": self.scores[row["epoch"] - 1]} for row in rows
        ]

    def _predictions(self, predictions: list[int] | list[float]) -> list[Line]:
        dev = self.task.dev
        rows = zip(dev.labels, predictions, self.outputs, strict=True)
        answers = [
            {"index": index, "label": label, "prediction": prediction, "logits": logits}
            for index, (label, prediction, logits) in enumerate(rows)
        ]
        for name, groups in {
            "same_text_as": group_indices(dev.texts),
            "drawn_with": draws(dev.texts),
        }.items():
            for index, first in enumerate(groups):
                if first != index:
                    answers[index][name] = first
        return answers


def best_epoch(scores: Sequence[dict[str, float]], metric: str) -> Best:
    """The best epoch by `metric`, the first of equal ones, given each epoch's scores."""
    best = max(range(len(scores)), key=lambda epoch: merit(metric, scores[epoch][metric]))
    return Best(epoch=best + 1, score=scores[best])


def predictions_of(kind: str, outputs: Outputs) -> list[int] | list[float]:
    """The class of each row's largest output; for a regression the only output, not clipped."""
    if kind == "regression":
        return [value for (value,) in outputs]
    return [row.index(max(row)) for row in outputs]


def failure_record(cell: Cell, result: Failed) -> Record:
    """The record of a cell that failed."""
    return Record(
        **cell.record_fields,
        status="failed",
        total_s=result.total_s,
        environment=result.environment,
        failure=result.failure,
    )
