"""The cheapest row that is not behind the best."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from peftlab.api.export import _choose_row
from peftlab.errors import RequestError
from peftlab.records.costs import costs_of
from peftlab.records.pairs import verdict_between, verdicts
from peftlab.records.question import Question
from peftlab.records.recommend import TaskStanding, _sum_of_scores, recommend
from peftlab.records.table import columns
from peftlab.records.verdicts import compare_rows
from peftlab.report.advice import _reasons, advice

# wrong answers of 400, trained parameters, MiB, seconds
ROWS = {
    "full": (40, 1_000_000, 900, 200),
    "lora": (42, 10_000, 500, 120),
    "bitfit": (42, 20_000, 400, 100),
    "head": (160, 1_000, 200, 60),
}


def fill(folder, cost, rows=ROWS, task: str = "cola", seeds: int = 5) -> None:
    for row, (wrong, *taken) in rows.items():
        for seed in range(seeds):
            folder.add(row, seed, wrong, task=task, **cost(*taken))


def take(folder, **given):
    found = columns(folder.records, [folder.path])
    return recommend(found, verdicts(found), Question(**given))


def test_the_smallest_that_is_as_good_is_taken(folder, cost) -> None:
    fill(folder, cost)
    one = take(folder)
    assert one.row == "lora" and one.prefer == "size"
    cost = {"trained": 10_000, "memory_mib": 500.0, "cell_s": 120.0, "round_s": None}
    assert one.cost.model_dump() == cost
    (task,) = one.tasks
    assert 0 <= task.worse_at_most < 0.05 and task.verdict in {"tie", "unclear", None}


@pytest.mark.parametrize(
    ("prefer", "row"), [("memory", "bitfit"), ("speed", "bitfit"), ("size", "lora")]
)
def test_what_is_cheap_is_asked_for(folder, cost, prefer: str, row: str) -> None:
    fill(folder, cost)
    assert take(folder, prefer=prefer).row == row


def test_a_row_is_not_held_worse_than_one_that_the_limits_left_out(folder, cost) -> None:
    for seed, wrong in enumerate((0, 60, 0, 60, 30)):
        folder.add("full", seed, 10, **cost(1_000_000, 900, 9))
        folder.add("noisy", seed, wrong, **cost(3_000, 9, 9))
        folder.add("small", seed, 34, **cost(1_000, 9, 9))
    assert take(folder).row == "noisy"  # full is shown to be better than small
    assert take(folder, memory_mib=100).row == "small"


def test_by_score_the_best_mean_is_taken(folder, cost) -> None:
    fill(folder, cost, {**ROWS, "full": (20, 1_000_000, 900, 200)})
    one = take(folder, prefer="score")
    assert one.row == "full"
    assert one.tasks[0].model_dump() == {
        "task": "cola",
        "metric": "accuracy",
        "best": "full",
        "verdict": None,
        "rival": "bitfit",
        "rival_verdict": "better",
        "is_behind": False,
        "worse_at_most": 0.0,
        "covers_seeds": True,
        "margin": 0.01,
        "more_seeds": None,
        "ahead": [],
    }
    assert "may be better" not in told(folder, prefer="score")


@pytest.mark.parametrize(
    ("seeds", "suffix"),
    [(1, ", not counting other seeds"), (2, ""), (5, "")],
)
def test_which_other_may_be_better_than_the_best_mean_is_told(
    folder, cost, seeds: int, suffix: str
) -> None:
    """The best of several means is often not the best."""
    fill(folder, cost, {**ROWS, "lora": (41, 10_000, 500, 120)}, seeds=seeds)
    (column,) = columns(folder.records, [folder.path]).values()
    best = max(("full", "lora", "bitfit"), key=lambda row: column[row].mean)
    one = take(folder, prefer="score")
    (of_task,) = one.tasks
    pairs = next(iter(verdicts(columns(folder.records, [folder.path])).values()))
    most = max(verdict_between(pairs, best, row).worst for row in ROWS if row != best)
    assert one.row == best and of_task.worse_at_most == most > 0
    said = f"though {of_task.rival} may be better (by .0"
    assert said in told(folder, prefer="score")
    assert f" at most{suffix})" in told(folder, prefer="score")


def test_worse_on_one_task_is_out(folder, cost) -> None:
    fill(folder, cost)
    fill(folder, cost, {**ROWS, "lora": (160, 10_000, 500, 120)}, task="rte")
    assert take(folder).row == "bitfit"


def test_one_seed_does_not_make_a_bad_row_good(folder, cost) -> None:
    fill(folder, cost, seeds=1)
    one = take(folder)
    assert one.row == "lora"
    assert one.tasks[0].verdict in {"unclear: 1 seed", None}


def test_what_is_unclear_for_the_many_pairs_alone_is_not_taken(folder, cost) -> None:
    """Holm's correction for 66 pairs leaves it unclear; its own interval does not hold 0."""
    rows = {f"row{n:02}": 40 for n in range(11)} | {"head": 50}
    for n, (row, wrong) in enumerate(rows.items()):
        for seed in range(3):
            folder.add(row, seed, wrong + seed, **cost(1_000 if row == "head" else 9_000 + n, 9, 9))
    found = columns(folder.records, [folder.path])
    pairs = verdicts(found)
    (of_task,) = pairs.values()
    one = verdict_between(of_task, "head", "row00")
    assert one.verdict == "unclear" and one.high < 0
    assert recommend(found, pairs).row == "row00"


def test_where_every_row_is_behind_somewhere_that_is_told(folder, cost) -> None:
    for task, wrong in (("cola", (40, 50)), ("rte", (50, 40))):
        rows = dict(zip("ab", wrong, strict=True)) | dict.fromkeys("cdefghijkl", 200)
        for (row, n), seed in itertools.product(rows.items(), range(3)):
            trained = {"a": 1_000, "b": 2_000}.get(row, 100)
            folder.add(row, seed, n + seed, task=task, **cost(trained, 9, 9))
    one = take(folder)
    assert one.row == "a"
    found = [(of_task.verdict, of_task.is_behind) for of_task in one.tasks]
    assert found == [(None, False), ("unclear", True)]
    best, behind = _reasons(one)
    assert best == "it has the best mean on cola"
    assert behind.startswith("behind b on rte (by .0")


def test_within_limits_the_best_that_meets_them_is_what_counts(folder, cost) -> None:
    fill(folder, cost)
    assert take(folder, memory_mib=300).row == "head"
    assert take(folder, minutes=1.9).row == "bitfit"
    assert take(folder, memory_mib=450, minutes=2).row == "bitfit"


def test_costs_are_of_the_conditions_of_most_runs_alone(folder, cost) -> None:
    """A run on another machine is in the scores, and in no mean of seconds and no peak."""
    fill(folder, cost)
    here = folder.records[-1].environment
    elsewhere = here.model_copy(update={"processor": "y"}).model_dump()
    folder.add("lora", 5, 42, environment=elsewhere, **cost(10_000, 9_000, 3_000))
    for row in ("full", "bitfit", "head"):
        folder.add(row, 5, ROWS[row][0], **cost(*ROWS[row][1:]))
    one = take(folder, memory_mib=1_000)
    assert one.row == "lora" and (one.cost.memory_mib, one.cost.cell_s) == (500, 120)


def test_how_long_one_thread_spins_is_no_condition(folder, cost) -> None:
    """It waits for no other; of two threads it is one, and a row without the usual has its own."""
    fill(folder, cost, {"lora": ROWS["lora"], "head": ROWS["head"]}, seeds=2)
    busy = folder.records[-1].environment.model_copy(update={"spin_count": "5000"})
    for seed in (0, 1, 2):
        alone = busy.model_copy(update={"threads": 1}).model_dump()
        folder.add("full", seed, 40, environment=alone, **cost(1_000_000, 900, 200 + 60 * seed))
    assert take(folder, prefer="score").cost.cell_s == 260
    two = busy.model_copy(update={"threads": 2}).model_dump()
    folder.add("bitfit", 0, 42, environment=two, **cost(20_000, 400, 100))
    assert costs_of(columns(folder.records, [folder.path]))["bitfit"].memory_mib == 400


def test_short_rounds_under_other_conditions_leave_a_cell_its_minutes(folder, cost) -> None:
    fill(folder, cost, {"lora": ROWS["lora"]}, seeds=3)
    (one,) = columns(folder.records, [folder.path]).values()
    elsewhere = folder.records[0].environment.model_copy(update={"processor": "y"})
    short = [
        folder.records[0].model_copy(update={"cell": f"round {n}", "environment": elsewhere})
        for n in range(5)
    ]
    runs = dataclasses.replace(one["lora"], rounds=tuple(short))
    (found,) = costs_of({("cola", "accuracy", "x"): {"lora": runs}}).values()
    assert (found.cell_s, found.memory_mib, found.round_s) == (120, 500, 0.01)


@pytest.mark.parametrize("processor", ["x", "y"])
def test_minutes_are_of_the_task_that_takes_longest(folder, cost, processor: str) -> None:
    """Also where that ran on another machine than most."""
    fill(folder, cost, {"lora": (42, 10_000, 500, 120)})
    elsewhere = folder.records[0].environment.model_copy(update={"processor": processor})
    for seed in range(3):
        one = cost(10_000, 500, 1200)
        folder.add("lora", seed, 42, task="rte", environment=elsewhere.model_dump(), **one)
    assert take(folder).cost.cell_s == 1200
    with pytest.raises(RequestError, match="'lora' with 20 minutes"):
        take(folder, minutes=15)


def test_limits_that_nothing_meets_name_the_nearest(folder, cost) -> None:
    fill(folder, cost)
    with pytest.raises(RequestError, match=r"100 MiB and 1\.5 minutes.*'head' with 200 MiB and 1 "):
        take(folder, memory_mib=100, minutes=1.5)


def test_what_was_not_measured_meets_no_limit(folder, cost) -> None:
    folder.add("a", 0)
    with pytest.raises(RequestError, match=r"no row has measured memory.*leave out --memory"):
        take(folder, memory_mib=1e6)
    assert take(folder).row == "a"
    folder.add("b", 0, **cost(10_000, 500, 60))
    with pytest.raises(RequestError, match="the nearest is 'b' with 500 MiB"):
        take(folder, memory_mib=1)
    assert take(folder, memory_mib=1e6).row == "b"


def test_a_row_without_a_score_on_some_task_is_not_taken(folder, cost) -> None:
    fill(folder, cost)
    fill(folder, cost, {"full": ROWS["full"], "bitfit": ROWS["bitfit"]}, task="rte")
    assert take(folder).row == "bitfit"


def test_without_any_score_nothing_is_taken(folder) -> None:
    failure = {"kind": "Diverged", "message": "NaN"}
    folder.add("a", 0, status="failed", score=None, best=None, failure=failure)
    assert take(folder) is None


def test_wrong_wishes_are_refused(folder) -> None:
    folder.add("a", 0)
    with pytest.raises(RequestError, match="unknown preference 'sise'; did you mean 'size'"):
        take(folder, prefer="sise")
    with pytest.raises(RequestError, match="minutes must be above 0, got 0"):
        take(folder, minutes=0)


FAILED = {
    "status": "failed",
    "score": None,
    "best": None,
    "failure": {"kind": "Diverged", "message": "NaN"},
}


def told(folder, **given) -> str:
    """The advice on the folder."""
    return advice(compare_rows(folder.records, [folder.path], Question(**given)))


def test_one_lucky_run_does_not_beat_a_row_that_ran_to_its_end(folder, cost) -> None:
    fill(folder, cost, {"full": ROWS["full"], "bitfit": ROWS["bitfit"]})
    folder.add("lora", 0, 10, **cost(10_000, 500, 120))
    one = take(folder)
    assert one.row == "bitfit" and one.n_done == 5 and not one.n_failed
    assert [(ahead.row, ahead.why, ahead.n_done) for ahead in one.tasks[0].ahead] == [
        ("lora", "runs", 1)
    ]
    assert "of the rows with enough seeds (lora, .9" in told(folder)
    assert ", has 1 seed)" in told(folder)


def test_three_seeds_are_enough_to_be_taken_beside_five(folder, cost) -> None:
    fill(folder, cost, {"head": ROWS["head"]})
    fill(folder, cost, {"lora": ROWS["lora"]}, seeds=3)
    assert take(folder).row == "lora"


def test_a_row_that_is_worse_than_another_is_not_taken_for_a_noisy_best(folder, cost) -> None:
    """Of the best mean nothing is told apart, and yet the table has no mark at what is worse."""
    for seed, wrong in enumerate((0, 60, 0, 60, 20)):
        folder.add("noisy", seed, wrong, **cost(3_000, 9, 9))
        folder.add("steady", seed, 34, **cost(2_000, 9, 9))
        folder.add("small", seed, 60, **cost(1_000, 9, 9))
    pairs = compare_rows(folder.records, [folder.path]).pairs
    assert verdict_between(pairs, "small", "steady").verdict == "worse"
    assert not verdict_between(pairs, "small", "noisy").is_behind
    assert take(folder).row == "steady"


def test_a_row_that_shares_no_seed_with_the_best_is_behind_by_its_mean(folder, cost) -> None:
    for seed in range(3):
        folder.add("lora", seed, 40, **cost(*ROWS["lora"][1:]))
        folder.add("head", seed + 3, 160, **cost(*ROWS["head"][1:]))
    assert take(folder).row == "lora"
    (pair,) = compare_rows(folder.records, [folder.path]).pairs
    assert pair.verdict == "unclear: no seed in common" and pair.difference > 0.2


def test_few_seeds_are_not_in_what_a_row_may_be_worse_by(folder, cost) -> None:
    rows = {"full": (20, 1_000_000, 900, 200), "lora": (22, 10_000, 500, 120)}
    fill(folder, cost, rows, seeds=2)
    assert " at most, not counting other seeds)" in told(folder)
    fill(folder, cost, rows)
    assert "not counting other seeds" not in told(folder)


def test_a_row_with_failed_runs_is_taken_only_where_all_have_some(folder, cost) -> None:
    for row, wrong in (("a", 20), ("b", 40)):
        for seed in range(3):
            folder.add(row, seed, wrong, **cost(1_000, 9, 9))
    folder.add("a", 3, **FAILED)
    one = take(folder)
    assert one.row == "b"
    assert "a failed run (a, .932, 1 failed, though shown to be better)" in told(folder)
    folder.add("b", 3, **FAILED)
    folder.add("b", 4, **FAILED)
    assert take(folder).row == "a"
    assert "1 of its 4 runs failed." in told(folder)


def test_the_best_mean_within_limits_is_not_called_the_best_of_all(folder, cost) -> None:
    fill(folder, cost, {**ROWS, "full": (10, 1_000_000, 900, 200)})
    assert "Take full: it has the best mean. " in told(folder)
    one = told(folder, memory_mib=600.0)
    assert (
        "at most), which has the best mean of the rows within 600 MiB (full, .956, takes 900" in one
    )
    one = told(folder, memory_mib=600.0, minutes=2.0)
    assert "within 600 MiB and 2 minutes (full, .956, takes 900 MiB and 3.33 minutes)" in one


def test_a_row_that_lacks_a_task_is_named_where_it_is_better(folder, cost) -> None:
    fill(folder, cost)
    fill(folder, cost, {"bitfit": ROWS["bitfit"]}, task="rte")
    on_cola, on_rte = told(folder).split("; ")
    assert (
        "the best mean on cola of the rows with a score on every task (not full; not "
        not in on_cola
    )
    assert "the best mean on cola of the rows with a score on every task (not full" in on_cola
    assert on_rte.startswith("it has the best mean on rte. ")
    for seed in range(5):
        folder.add("full", seed, task="rte", **cost(9, 9, 9), **FAILED)
    assert "with a score on every task (not full, 5 failed" in told(folder)


def test_collapsed_runs_are_told_in_the_advice(folder, cost) -> None:
    flat = {"warnings": ["collapsed: no better than always answering 'yes'"]}
    for seed in range(3):
        folder.add("a", seed, 20, **cost(1_000, 9, 9), **(flat if seed else {}))
        folder.add("b", seed, 150, **cost(1_000, 9, 9), **flat)
    assert "2 of its 3 runs collapsed: no better than a constant answer." in told(folder)
    folder.add("a", 0, 20, **cost(1_000, 9, 9), **flat)
    del folder.records[0]
    assert "Every run of every row collapsed: none is better than a constant" in told(folder)
    for seed in range(3):
        folder.add("a", seed, 20, task="rte", **cost(1_000, 9, 9), **({} if seed else flat))
        folder.add("b", seed, 20, task="rte", **cost(2_000, 9, 9), **({} if seed else flat))
    said = told(folder)
    assert "Every run of every row collapsed on cola: " in said
    assert "1 more of its 6 runs collapsed: no better than a constant answer." in said


def test_a_row_with_collapsed_runs_is_taken_only_where_all_have_some(folder, cost) -> None:
    """`a` is smaller, and its spread too wide for it to be shown to be worse."""
    flat = {"warnings": ["collapsed: no better than always answering 'yes'"]}
    for seed in range(3):
        folder.add("a", seed, 150 if seed else 10, **cost(1_000, 9, 9), **({} if seed else flat))
        folder.add("b", seed, 40, **cost(2_000, 9, 9))
    assert take(folder).row == "b"
    folder.add("c", 0, 1, **cost(1_000, 9, 9), task="rte", **flat)
    for row, seed in itertools.product("ab", range(3)):
        folder.add(row, seed, 1, **cost(1_000, 9, 9), task="rte", **flat)
    assert take(folder).row == "b"


def test_a_rate_that_dev_has_chosen_is_told(folder, cost) -> None:
    for seed, rate in itertools.product(range(3), (1e-3, 2e-3)):
        lora = {"name": "lora", "label": f"lora{rate}", "settings": {}, "targets": [], "notes": []}
        folder.add(f"lora{rate}", seed, 40, training={"lr": rate}, method=lora, **cost(1, 9, 9))
    chosen = "Its learning rate was chosen on dev"
    assert take(folder).rate_from_dev and chosen in told(folder)
    carved = [
        one.model_copy(
            update={"task": one.task.model_copy(update={"source": "made, a fifth of train"})}
        )
        for one in folder.records
    ]
    assert chosen not in advice(compare_rows(carved, [folder.path]))
    assert not take_of([one for one in folder.records if one.training["lr"] == 1e-3], folder)


def test_the_rate_is_dev_s_choice_also_where_the_other_rates_are_not_shown(folder, cost) -> None:
    for lr, wrong in ((1e-4, 60), (1.5e-3, 40)):
        part = {"name": "lora", "label": f"lora[lr={lr}]", "settings": {}, "targets": []}
        part["notes"] = []
        given = {"training": {"lr": lr}, "method": part, **cost(1, 9, 9)}
        for seed in range(3):
            folder.add(f"lora{lr}", seed, wrong, **given)
    hidden, shown = folder.records[:3], folder.records[3:]
    for rest, told_so in ((hidden, True), ([], False)):
        found = compare_rows(shown, [folder.path], unrequested=rest).recommendation
        assert found is not None and found.rate_from_dev == told_so
    names = {one.cell: (one.method.label, one.method.label) for one in folder.records}
    for method in (None, "lora[lr=0.0015]"):
        row, from_dev = _choose_row(folder.records, names, method, folder.path)
        assert row == shown and from_dev


def take_of(records, folder) -> bool:
    found = columns(records, [folder.path])
    one = recommend(found, verdicts(found))
    return one.rate_from_dev


def price(folder, cost, unit: float) -> None:
    """Two rows on a task whose errors are in this unit; neither is shown to be worse."""
    numbers = np.arange(400.0) * unit
    for row, trained, draw in (("a", 1_000, 10), ("b", 10, 1_000)):
        for seed in range(3):
            noise = np.random.default_rng([seed, draw]).normal(0, unit, 400)
            given = {"labels": numbers, "predictions": numbers + noise}
            folder.add(row, seed, task="price", metric="rmse", **given, **cost(trained, 9, 9))


def test_how_much_worse_it_may_be_is_told_in_the_metric_s_unit(folder, cost) -> None:
    price(folder, cost, 10_000.0)
    (task,) = take(folder, prefer="size").tasks
    assert task.worse_at_most > 1_000 and f"(by {task.worse_at_most:,.0f} at most)" in told(folder)


def test_over_many_tasks_the_worst_is_that_of_the_largest_share_of_its_margin(folder, cost) -> None:
    fill(folder, cost)
    one = take(folder)

    def of(task: str, metric: str, worst: float | None, margin: float) -> TaskStanding:
        told = {"best": "full", "verdict": "unclear", "is_behind": False, "more_seeds": None}
        return TaskStanding(task=task, metric=metric, worse_at_most=worst, margin=margin, **told)

    tasks = [of(task, "accuracy", 0.02, 0.01) for task in ("cola", "rte", "mrpc")]
    tasks.append(of("price", "rmse", 15_234.2, 20_000.0))
    (told_together,) = _reasons(one.model_copy(update={"tasks": tasks}))
    assert told_together == "not shown to be worse on 4 (by .020 at most, on cola)"
    tasks.append(of("stsb", "pearson", None, 0.01))
    (told_together,) = _reasons(one.model_copy(update={"tasks": tasks}))
    assert told_together == "not shown to be worse on 5"  # by how much is not known


@pytest.mark.parametrize("n_tasks", [1, 4])
def test_over_many_tasks_too_the_row_that_may_be_better_is_named(folder, cost, n_tasks) -> None:
    rows = {"big": (40, 10_000, 9, 9), "small": (42, 10, 9, 9)}
    for n, task in enumerate(("cola", "rte", "mrpc", "sst2")[:n_tasks]):
        fill(folder, cost, rows | {"small": (42 - n % 2, 10, 9, 9)}, task=task, seeds=3)
    worst = max(one.worse_at_most for one in take(folder, prefer="score").tasks)
    on = ", on " if n_tasks > 1 else ")"
    said = f", though small may be better (by {worst:.3f}".replace("0.", ".") + f" at most{on}"
    assert said in told(folder, prefer="score")


@pytest.mark.parametrize("order", [1, -1])
def test_of_rows_that_cost_the_same_the_best_is_taken(folder, cost, order: int) -> None:
    """LoRA's relatives train the same number, and all rates of one: the first named was taken."""
    for row, wrong in [("a", 48), ("b", 40), ("c", 44)][::order]:
        for seed in range(3):
            folder.add(row, seed, wrong, **cost(1_000, 9, 9))
    assert take(folder).row == "b"


def test_a_row_that_is_better_on_the_seeds_of_both_is_not_called_not_worse(folder, cost) -> None:
    for seed in range(8):
        folder.add("a", seed, 80 if seed < 3 else 10, **cost(2_000, 9, 9))
    for seed in range(3):
        folder.add("b", seed, 50, **cost(1_000, 9, 9))
    one = take(folder)
    assert (one.row, one.tasks[0].best, one.tasks[0].verdict) == ("b", "a", "better")
    assert "Take b: better than a on the seeds of both, whose mean over all is best" in told(folder)


def test_where_no_row_ran_on_every_task_that_is_told(folder, cost) -> None:
    fill(folder, cost, {name: ROWS[name] for name in ("full", "lora")})
    fill(folder, cost, {name: ROWS[name] for name in ("head", "bitfit")}, task="rte")
    assert told(folder).startswith("No row has a score on every task")


def test_speed_is_of_rounds_only_where_all_had_their_turn_in_the_same(folder, cost) -> None:
    fill(folder, cost, {name: ROWS[name] for name in ("full", "lora")}, seeds=3)
    (task, column), *_ = columns(folder.records, [folder.path]).items()

    def row(turns: dict[str, str]) -> str:
        measured = {}
        for name, runs in column.items():
            (first, *_) = runs.records
            speed = {"examples_per_s": 900.0 if name == "full" else 90.0, "turn": turns[name]}
            short = first.model_copy(update={"speed": first.speed.model_copy(update=speed)})
            measured[name] = dataclasses.replace(runs, rounds=(short,))
        found = {task: measured}
        one = recommend(found, verdicts(found), Question(prefer="speed"))
        assert one is not None
        return one.row

    assert row({"full": "x", "lora": "x"}) == "full"
    assert row({"full": "x", "lora": "y"}) == "lora"  # by whole cells, of 200 and 120 s


def test_a_disturbed_round_does_not_decide_what_is_fast(folder, cost) -> None:
    fill(folder, cost, {"full": ROWS["full"]}, seeds=3)
    (task, column), *_ = columns(folder.records, [folder.path]).items()
    (first, *_) = column["full"].records
    speeds = [first.speed.model_copy(update={"examples_per_s": x}) for x in (100.0, 20.0, 110.0)]
    rounds = tuple(first.model_copy(update={"speed": speed}) for speed in speeds)
    runs = {"full": dataclasses.replace(column["full"], rounds=rounds)}
    assert costs_of({task: runs})["full"].round_s == pytest.approx(0.01)


def test_speed_over_tasks_is_a_mean_of_each_one_s_rounds(folder, cost) -> None:
    """One median over all would be that of a fast task's slowest round, or of one task alone."""
    speeds = {"short": (300.0, 20.0, 300.0), "long": (50.0, 50.0, 50.0), "middle": (100.0,) * 3}
    measured = {}
    for task in speeds:
        fill(folder, cost, {"full": ROWS["full"]}, task=task, seeds=3)
    for key, column in columns(folder.records, [folder.path]).items():
        (first, *_) = column["full"].records
        taken = [first.speed.model_copy(update={"examples_per_s": x}) for x in speeds[key[0]]]
        rounds = tuple(first.model_copy(update={"speed": speed}) for speed in taken)
        measured[key] = {"full": dataclasses.replace(column["full"], rounds=rounds)}
    expected = (1 / 300 + 1 / 50 + 1 / 100) / 3
    assert costs_of(measured)["full"].round_s == pytest.approx(expected)


@pytest.mark.parametrize("order", ["xyz", "yxz"])
def test_of_two_best_means_the_order_of_rows_decides_nothing(folder, cost, order: str) -> None:
    """Row z is behind x, whose answers it shares but for nine, and not shown to be behind y."""
    truth = np.arange(400) % 2
    wrong = {"x": range(36), "y": range(200, 236), "z": range(45)}
    for row in order:
        predictions = truth.copy()
        predictions[list(wrong[row])] = 1 - truth[list(wrong[row])]
        price = {"x": 500, "y": 400, "z": 10}[row]
        folder.add(row, 0, labels=truth, predictions=predictions, **cost(price, 9, 9))
    assert take(folder).row == "y"


def test_the_best_score_over_tasks_is_by_each_task_s_own_scale(folder, cost) -> None:
    """.1 of accuracy is a fifth of what lies between the baseline and perfect, .3 of rmse less."""
    truth = np.arange(400.0) % 7
    for row, wrong, off in (("a", 40, 0.5), ("b", 80, 0.2)):
        for seed in range(3):
            folder.add(row, seed, wrong, task="one")
            guesses = truth + off * (-1) ** np.arange(400)
            folder.add(row, seed, task="two", metric="rmse", labels=truth, predictions=guesses)
    found = columns(folder.records, [folder.path])
    means = {row: [of[row].mean for of in found.values()] for row in "ab"}
    assert means["a"][0] - means["b"][0] == pytest.approx(0.1, abs=0.02)
    assert means["a"][1] - means["b"][1] == pytest.approx(0.3, abs=0.02)
    assert _sum_of_scores("a", found) > _sum_of_scores("b", found)


def test_two_data_sets_of_one_name_are_told_apart_in_the_advice(folder, cost) -> None:
    rows = {"full": (20, 1_000_000, 900, 200), "lora": (21, 10_000, 500, 120)}
    fill(folder, cost, rows)
    for record in list(folder.records):
        task = record.task.model_copy(update={"sha256": "ef" * 32})
        again = record.model_copy(update={"cell": f"{record.cell}-b", "task": task})
        folder.records.append(again)
        for kind, end in (("records", "json"), ("predictions", "jsonl")):
            path = folder.path / kind / f"{record.cell}.{end}"
            path.with_name(f"{again.cell}.{end}").write_text(path.read_text())
    found = compare_rows(folder.records, [folder.path]).recommendation
    assert found is not None
    assert sorted(one.task for one in found.tasks) == ["cola (cola)", "cola (efefefef)"]


def test_the_peak_is_the_highest_of_cells_and_rounds(folder, cost) -> None:
    """A limit that a round has exceeded is not kept to."""
    fill(folder, cost, {"full": ROWS["full"]}, seeds=3)
    (task, column), *_ = columns(folder.records, [folder.path]).items()
    (first, *_) = column["full"].records
    most = first.memory.model_copy(update={"peak_mib": first.memory.peak_mib + 50})
    rounds = (first.model_copy(update={"memory": most}),)
    found = costs_of({task: {"full": dataclasses.replace(column["full"], rounds=rounds)}})
    assert found["full"].memory_mib == most.peak_mib
