"""How sure a row's own score is."""

from __future__ import annotations

import numpy as np
import pytest

from peftlab.records.own import own_scores
from peftlab.records.table import columns


def of(folder):
    return own_scores(columns(folder.records, [folder.path]))


def test_of_one_seed_it_is_the_examples_interval(folder) -> None:
    record = folder.add("a", 0)
    (one,) = of(folder)
    p = record.score["accuracy"]
    n = record.task.n_dev
    assert one.mean == pytest.approx(p) and one.n_seeds == 1
    assert one.high - one.mean == pytest.approx(1.96 * (p * (1 - p) / n) ** 0.5, rel=0.02)
    assert one.mean - one.low == pytest.approx(one.high - one.mean)


def test_seeds_that_differ_make_it_wider(folder) -> None:
    for seed in range(3):
        folder.add("alike", seed, wrong=40)
        folder.add("unlike", seed, wrong=20 + 20 * seed)
    alike, unlike = of(folder)
    assert unlike.high - unlike.low > 2 * (alike.high - alike.low)
    scores = [r.score["accuracy"] for r in folder.records if r.method.label == "unlike"]
    assert unlike.mean == pytest.approx(np.mean(scores))


def test_without_the_predictions_of_a_run_it_is_not_known(folder) -> None:
    folder.add("a", 0)
    folder.add("a", 1, write=False)
    assert of(folder) == []
