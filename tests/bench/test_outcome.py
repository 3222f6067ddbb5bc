"""What a cell has told becomes its record, its curve and its predictions."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest

from peftlab import atomic
from peftlab.bench.cell import Cell
from peftlab.bench.execute import exit_message
from peftlab.bench.grid import resolve
from peftlab.bench.outcome import CellScorer, Trained
from peftlab.bench.suite import make_suite
from peftlab.machine import environment
from peftlab.records.record import Speed, Trainable
from peftlab.records.store import Store
from peftlab.tasks import Examples, Task

RIGHT, WRONG = [0.0, 1.0], [1.0, 0.0]  # logits of class 1, and of class 0


def trained(epochs: int) -> Trained:
    return Trained(
        n_truncated=0,
        n_trainable=Trainable(adapter=0, head=1, total=1),
        speed=Speed(examples_per_s=None, tokens_per_s=None, step_ms_p50=None, step_ms_p95=None),
        memory=None,
        parts=None,
        curve=[
            row for epoch in range(1, epochs + 1) for row in ({"step": epoch}, {"epoch": epoch})
        ],
        notes=["a note"],
        prepare_s=None,
        train_s=1.0,
        eval_s=1.0,
        total_s=3.0,
        environment=environment(1),
    )


def test_every_epoch_has_its_own_score_and_the_last_is_the_records(
    tiny_model: Path, tiny_task: Task
) -> None:
    asked = make_suite(model=str(tiny_model), tasks=[tiny_task], methods=["head"], seeds=[0])
    cell: Cell = resolve(asked).cells[0]
    shown: list[tuple[int, float]] = []
    told = CellScorer(
        tiny_task, on_epoch=lambda epoch, score: shown.append((epoch, score["accuracy"]))
    )
    labels = tiny_task.dev.labels
    for hits in (4, 16, 8):  # of 16
        told.epoch(
            len(told.scores) + 1,
            [(RIGHT if (label == 1) == (i < hits) else WRONG) for i, label in enumerate(labels)],
        )
    told.rank(2, [RIGHT for _ in labels])
    outcome = told.outcome(cell, trained(epochs=3))
    record = outcome.record
    accuracies = [0.25, 1.0, 0.5]
    assert [row["score"]["accuracy"] for row in outcome.curve if "score" in row] == accuracies
    assert shown == list(enumerate(accuracies, start=1))
    assert [row for row in outcome.curve if "step" in row] == [{"step": n} for n in (1, 2, 3)]
    assert (record.score["accuracy"], record.best.epoch) == (0.5, 2)
    assert record.best.score["accuracy"] == 1.0
    assert record.score_by_rank["2"]["accuracy"] == sum(labels) / len(labels)
    right = [row["label"] == row["prediction"] for row in outcome.predictions]
    assert right == [True] * 8 + [False] * 8
    assert (record.method.notes[-1], record.total_s) == ("a note", 3.0)
    assert record.eval_s > 1.0  # with the time of scoring


def test_a_text_that_dev_has_twice_says_so_in_its_row(tiny_task: Task) -> None:
    texts = [("a cat",), ("a dog",), ("a cat",)]
    task = dataclasses.replace(tiny_task, dev=Examples(texts, [1, 0, 1]))
    told = CellScorer(task)
    told.epoch(1, [[0.1, 0.9]] * 3)
    rows = told._predictions([1, 1, 1])
    assert [row.get("same_text_as") for row in rows] == [None, None, 0]
    assert [row.get("drawn_with") for row in rows] == [None, None, 0]


def test_a_pair_says_which_other_shares_its_text(tiny_task: Task) -> None:
    texts = [(f"question {i % 40}", f"answer {i % 60}") for i in range(120)]
    task = dataclasses.replace(
        tiny_task, train=Examples(texts, [0, 1] * 60), dev=Examples(texts, [0, 1] * 60)
    )
    told = CellScorer(task)
    told.epoch(1, [[0.1, 0.9]] * 120)
    rows = told._predictions([1] * 120)
    assert [row.get("drawn_with", i) for i, row in enumerate(rows)] == [i % 40 for i in range(120)]
    assert all("same_text_as" not in row for row in rows)


def test_a_death_is_told_where_signals_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' signal has no SIGKILL: the whole comparison ended with a cell."""
    monkeypatch.delattr(signal, "SIGKILL")
    assert exit_message(-9, "") == (
        "its process was killed; most likely the machine ran out of memory"
    )
    assert exit_message(1, "x") == "its process exited with code 1; x"


def test_a_real_time_signal_has_no_name() -> None:
    assert exit_message(-40, "x") == "its process was ended by signal 40; x"
    assert exit_message(-signal.SIGSEGV, "x") == "its process was ended by SIGSEGV; x"
    assert exit_message(3, "") == "its process exited with code 3"


@pytest.mark.parametrize("kind", ["curves", "predictions"])
def test_a_cell_whose_answers_could_not_be_written_has_no_record(
    kind: str, tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count as done, and have no predictions for ever: no verdict, and no export."""
    asked = make_suite(model=str(tiny_model), tasks=[tiny_task], methods=["head"], seeds=[0])
    scorer = CellScorer(tiny_task)
    scorer.epoch(1, [RIGHT] * len(tiny_task.dev))
    outcome = scorer.outcome(resolve(asked).cells[0], trained(epochs=1))
    write = atomic.write

    def full(path: Path, text: str) -> None:
        if path.parent.name == kind:
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(OSError, match="No space left"):
        outcome.write(Store(tmp_path))
    assert Store(tmp_path).cells() == []
