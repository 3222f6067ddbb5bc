"""What a row differs by from itself."""

from __future__ import annotations

import numpy as np
import pytest

from peftlab.records.noise import Noise, noise
from peftlab.records.pairs import verdicts
from peftlab.records.question import Question
from peftlab.records.recommend import recommend
from peftlab.records.table import columns
from peftlab.records.verdicts import compare_rows
from peftlab.report.standing import describe_marks, describe_noise


def of(folder) -> Noise:
    (one,) = noise(columns(folder.records, [folder.path]))
    return one


def test_scores_and_speeds_differ_between_seeds(folder, cost) -> None:
    for seed, speed in enumerate((100.0, 110.0, 90.0)):
        folder.add("a", seed, **cost(10, 100, 1, speed=speed))
    scores = [record.score["accuracy"] for record in folder.records]
    each = [abs(scores[i] - scores[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert of(folder).score == pytest.approx(np.mean(each))
    assert of(folder).speed == pytest.approx((10 + 10 + 20) / 3 / 100)


def test_one_seed_has_no_noise(folder, cost) -> None:
    folder.add("a", 0, **cost(10, 100, 1))
    assert of(folder).score is None and of(folder).speed is None


def test_speeds_of_two_machines_are_not_compared(folder, cost) -> None:
    one = folder.add("a", 0, **cost(10, 100, 1, speed=100.0))
    other = one.environment.model_copy(update={"processor": "y"})
    folder.add("a", 1, **cost(10, 100, 1, speed=500.0), environment=other.model_dump())
    assert of(folder).speed is None


def test_speeds_are_compared_under_the_conditions_that_the_table_tells_apart(folder, cost) -> None:
    """Of one thread it is nothing how long threads spin, and of two runs in how many parts."""
    one = folder.add("a", 0, **cost(10, 100, 1, speed=100.0), parts=1.0)
    alone = one.environment.model_copy(update={"threads": 1, "spin_count": "20000"})
    folder.records.clear()
    for seed, (spin, speed, parts) in enumerate(
        (("20000", 100.0, 1.0), ("5000", 110.0, 1.0), ("5000", 400.0, 2.0))
    ):
        environment = alone.model_copy(update={"spin_count": spin}).model_dump()
        folder.add("a", seed, **cost(10, 100, 1, speed=speed), parts=parts, environment=environment)
    assert of(folder).speed == pytest.approx(10 / 105)


def test_the_best_epoch_s_gain_is_measured_and_never_below_nothing(folder) -> None:
    for seed, best in ((0, 0.95), (1, 0.9)):
        last = folder.add("a", seed, best={"epoch": 1, "score": {"accuracy": best}})
    gains = [r.best.score["accuracy"] - r.score["accuracy"] for r in folder.records]
    assert of(folder).inflation == pytest.approx(np.mean(gains)) and last.best.epoch == 1


def test_of_an_error_the_gain_is_what_it_falls_by(folder) -> None:
    given = {"labels": np.arange(5.0), "predictions": np.arange(5) + 0.5}
    folder.add("a", 0, metric="rmse", best={"epoch": 1, "score": {"rmse": 0.3}}, **given)
    assert of(folder).inflation == pytest.approx(0.2)


def test_collapsed_and_failed_runs_are_counted(folder) -> None:
    folder.add("a", 0)
    folder.add("a", 1, warnings=["never predicts 'no'", "collapsed: no better than 'yes'"])
    failure = {"kind": "Diverged", "message": "NaN"}
    folder.add("a", 2, status="failed", score=None, best=None, failure=failure)
    one = of(folder)
    assert (one.n_runs, one.n_collapsed, one.n_failed) == (2, 1, 1)


def test_rounds_that_took_turns_tell_the_speed_and_all_runs_what_memory_must_do(
    folder, cost, tmp_path
) -> None:
    for row, seconds in (("a", 1), ("b", 9)):
        for seed, speed in enumerate((100.0, 200.0, 100.0)):
            folder.add(row, seed, **cost(10, 100, seconds, speed=speed))
    short = type(folder)(folder.path / "speed")
    for row, speeds in (("a", (50.0, 50.0)), ("b", (80.0, 80.0))):
        for seed, speed in enumerate(speeds):
            short.add(row, seed, **cost(10, 70, 1, speed=speed))
    found = columns(folder.records, [folder.path])
    assert [one.speed for one in noise(found)] == [0.0, 0.0]
    taken = recommend(found, verdicts(found, 0.01), Question(prefer="speed"))
    assert taken is not None and taken.row == "b"  # a's cells were shorter, b's steps are faster
    assert taken.cost.memory_mib == 100 and taken.cost.round_s == pytest.approx(1 / 80)


def test_of_errors_alone_the_words_have_a_verb_a_margin_and_no_fractions(folder, cost) -> None:
    labels = np.linspace(0, 5, 400)
    for row, off in (("full", 0.1), ("lora", 0.2)):
        for seed in range(3):
            answers = labels + off * np.random.default_rng(seed).normal(size=400)
            given = {"metric": "rmse", "labels": labels, "predictions": answers}
            folder.add(row, seed, **given, **cost(1, 1, 1, speed=100 + seed))
    found = compare_rows(folder.records, [folder.path])
    assert describe_noise(found).startswith("Two runs of one row differ by up to 1% in speed")
    assert "(within 0.01 of the baseline's error)" in describe_marks(found)
    wider = compare_rows(folder.records, [folder.path], Question(margin=0.05))
    assert "(within 0.05 of the baseline's error)" in describe_marks(wider)


def test_what_the_best_epoch_adds_is_of_scores_and_not_of_errors(folder) -> None:
    """An error is in the label's unit: 200 g of a parcel's weight are no 200 points."""
    score = folder.add("a", 0).score["accuracy"]
    given = {"labels": 400 * np.arange(5.0), "predictions": 400 * np.arange(5) + 300}
    folder.add("a", 0, task="grams", metric="rmse", **given)
    for one, (metric, best) in zip(
        folder.records, (("accuracy", score + 0.02), ("rmse", 100.0)), strict=True
    ):
        epoch = {"epoch": 1, "score": {metric: best}}
        folder.records[folder.records.index(one)] = type(one).model_validate(
            one.model_dump() | {"best": epoch}
        )
    found = compare_rows(folder.records, [folder.path])
    assert [one.inflation for one in found.noise] == pytest.approx([0.02, 200.0])
    assert found.inflation == pytest.approx(0.02)
