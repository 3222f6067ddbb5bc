"""Influences against scikit-learn's and scipy's metrics with weights moved by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlab.errors import RequestError
from peftlab.records.influence import METRICS, OF_CLASSES, grain, influences
from peftlab.tasks.metrics import METRICS as SCORES
from peftlab.tasks.metrics import score

CLASSES = [("accuracy", 2), ("f1", 2), ("macro_f1", 2), ("matthews", 2)]
CLASSES += [("accuracy", 4), ("f1", 4), ("macro_f1", 4), ("matthews", 4)]
NUMBERS = [("pearson", 0), ("spearman", 0), ("rmse", 0), ("mae", 0)]


def examples(n_classes: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    if n_classes:
        labels = draw.choice(
            n_classes, n, p=np.arange(1, n_classes + 1) / sum(range(n_classes + 1))
        )
        return labels, np.where(draw.random(n) < 0.7, labels, draw.integers(n_classes, size=n))
    labels = draw.normal(size=n).round(1)  # with ties
    return labels, (labels + draw.normal(size=n)).round(1) + 0.3


def test_every_metric_has_influences() -> None:
    assert set(METRICS) == set(SCORES)


@pytest.mark.parametrize(("metric", "n_classes"), CLASSES + NUMBERS)
def test_scores_are_those_of_the_tasks(metric: str, n_classes: int) -> None:
    labels, predictions = examples(n_classes, 150)
    expected = score([metric], labels, predictions, n_classes or None)[metric]
    assert influences(metric, labels, predictions, n_classes)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "n_classes"), CLASSES + NUMBERS)
def test_an_influence_is_the_slope_as_an_example_is_repeated(metric: str, n_classes: int) -> None:
    """One more copy among 200 copies of each: a weight of e = 1 / (200 n + 1)."""
    copies = 200
    labels, predictions = examples(n_classes, 24)
    base, u = influences(metric, labels, predictions, n_classes)
    for i in range(24):
        more = [np.append(np.repeat(one, copies), one[i]) for one in (labels, predictions)]
        moved = score([metric], *more, n_classes or None)[metric]
        slope = (moved - base) * len(more[0])
        assert u[i] == pytest.approx(slope, abs=0.01 * max(1, abs(u).max())), i
    assert u.mean() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("metric", "n_classes"), CLASSES + NUMBERS)
def test_rows_are_scored_at_once_as_one_by_one(metric: str, n_classes: int) -> None:
    labels, _ = examples(n_classes, 40)
    many = np.stack([examples(n_classes, 40, seed)[1] for seed in range(6)]).reshape(2, 3, 40)
    scores, u = influences(metric, labels, many, n_classes)
    assert scores.shape == (2, 3) and u.shape == (2, 3, 40)
    one = influences(metric, labels, many[1, 2], n_classes)
    assert scores[1, 2] == pytest.approx(one[0])
    np.testing.assert_allclose(u[1, 2], one[1], atol=1e-12)


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize("value", [1, 0.1])
def test_a_constant_answer_scores_nothing_and_no_example_moves_it(
    metric: str, value: float
) -> None:
    constant = np.full(30, value if metric not in OF_CLASSES else 1)
    varied = np.arange(30) % 2
    for pair in ((varied, constant), (constant, varied)):
        result, u = influences(metric, *pair)
        assert result == 0 and not u.any()


def test_a_perfect_answer_has_no_error_and_no_influence() -> None:
    labels = np.array([0.1, 0.7, 3.0])
    for metric in ("rmse", "mae"):
        result, u = influences(metric, labels, labels)
        assert result == 0 and not u.any()


def test_f1_without_a_positive_is_nothing() -> None:
    result, u = influences("f1", np.zeros(4), np.zeros(4), 2)
    assert result == 0 and not u.any()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_is_answered_the_influences_are_finite(data: st.DataObject) -> None:
    metric, n_classes = data.draw(st.sampled_from(CLASSES + NUMBERS))
    value = st.integers(0, n_classes - 1) if n_classes else st.floats(-1e3, 1e3)
    pairs = data.draw(st.lists(st.tuples(value, value), min_size=1, max_size=20))
    result, u = influences(metric, *np.array(pairs, float).T, n_classes)
    assert np.isfinite(result) and np.isfinite(u).all()
    assert result == pytest.approx(
        score([metric], *zip(*pairs, strict=True), n_classes or None)[metric], abs=1e-6
    )


@given(st.data())
def test_the_grain_is_a_third_of_what_answers_to_three_texts_change(data: st.DataObject) -> None:
    labels, predictions = (
        np.array(data.draw(st.lists(st.integers(0, 1), min_size=6, max_size=6))) for _ in range(2)
    )
    for metric in ("accuracy", "f1", "matthews"):
        own = score([metric], labels, predictions, 2)[metric]
        moved = [0.0]
        for label, is_right in itertools.product((0, 1), (True, False)):
            alike = np.flatnonzero((labels == label) & ((predictions == label) == is_right))
            for some in itertools.combinations(alike, min(3, len(alike))):
                other = predictions.copy()
                other[list(some)] = 1 - other[list(some)]
                moved.append(abs(score([metric], labels, other, 2)[metric] - own))
        assert grain(metric, labels, predictions, np.arange(6), 2) == pytest.approx(max(moved) / 3)


def test_the_grain_of_copies_is_that_of_all() -> None:
    labels = np.array([0, 0, 0, 1])
    assert grain("accuracy", labels, labels, np.array([0, 0, 0, 3]), 2) == 0.25
    assert grain("pearson", labels, labels, np.arange(4)) == 0.0


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(RequestError, match="unknown metric 'f2'"):
        influences("f2", np.zeros(2), np.zeros(2))
