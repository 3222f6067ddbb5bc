"""Ours beside published scores: the difference and its interval, and what may be said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from peftlab.records import published
from peftlab.records.published import Published, PublishedComparison, compare_with_published
from peftlab.records.record import TaskPart
from peftlab.records.scored_run import ScoredRun
from peftlab.records.table import Runs

N = 400  # examples of a folder's task


def only(
    folder: Any, score: float, epoch: Any = "last", margin: float = 0.01
) -> PublishedComparison:
    scores = Published(scores={"lora": {"cola": score}}, epoch=epoch)
    (row,) = compare_with_published(scores, folder.records, [folder.path], margin)
    return row


@pytest.fixture
def three(folder: Any) -> Any:
    for seed in range(3):
        folder.add("lora", seed, wrong=40)
    return folder


def test_the_difference_is_ours_minus_theirs_and_the_interval_is_around_it(three: Any) -> None:
    row = only(three, 0.85)
    scores = [record.score["accuracy"] for record in three.records if record.score]
    assert row.seeds == [0, 1, 2] and row.mean == pytest.approx(np.mean(scores))
    assert row.sd == pytest.approx(np.std(scores, ddof=1))
    assert row.difference == pytest.approx(np.mean(scores) - 0.85)
    assert row.low is not None and row.high is not None
    assert (row.low + row.high) / 2 == pytest.approx(row.difference)
    moved = only(three, 0.80)
    assert moved.low == pytest.approx(row.low + 0.05)


def test_the_interval_is_at_least_that_of_a_share_of_the_examples(three: Any) -> None:
    """A textbook's interval of a share is that of the examples alone."""
    row = only(three, 0.85)
    assert row.mean is not None and row.low is not None and row.high is not None
    examples = t.ppf(0.975, N - 1) * (row.mean * (1 - row.mean) / N) ** 0.5
    assert (row.high - row.low) / 2 > 0.9 * examples


@pytest.mark.parametrize("theirs", [1, 5])
def test_a_method_is_told_apart_from_itself_no_more_often_than_said(theirs: int) -> None:
    """A published score of one seed, taken as exact, lay beyond the interval in 12 to 46 %."""
    draw, n_held = np.random.default_rng(0), 0
    for _ in range(2000):
        ours, other = draw.normal(size=5), draw.normal(size=theirs).mean()
        low, high = _of_seeds(ours, float(other), theirs)
        n_held += low <= 0 <= high
    assert n_held / 2000 == pytest.approx(0.95, abs=0.015)


def _of_seeds(ours: Any, score: float, theirs: int) -> tuple[float, float]:
    """The interval where nothing but seeds moves a score."""
    by_seed = {seed: ScoredRun(float(one), np.zeros(50)) for seed, one in enumerate(ours)}
    task = TaskPart.model_construct(name="t", main_metric="accuracy")
    runs = Runs(task=task, records=(), by_seed=by_seed)
    row = published._compare(Published(scores={}, seeds=theirs), "lora", runs, score, 0.01)
    assert row.low is not None and row.high is not None
    return row.low, row.high


@pytest.mark.parametrize(
    ("score", "margin", "says"),
    [(0.5, 0.01, "above"), (0.99, 0.01, "below"), (0.88, 0.01, "unclear"), (0.88, 0.2, "equal")],
)
def test_what_it_says(three: Any, score: float, margin: float, says: str) -> None:
    assert only(three, score, margin=margin).says == says


def test_what_is_missing_is_said(folder: Any) -> None:
    folder.add("lora", 0)
    assert only(folder, 0.5).says == "unclear: 1 seed"
    folder.add("lora", 1)
    assert only(folder, 0.5).says == "unclear: 2 seeds"


def test_without_predictions_there_is_a_difference_and_no_interval(folder: Any) -> None:
    for seed in range(3):
        folder.add("lora", seed, write=False)
    row = only(folder, 0.5)
    assert (row.low, row.high, row.says) == (None, None, "unclear: no predictions")
    assert row.difference is not None


def test_a_score_of_the_best_epoch_is_met_by_ours_of_the_best_epoch(folder: Any) -> None:
    for seed in range(3):
        folder.add("lora", seed, best={"epoch": 1, "score": {"accuracy": 0.95 + seed / 100}})
    best, last = only(folder, 0.9, "best"), only(folder, 0.9, "last")
    assert best.mean == pytest.approx(0.96) and best.sd == pytest.approx(0.01)
    assert best.last == last.mean == last.last
    assert only(folder, 0.9, "not said") == last


def test_failed_rows_are_named_and_rows_that_were_not_run_are_left_out(folder: Any) -> None:
    failure = {"kind": "RuntimeError", "message": "no"}
    folder.add("lora", 0, status="failed", failure=failure, score=None, best=None)
    scores = Published(scores={"lora": {"cola": 0.5, "rte": 0.5}, "full": {"cola": 0.5}})
    (row,) = compare_with_published(scores, folder.records, [folder.path])
    assert (row.row, row.task, row.says, row.mean) == ("lora", "cola", "failed", None)


def test_where_some_seeds_have_no_predictions_there_is_no_interval_of_the_others(
    folder: Any,
) -> None:
    for seed in range(5):
        folder.add("lora", seed, wrong=40 + 60 * (seed > 2), write=seed < 3)
    row = only(folder, 0.85)
    assert (row.seeds, row.low, row.says) == ([0, 1, 2, 3, 4], None, "unclear: no predictions")
