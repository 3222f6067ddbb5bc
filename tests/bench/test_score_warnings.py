"""What a score hides is said in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from peftlab.bench.score_warnings import NO_BETTER, score_warnings
from peftlab.tasks import Examples, Task


def said(task: Task, predictions: list[Any]) -> list[str]:
    return score_warnings(task, predictions, task.score(predictions))


def texts(labels: list[Any]) -> Examples:
    return Examples([(f"text {i}",) for i in range(len(labels))], labels)


def classes(labels: list[int], names: str = "ham spam", metric: str = "accuracy") -> Task:
    examples = texts(labels)
    return Task("mail", "classes", (metric,), examples, examples, tuple(names.split()))


def numbers(labels: list[float], metric: str = "pearson") -> Task:
    examples = texts(labels)
    return Task("stars", "regression", (metric,), examples, examples)


def test_a_run_that_learnt_raises_no_doubt() -> None:
    task = classes([0, 0, 0, 1])
    assert said(task, [0, 0, 0, 1]) == []
    assert said(numbers([1.0, 2.0, 4.0]), [1.2, 2.5, 3.0]) == []


def test_ninety_seven_of_a_hundred_is_no_success_where_all_are_called_ham() -> None:
    assert said(classes([0] * 97 + [1] * 3), [0] * 100) == [
        "every prediction is 'ham'",
        "collapsed: no better than always giving one answer",
    ]


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
def test_the_rarer_class_for_all_is_a_constant_too(metric: str) -> None:
    assert said(classes([0, 0, 1], metric=metric), [1, 1, 1]) == [
        "every prediction is 'spam'",
        "collapsed: no better than always giving one answer",
    ]


def test_of_f1_the_constant_answer_is_the_class_that_it_is_of() -> None:
    """All called spam come to .5: less than that is worth nothing, though more than ham's 0."""
    task = classes([0, 0, 1, 0, 0, 1], metric="f1")
    assert said(task, [1, 0, 1, 1, 1, 0]) == ["collapsed: no better than always giving one answer"]
    assert said(task, [0, 0, 1, 0, 1, 1]) == []


def test_of_the_absolute_error_it_is_the_median() -> None:
    task = numbers([0.0, 0.0, 0.0, 8.0], "mae")  # 2.0 by the median, 3.0 by the mean
    assert said(task, [1.0, 1.0, 0.5, 8.0]) == []
    assert len(said(task, [1.0, 2.0, 1.0, 3.0])) == 1


def test_a_class_that_is_never_predicted_is_named() -> None:
    task = classes([0, 0, 0, 1, 1, 2], "pay cancel other")
    assert said(task, [0, 0, 0, 1, 1, 1]) == ["never predicts 'other'"]


def test_a_class_that_dev_has_not_need_not_be_predicted() -> None:
    task = classes([0, 0, 1], "pay cancel other")
    assert said(task, [0, 0, 1]) == []


def test_of_many_such_classes_the_rest_are_counted() -> None:
    task = classes([0, 0, 0, *range(9)], "a b c d e f g h i")
    assert said(task, [0, 0, 0, 0, 1, *[1] * 7])[0] == (
        "never predicts 'c', 'd', 'e', 'f', 'g' and 2 more"
    )


def test_a_score_no_better_than_the_majority_s_is_a_collapse() -> None:
    assert said(classes([0, 0, 0, 1]), [0, 1, 0, 0]) == [
        "collapsed: no better than always giving one answer"
    ]


def test_numbers_that_hardly_differ_may_be_in_order_and_are_one_by_an_error() -> None:
    """A constant that suits dev better than train's own has learnt as little."""
    hardly = "predictions hardly differ: their standard deviation is 0.1 % of the labels'"
    for metric, more in (("pearson", []), ("rmse", [NO_BETTER]), ("mae", [NO_BETTER])):
        assert said(numbers([1.0, 2.0, 3.0], metric), [1.999, 2.0, 2.001]) == [hardly, *more]
    far = replace(numbers([1.0, 2.0, 3.0], "mae"), dev=texts([3.0, 3.0, 3.5]))
    assert said(far, [2.999, 3.0, 3.001]) == [hardly, NO_BETTER]
    assert said(far, [3.0, 3.0, 3.0]) == ["every prediction is the same", NO_BETTER]


def test_less_error_than_the_mean_s_is_no_collapse_and_more_is() -> None:
    task = numbers([1.0, 2.0, 3.0], "rmse")
    assert said(task, [1.5, 2.0, 2.5]) == []
    assert said(task, [3.0, 2.0, 1.0]) == ["collapsed: no better than always giving one answer"]


def test_one_class_to_all_has_collapsed_whatever_it_is_called() -> None:
    """Also where dev has more of that class than train, so that it beats train's."""
    task = classes([0, 0, 0, 1], "can can't")
    task = replace(task, dev=texts([1, 1, 0]))
    assert said(task, [1, 1, 1]) == ['every prediction is "can\'t"', NO_BETTER]
