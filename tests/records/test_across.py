"""Means over tasks, and probabilities of improvement that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from peftlab.records.across import improvement, improvements, overall
from peftlab.records.pairs import verdicts
from peftlab.records.table import best_row, columns, scale


def fill(folder, row: str, wrong: int, task: str, seeds: int = 4, **given) -> None:
    for seed in range(seeds):
        folder.add(row, seed, wrong, task=task, **given)


def over(folder):
    found = columns(folder.records, [folder.path])
    return {one.row: one for one in overall(found, verdicts(found))}


def test_a_score_is_scaled_between_baseline_and_perfect(folder) -> None:
    fill(folder, "a", 40, "one")
    fill(folder, "a", 160, "other")
    runs = columns(folder.records, [folder.path])
    scores = [np.mean([run.score for run in c["a"].by_seed.values()]) for c in runs.values()]
    one = over(folder)["a"]
    assert one.mean == pytest.approx(np.mean([(score - 0.5) / 0.5 for score in scores]))
    assert one.low < one.mean < one.high < one.mean + 0.15


def test_the_interval_of_a_mean_is_narrower_than_a_task_s(folder) -> None:
    for task in ("one", "two", "three", "four"):
        fill(folder, "a", 40, task, seeds=10)
    one = over(folder)["a"]
    column = next(iter(columns(folder.records, [folder.path]).values()))
    low, high = column["a"].crossed().interval()
    assert one.high - one.low < 2 * (high - low) * 0.75  # scaled: a half of accuracy is all


def test_equal_tasks_give_a_task_s_interval_over_the_square_root_of_their_number(folder) -> None:
    """Each is the same to the bit, and its seeds and examples are many: 1.96 standard errors."""
    for task in ("one", "other"):
        fill(folder, "a", 40, task, seeds=30)
    one = over(folder)["a"]
    column = next(iter(columns(folder.records, [folder.path]).values()))
    low, high = column["a"].crossed().interval()
    scaled = (high - low) / 0.5  # half of accuracy is the span from the baseline to perfect
    assert one.high - one.low == pytest.approx(scaled / 2**0.5, rel=0.03)


def test_errors_are_scaled_from_the_baseline_s_to_none(folder) -> None:
    record = folder.add(
        "a", 0, metric="rmse", labels=np.arange(5.0), predictions=np.arange(5) + 0.5
    )
    assert scale(record.task) == (-2.0, 2.0)
    assert scale(record.task.model_copy(update={"baselines": {}})) is None


def test_a_score_without_a_baseline_or_with_a_perfect_one_is_its_own_scale(folder) -> None:
    task = folder.add("a", 0).task
    assert scale(task) == (0.5, 0.5)
    assert scale(task.model_copy(update={"baselines": {}})) == (0.0, 1.0)
    perfect = {"majority": {"accuracy": 1.0}}
    assert scale(task.model_copy(update={"baselines": perfect})) == (0.0, 1.0)


def test_a_row_that_lacks_a_task_has_no_mean(folder) -> None:
    fill(folder, "a", 40, "one")
    fill(folder, "a", 40, "other")
    fill(folder, "b", 40, "one")
    assert over(folder)["b"].mean is None and over(folder)["b"].n_tasks == 1
    assert over(folder)["a"].mean is not None


def test_one_task_has_nothing_to_take_together(folder) -> None:
    fill(folder, "a", 40, "one")
    fill(folder, "b", 40, "one")
    assert over(folder) == {} and improvements(columns(folder.records, [])) == []


def test_among_the_best_is_who_is_not_shown_worse(folder) -> None:
    for task, wrong in (("one", (40, 40, 160)), ("other", (40, 160, 160))):
        for row, n in zip("abc", wrong, strict=True):
            fill(folder, row, n, task)
    assert {row: one.n_best for row, one in over(folder).items()} == {"a": 2, "b": 1, "c": 0}


def test_of_an_error_the_best_row_has_the_least(folder) -> None:
    for row, off in (("a", 0.5), ("b", 0.1)):
        guesses = np.arange(5) + off
        folder.add(row, 0, metric="rmse", labels=np.arange(5.0), predictions=guesses)
    (column,) = columns(folder.records, [folder.path]).values()
    assert best_row(column) == "b"


def test_improvement_is_mann_and_whitney_s_u_over_the_pairs() -> None:
    draw = np.random.default_rng(0)
    tasks = [(draw.normal(0.3, 1, 12).round(1), draw.normal(0, 1, 10).round(1)) for _ in range(3)]
    expected = np.mean([mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in tasks])
    probability, low, high = improvement(tasks)
    assert probability == pytest.approx(expected)
    assert 0 <= low < probability < high <= 1


def test_who_always_wins_has_one_and_no_interval_and_equals_have_a_half() -> None:
    """Near 1 too many resamples agree: 20 % of intervals at .98 had no width."""
    assert improvement([(np.arange(20.0) + 20, np.arange(20.0))]) == (1.0, None, None)
    assert improvement([(np.ones(3), np.ones(3))])[0] == 0.5


def test_few_seeds_have_no_interval() -> None:
    """Every resample of three that lie above three others says the same."""
    assert improvement([(np.arange(9.0) + 5, np.arange(20.0))])[1:] == (None, None)
    assert None not in improvement([(np.arange(10.0) + 5, np.arange(20.0))])


def test_improvement_of_errors_is_towards_less(folder) -> None:
    for task in ("one", "other"):
        for row, off in (("a", 0.5), ("b", 0.1)):
            for seed in range(2):
                guesses = np.arange(5) + off + seed / 100
                given = {"labels": np.arange(5.0), "predictions": guesses}
                folder.add(row, seed, task=task, metric="rmse", **given)
    (one,) = improvements(columns(folder.records, [folder.path]))
    assert (one.a, one.b, one.probability, one.n_tasks) == ("a", "b", 0.0, 2)


def test_a_tie_with_the_best_is_among_the_best_whatever_else_it_is(folder) -> None:
    """As its mark has it."""
    for task in ("one", "other"):
        fill(folder, "best", 40, task, seeds=10)
        fill(folder, "near", 42, task, seeds=10)
    found = columns(folder.records, [folder.path])
    pairs = verdicts(found, margin=0.05)
    assert {one.verdict for of in pairs.values() for one in of} == {"tie"}
    beaten = {"a": "third", "b": "near", "verdict": "better"}
    worse = {task: [*of, of[0].model_copy(update=beaten)] for task, of in pairs.items()}
    assert {one.row: one.n_best for one in overall(found, worse)} == {"best": 2, "near": 2}


def test_worse_than_any_row_is_not_among_the_best(folder) -> None:
    """As the table's marks have it: an unsteady best row tells nothing apart."""
    for task in ("cola", "rte"):
        for seed, wrong in enumerate((0, 60, 0, 60, 20)):
            folder.add("noisy", seed, wrong, task=task)
            folder.add("steady", seed, 34, task=task)
            folder.add("weak", seed, 60, task=task)
    assert {row: one.n_best for row, one in over(folder).items()} == {
        "noisy": 2,
        "steady": 2,
        "weak": 0,
    }


def test_where_one_task_lacks_predictions_the_mean_has_no_interval(folder) -> None:
    fill(folder, "a", 40, "one")
    fill(folder, "a", 160, "other", write=False)
    one = over(folder)["a"]
    assert one.mean is not None and one.n_tasks == 2
    assert (one.low, one.high) == (None, None)
