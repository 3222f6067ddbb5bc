"""A second metric over training."""

from __future__ import annotations

import functools

import pytest

from peftlab.report.curves import Curves
from peftlab.report.lines import Line, score_figure
from peftlab.report.scores import table
from peftlab.report.second import second_figure
from peftlab.report.style import Style


def made(record, task, **metrics):
    (column,) = table([record(task=task)]).columns
    score = {metric: [(1, value), (2, value)] for metric, value in metrics.items()}
    lines = [Line("lora", (Curves(loss=[], memory=[], score=score),))]
    style = Style(["lora"])
    return second_figure(
        column, lines, functools.partial(score_figure, lines=lines, style=style, limit=40)
    )


@pytest.mark.parametrize(
    ("task", "metrics", "second"),
    [
        ("cola", {"matthews": 0.4, "macro_f1": 0.6, "accuracy": 0.7, "f1": 0.8}, "f1"),
        ("mrpc", {"f1": 0.8, "accuracy": 0.7}, "accuracy"),
        ("stsb", {"pearson": 0.8, "rmse": 0.7}, "rmse"),
    ],
)
def test_it_is_another_than_the_task_is_judged_by(record, task, metrics, second):
    figure = made(record, task, **metrics)
    assert (figure.kind, figure.name) == ("second", f"second-{task}")
    assert figure.title == f"{task}: dev {second} over training"
    assert ("rmse ↓" in str(figure.spec)) == (second == "rmse")


def test_without_another_there_is_none(record):
    assert made(record, "mrpc", f1=0.8) is None
    assert made(record, "mrpc") is None
