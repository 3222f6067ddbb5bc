"""Verdicts of rows whose answers are made so that the verdict is known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import stats

import peftlab
from peftlab.records.crossed import Shared, holm
from peftlab.records.pairs import Verdict, verdicts
from peftlab.records.table import columns


def of(folder, margin: float = 0.01) -> dict[tuple[str, str], Verdict]:
    found = verdicts(columns(folder.records, [folder.path]), margin)
    return {(one.a, one.b): one for task in found.values() for one in task}


def fill(folder, rows: dict[str, int], seeds=range(5), **given) -> None:
    for row, wrong in rows.items():
        for seed in seeds:
            folder.add(row, seed, wrong, **given)


def test_better_worse_and_tie(folder) -> None:
    fill(folder, {"good": 40, "bad": 160, "like bad": 160})
    found = of(folder, margin=0.03)
    assert found["good", "bad"].verdict == "better"
    assert found["good", "bad"].of("bad").verdict == "worse"
    assert found["bad", "like bad"].verdict == "tie"
    one = found["good", "bad"]
    assert one.seeds == [0, 1, 2, 3, 4] and one.margin == 0.03 and one.metric == "accuracy"
    scores = {r.cell: r.score["accuracy"] for r in folder.records}
    each = [scores[f"m-cola-good-s{s}"] - scores[f"m-cola-bad-s{s}"] for s in range(5)]
    assert one.difference == pytest.approx(np.mean(each))
    assert one.low < one.difference < one.high and one.p < 0.01


def test_within_the_margin_is_a_tie_even_where_it_is_no_chance(folder) -> None:
    fill(folder, {"good": 40, "bad": 60})
    assert of(folder)["good", "bad"].verdict == "better"
    assert of(folder, margin=0.2)["good", "bad"].verdict == "tie"


def test_too_wide_for_a_tie_is_unclear_and_says_how_many_seeds_it_takes(folder) -> None:
    fill(folder, {"a": 40, "b": 40}, seeds=range(3))
    wide = of(folder)["a", "b"]
    assert wide.low < 0 < wide.high
    margin = 0.9 * max(-wide.low, wide.high)
    one = of(folder, margin)["a", "b"]
    assert one.verdict == "unclear"
    assert one.more_seeds is not None and 1 <= one.more_seeds < 20
    assert of(folder, margin=0.0001)["a", "b"].more_seeds is None


@pytest.mark.parametrize(("n", "words"), [(1, "unclear: 1 seed"), (2, "unclear: 2 seeds")])
def test_few_seeds_are_never_a_verdict(folder, n: int, words: str) -> None:
    fill(folder, {"good": 40, "bad": 160}, seeds=range(n))
    one = of(folder)["good", "bad"]
    assert one.verdict == words and one.p is None and one.more_seeds == 3 - n
    assert 0 < one.low < one.difference < one.high
    assert not one.is_behind and one.of("bad").is_behind  # for lack of better


@pytest.mark.parametrize(
    ("rows", "n", "covers"),
    [("ab", 1, False), ("abc", 1, False), ("ab", 2, False), ("abc", 2, True), ("ab", 3, True)],
)
def test_an_interval_covers_seeds_where_they_say_something(
    folder, rows: str, n: int, covers: bool
) -> None:
    fill(folder, dict.fromkeys(rows, 40), seeds=range(n))
    assert {one.covers_seeds for one in of(folder).values()} == {covers}


def test_one_seed_s_interval_is_that_of_its_examples(folder) -> None:
    fill(folder, {"good": 40, "bad": 60}, seeds=[0])
    one = of(folder)["good", "bad"]
    right = [
        np.array([row["label"] == row["prediction"] for row in rows], float)
        for rows in (lines(folder, "good"), lines(folder, "bad"))
    ]
    expected = stats.ttest_1samp(right[0] - right[1], 0).confidence_interval()
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))


def lines(folder, row: str) -> list[dict]:
    text = (folder.path / "predictions" / f"m-cola-{row}-s0.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_only_seeds_that_both_rows_have_are_compared(folder) -> None:
    fill(folder, {"a": 40}, seeds=range(5))
    fill(folder, {"b": 160}, seeds=range(2, 9))
    assert of(folder)["a", "b"].seeds == [2, 3, 4]
    fill(folder, {"c": 160}, seeds=[11])
    assert of(folder)["a", "c"].verdict == "unclear: no seed in common"
    assert of(folder)["a", "c"].difference == pytest.approx(0.3, abs=0.02)  # of the means


def test_without_predictions_the_difference_stays_and_nothing_is_sure(folder) -> None:
    fill(folder, {"a": 40})
    fill(folder, {"b": 160}, write=False)
    one = of(folder)["a", "b"]
    assert one.verdict == "unclear: no predictions"
    assert one.difference == pytest.approx(0.3, abs=0.02)
    assert (one.low, one.high, one.p) == (None, None, None)
    assert one.of("b").is_behind


@pytest.mark.parametrize("spoil", ["{", "", '{"label": 1, "prediction": 1}\n'])
def test_damaged_predictions_are_none(folder, spoil: str) -> None:
    fill(folder, {"a": 40, "b": 160}, seeds=[0])
    (folder.path / "predictions" / "m-cola-a-s0.jsonl").write_text(spoil)
    assert of(folder)["a", "b"].verdict == "unclear: no predictions"


def test_predictions_of_another_run_are_none(folder) -> None:
    fill(folder, {"a": 40, "b": 160}, seeds=[0])
    files = [folder.path / "predictions" / f"m-cola-{row}-s0.jsonl" for row in "ab"]
    files[0].write_text(files[1].read_text())
    assert of(folder)["a", "b"].verdict == "unclear: no predictions"


def test_one_row_has_no_pairs(folder) -> None:
    fill(folder, {"a": 40})
    assert of(folder) == {}


def test_tasks_are_never_paired_with_one_another(folder) -> None:
    fill(folder, {"a": 40, "b": 60}, task="one")
    fill(folder, {"a": 40, "b": 60}, task="other")
    found = verdicts(columns(folder.records, [folder.path]))
    assert [len(of_task) for of_task in found.values()] == [1, 1]


def test_of_an_error_less_is_better_and_the_margin_is_of_the_baseline_s(folder) -> None:
    truth = np.random.default_rng(1).normal(size=400)
    for row, sd in (("good", 0.1), ("bad", 1.0)):
        for seed in range(4):
            noise = np.random.default_rng([seed, 1]).normal(0, sd, 400)
            folder.add(row, seed, metric="rmse", labels=truth, predictions=truth + noise)
    one = of(folder)["good", "bad"]
    assert one.difference < 0 and one.verdict == "better"
    assert one.margin == pytest.approx(0.02)  # the baseline's error is 2
    assert one.worst == 0.0 and one.of("bad").worst == pytest.approx(-one.low)


def test_p_is_corrected_for_the_pairs_of_the_task_and_the_interval_is_not(folder) -> None:
    fill(folder, {"a": 40, "b": 62})
    alone = of(folder)["a", "b"]
    fill(folder, {"c": 55})
    fill(folder, {"a": 40, "b": 160}, task="other")  # no part of it
    (column, _) = columns(folder.records, [folder.path]).values()
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    crossed = [column[one].crossed(minus=column[other]) for one, other in pairs]
    shared = Shared.of(np.array([c.seed for c in crossed]), [(0, 1), (0, 2), (1, 2)])
    found = of_task(folder, "cola")
    expected = holm([float(c.p(shared)) for c in crossed])
    assert [one.p for one in found] == pytest.approx(expected)
    assert (found[0].low, found[0].high) == (alone.low, alone.high)


def of_task(folder, task: str) -> list[Verdict]:
    found = verdicts(columns(folder.records, [folder.path]))
    return next(pairs for key, pairs in found.items() if key[0] == task)


def test_pairs_that_can_t_be_decided_take_nothing_from_the_others(folder) -> None:
    fill(folder, {"a": 40, "b": 62})
    alone = of(folder)["a", "b"].p
    fill(folder, dict.fromkeys("cdefgh", 40), seeds=[0])
    assert of(folder)["a", "b"].p == alone


def test_rows_that_are_not_asked_for_are_corrected_for(folder) -> None:
    fill(folder, {"a": 40, "b": 62, "c": 55, "d": 70})
    every = columns(folder.records, [folder.path])
    requested, unrequested = (
        {task: {row: column[row] for row in rows} for task, column in every.items()}
        for rows in ("ab", "cd")
    )
    ((one,),) = verdicts(requested, unrequested=unrequested).values()
    assert one == of(folder)["a", "b"]
    assert one.p != verdicts(requested)[next(iter(requested))][0].p


def test_a_collapsed_row_takes_nothing_from_pairs_of_others(folder) -> None:
    """Its variance over seeds is of no use to them; with it no pair was ever decided."""
    fill(folder, {"a": 40, "b": 58, "c": 55})
    before = of(folder)["a", "b"]
    fill(folder, {"d": 50}, seeds=range(4))
    folder.add("d", 4, predictions=np.ones(400, int), warnings=["collapsed: no better than 'yes'"])
    found = of(folder)
    assert before.p < found["a", "b"].p < 2.1 * before.p  # six pairs for three
    assert found["a", "d"].verdict == "unclear"


def test_a_collapsed_run_counts_like_any_other(folder) -> None:
    fill(folder, {"a": 40, "b": 40})
    folder.add("b", 5, predictions=np.ones(400, int), warnings=["collapsed: no better than 'yes'"])
    folder.add("a", 5, 40)
    one = of(folder)["a", "b"]
    assert one.seeds == list(range(6))
    assert one.difference > 0.05  # a sixth of .4


def test_a_failed_run_has_no_score_to_pair(folder) -> None:
    fill(folder, {"a": 40, "b": 40})
    failure = {"kind": "Diverged", "message": "NaN"}
    folder.add("b", 5, status="failed", score=None, best=None, failure=failure)
    folder.add("a", 5, 40)
    assert of(folder)["a", "b"].seeds == list(range(5))


def test_how_many_seeds_settle_a_pair_is_foretold_at_the_level_of_all_pairs(folder) -> None:
    fill(folder, {"a": 40, "b": 52, "c": 47, "d": 49}, seeds=range(3))
    (column,) = columns(folder.records, [folder.path]).values()
    rows = "abcd"
    crossed = {
        (one, other): column[one].crossed(minus=column[other])
        for one, other in itertools.combinations(rows, 2)
    }
    numbers = list(itertools.combinations(range(4), 2))
    shared = Shared.of(np.array([c.seed for c in crossed.values()]), numbers)
    found = of(folder, margin=0.001)
    unclear = {pair: one for pair, one in found.items() if one.verdict == "unclear"}
    foretold = {pair: crossed[pair].seeds_to_settle(0.001, 0.05 / 6, shared) for pair in unclear}
    assert {pair: one.more_seeds for pair, one in unclear.items()} == foretold
    alone = {pair: crossed[pair].seeds_to_settle(0.001, 0.05, shared) for pair in unclear}
    assert alone != foretold


def test_of_a_cell_in_two_folders_the_answers_are_those_of_its_later_record(
    folder, tmp_path
) -> None:
    fill(folder, {"a": 40, "b": 40})
    later = type(folder)(tmp_path / "later")
    fill(later, {"a": 30, "b": 160})
    found = peftlab.verdicts([folder.path, later.path])
    assert found == peftlab.verdicts(later.path)
    assert found.pairs[0].verdict == "better"


@pytest.mark.parametrize(
    ("metric", "difference", "is_behind"),
    [
        ("accuracy", -0.02, True),
        ("accuracy", -0.005, False),
        ("rmse", 0.02, True),
        ("rmse", 0.005, False),
        ("rmse", -0.02, False),
    ],
)
def test_without_an_interval_a_row_is_behind_by_more_than_the_margin(
    metric: str, difference: float, is_behind: bool
) -> None:
    numbers = {"difference": difference, "low": None, "high": None, "p": None, "margin": 0.01}
    words = {"task": "t", "sha256": "", "verdict": "unclear: no predictions", "seeds": []}
    assert Verdict(metric=metric, a="x", b="y", **numbers, **words).is_behind == is_behind
