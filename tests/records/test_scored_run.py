"""What a run answered, and what each example adds to its score."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from peftlab.records.crossed import Crossed
from peftlab.records.influence import influences
from peftlab.records.predictions import read
from peftlab.records.scored_run import _of_draws, scored_run
from peftlab.records.verdicts import compare_rows


def interval(folder: Any, cell: str) -> float:
    (record,) = [one for one in folder.records if one.cell == cell]
    run = scored_run(record, [folder.path])
    assert run is not None and run.influence is not None
    low, high = Crossed.of(np.array([run.score]), run.influence[None]).interval()
    return float(high - low)


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "pearson"])
def test_ten_copies_of_every_text_tell_no_more_than_one(folder: Any, metric: str) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 60)
    answers = np.where(draw.random(60) < 0.2, 1 - labels, labels)
    one = folder.add("once", 0, metric=metric, labels=labels, predictions=answers)
    copies = {"labels": np.tile(labels, 10), "predictions": np.tile(answers, 10)}
    many = folder.add("copies", 0, metric=metric, **copies)
    as_if = interval(folder, many.cell)
    path = folder.path / "predictions" / f"{many.cell}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    known = [row | {"same_text_as": row["index"] % 60} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in known))
    assert interval(folder, many.cell) == pytest.approx(interval(folder, one.cell))
    assert as_if < interval(folder, one.cell) / 3


def test_what_is_not_whole_is_not_read(folder: Any) -> None:
    record = folder.add("lora", 0)
    path = folder.path / "predictions" / f"{record.cell}.jsonl"
    assert len(read(path, record.task.n_dev)) == record.task.n_dev
    lines = path.read_text().splitlines()
    for broken in (lines[:-1], [*lines[:-1], "{"], [*lines[:-1], "[]"], [*lines[:-1], "{}"]):
        path.write_text("\n".join(broken))
        assert read(path, record.task.n_dev) == []


def test_rows_that_agree_on_copies_of_few_texts_are_no_tie(folder: Any) -> None:
    """Thirty texts, twenty copies each: that no answer differs proves nothing of others."""
    labels = np.arange(600) % 30 % 2
    for row in ("a", "b"):
        for seed in range(3):
            record = folder.add(row, seed, labels=labels, predictions=labels)
            path = folder.path / "predictions" / f"{record.cell}.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            known = [one | {"same_text_as": one["index"] % 30} for one in rows]
            path.write_text("".join(json.dumps(one) + "\n" for one in known))
    (pair,) = compare_rows(folder.records, [folder.path]).pairs
    assert pair.verdict == "unclear" and pair.high is not None
    assert pair.high == pytest.approx(1.5 * 2.045 / 30, rel=0.01)  # t of 29 degrees of freedom


def test_perfect_answers_to_a_rare_class_are_no_tie(folder: Any) -> None:
    """Three answers of 400 move the F1 of 20 positives by .081: of three more nobody knows."""
    labels = (np.arange(400) < 20).astype(int)
    for row in ("a", "b"):
        for seed in range(3):
            folder.add(row, seed, metric="f1", labels=labels, predictions=labels)
    (pair,) = compare_rows(folder.records, [folder.path]).pairs
    assert pair.verdict == "unclear" and pair.high is not None
    three_missed = 1 - 2 * 17 / (2 * 17 + 3)
    assert pair.high == pytest.approx(1.5 * 1.966 * three_missed / 3, rel=0.01)


def test_a_rare_class_found_is_better_than_one_that_is_not(folder: Any) -> None:
    """By the first answer of a Matthews of one right one, three times, .24 might be .86."""
    labels = (np.arange(600) < 20).astype(int)
    for row, n_found in (("full", 15), ("head", 1)):
        for seed in range(5):
            predictions = labels & (np.arange(600) < n_found + seed % 2)
            folder.add(row, seed, metric="matthews", labels=labels, predictions=predictions)
    (pair,) = compare_rows(folder.records, [folder.path]).pairs
    assert pair.verdict == "better" and pair.low is not None and pair.low > 0.3


def test_a_place_that_is_none_is_no_answer(folder: Any) -> None:
    record = folder.add("lora", 0)
    path = folder.path / "predictions" / f"{record.cell}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(one | {"same_text_as": -1}) + "\n" for one in rows))
    assert read(path, record.task.n_dev) == []


def test_answers_to_one_question_are_one_draw() -> None:
    """Two equal rows, and of what sets them apart 60 % belongs to the question: 20 answers each."""
    draw, n_held = np.random.default_rng(0), {"drawn": 0, "alone": 0}
    groups = {"drawn": np.repeat(np.arange(30.0), 20), "alone": np.arange(600.0)}
    for _ in range(150):
        labels = draw.integers(0, 2, 600)
        hard = 0.9 * draw.normal(size=600)
        of_rows = 0.34 * np.repeat(draw.normal(size=(2, 30)), 20, axis=1)
        of_rows = of_rows + 0.28 * draw.normal(size=(2, 600))
        z = 0.8 + hard + of_rows[:, None] + 0.1 * draw.normal(size=(2, 5, 600))
        scores, u = influences("accuracy", labels, ((2 * labels - 1) * z > 0).astype(float), 2)
        for name, group in groups.items():
            by_draw = np.apply_along_axis(_of_draws, -1, u, group)
            c = Crossed.of(scores[0] - scores[1], by_draw[0] - by_draw[1])
            low, high = c.interval()
            n_held[name] += int(low <= 0 <= high)
    assert n_held["drawn"] / 150 > 0.9 > 0.8 > n_held["alone"] / 150
