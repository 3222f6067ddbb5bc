"""Which records make a row, and statistics over its seeds, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.bench.retention import drop_beaten
from peftlab.records.rows import (
    finite_values,
    group,
    labels,
    mean,
    sample_sd,
    shared_rounds,
    speed_key,
    task_label,
)
from peftlab.records.store import Store

scores = st.lists(st.floats(-1, 1), min_size=2, max_size=8)


@given(scores)
def test_mean_and_sd_equal_numpys(values: list[float]) -> None:
    assert mean(values) == pytest.approx(np.mean(values))
    assert sample_sd(values) == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert sample_sd([0.9]) is None
    assert sample_sd([]) is None
    assert mean([]) is None


def test_equal_values_have_a_spread_of_nothing() -> None:
    assert sample_sd([0.5, 0.5]) == 0.0


def test_what_was_not_measured_is_left_out() -> None:
    assert finite_values([0.0, None, math.nan, math.inf, 2.0]) == [0.0, 2.0]


def test_an_edited_method_of_one_s_own_is_another_row(folder: Any) -> None:
    part = {"name": "mine", "label": "mine", "settings": {}, "targets": [], "notes": []}
    for code, seeds in (("1" * 64, 3), ("2" * 64, 2)):
        for seed in range(seeds):
            method = part | {"source_sha256": code}
            folder.add("mine", seed, cell=f"{code[:4]}-{seed}", method=method)
    rows = group(folder.records)
    assert [len(of_row) for of_row in rows.values()] == [3, 2]
    assert list(labels(rows).values()) == ["mine (code 11111111)", "mine (code 22222222)"]


def test_a_failed_run_takes_no_done_one_s_place(folder: Any) -> None:
    failure = {"kind": "OutOfMemory", "message": "no room"}
    folder.add("lora", 0)
    folder.add("lora", 0, cell="again", status="failed", score=None, best=None, failure=failure)
    (row,) = group(folder.records).values()
    assert [one.status for one in row] == ["done"]


def test_a_failed_run_of_another_search_is_not_replaced_by_the_first_search_s(folder: Any) -> None:
    """Its done run is of another rate, which trials had found before: that would mix the two."""
    part = {"name": "lora", "label": "lora", "settings": {}, "targets": [], "notes": []}
    tuned = {"method": part | {"tuned": {"trials": 6, "space": ["lr"]}}}
    failure = {"kind": "OutOfMemory", "message": "no room"}
    folder.add("lora", 0, training={"lr": 5e-4}, **tuned)
    broken = {"status": "failed", "score": None, "best": None, "failure": failure}
    folder.add("lora", 0, cell="again", training={"lr": 5e-3}, **tuned, **broken)
    (row,) = group(folder.records).values()
    assert [one.status for one in row] == ["failed"]


def test_tuned_and_untuned_rows_of_one_name_are_told_apart_by_what_they_are(folder: Any) -> None:
    part = {"name": "lora", "label": "lora", "settings": {}, "targets": [], "notes": []}
    tuned = {"trials": 6, "validation": 0.1, "space": ["lr"]}
    ways: list[tuple[dict[str, Any], float]] = [({}, 1e-4), ({}, 1e-3)]
    ways += [(tuned, 5e-4), (tuned | {"validation": 0.2}, 5e-4)]
    for number, (how, lr) in enumerate(ways):
        method = part | {"tuned": how}
        folder.add("lora", 0, cell=f"c{number}", method=method, training={"lr": lr})
    assert list(labels(group(folder.records)).values()) == [
        "lora (lr 0.0001, not tuned)",
        "lora (lr 0.001, not tuned)",
        "lora (6 trials of lr on 0.1 of train)",
        "lora (6 trials of lr on 0.2 of train)",
    ]


def test_what_an_earlier_search_found_is_no_seed_of_what_the_last_one_did(folder: Any) -> None:
    part = {"name": "lora", "label": "lora", "settings": {}, "targets": [], "notes": []}
    tuned = {"method": part | {"tuned": {"trials": 6, "space": ["lr"]}}}
    for cell, seed, lr, task in (
        *(("a", 0, 5e-6, "cola"), ("b", 1, 5e-6, "cola"), ("c", 0, 5e-6, "mrpc")),
        ("d", 2, 2e-4, "cola"),
    ):
        folder.add("lora", seed, cell=cell, task=task, training={"lr": lr}, **tuned)
    (row,) = group(folder.records).values()
    assert [one.cell for one in row] == ["c", "d"]


def test_tasks_of_one_name_are_named_by_what_they_differ_in() -> None:
    tasks = [("x", "f1", "ab" * 32), ("x", "f1", "cd" * 32), ("y", "f1", "ab" * 32)]
    assert [task_label(one, tasks) for one in tasks] == ["x (abababab)", "x (cdcdcdcd)", "y"]


@pytest.mark.parametrize("order", [("lora", "full"), ("full", "lora")])
def test_rows_are_the_same_whichever_command_ran_first(folder: Any, order: tuple[str, ...]) -> None:
    """One at each task's own number of epochs, one at five on both: each value is as frequent."""
    epochs = {"lora": {"mrpc": 3, "rte": 4}, "full": {"mrpc": 5, "rte": 5}}
    for row in order:
        for task, n in epochs[row].items():
            folder.add(row, 0, task=task, training={"lr": 1e-3, "epochs": n})
    assert sorted(labels(group(folder.records)).values()) == ["full", "lora"]


def test_a_later_commit_with_the_same_weights_is_the_same_row(folder: Any) -> None:
    for seed, commit in enumerate("ab"):
        folder.add("lora", seed, model={"name": "m", "revision": commit, "sha256": "d" * 64})
    assert list(map(len, group(folder.records).values())) == [2]
    for commit in "ab":
        folder.add("full", 0, model={"name": "m", "revision": commit, "sha256": None})
    assert len(group(folder.records)) == 3


def test_what_an_earlier_search_found_leaves_the_last_one_its_adapters(folder: Any) -> None:
    """Both are a row's best, of another row each; the table shows the last search's alone."""
    part = {"name": "full", "label": "full", "settings": {}, "targets": [], "notes": []}
    tuned = {"method": part | {"tuned": {"trials": 6, "space": ["lr"]}}}
    store = Store(folder.path)
    for cell, seed, lr, wrong in (("a", 0, 1e-5, 10), ("b", 0, 1e-4, 40), ("c", 1, 1e-4, 60)):
        folder.add("full", seed, wrong, cell=cell, training={"lr": lr}, **tuned)
        store.adapter(cell).mkdir(parents=True)
    first, *last = folder.records
    drop_beaten(store, last, [first], "all")
    assert sorted(path.name for path in (folder.path / "adapters").iterdir()) == ["a", "b"]


def test_rounds_that_a_row_had_no_turn_in_count_for_none(folder: Any, cost: Any) -> None:
    """A later command with more rows and fewer rounds runs some of the rounds again."""
    rounds = []
    for row, turn, speed in (
        *(("a", "monday", 300.0), ("b", "monday", 300.0)),
        *(("a", "tuesday", 200.0), ("b", "tuesday", 200.0), ("c", "tuesday", 220.0)),
    ):
        record = folder.add(row, 0, **cost(1, 9, 9, speed))
        taken = record.speed.model_copy(update={"turn": turn})
        rounds.append(record.model_copy(update={"speed": taken}))
    assert shared_rounds(rounds) == rounds[2:]
    alone = rounds[4].model_copy(
        update={"speed": rounds[4].speed.model_copy(update={"turn": "alone"})}
    )
    assert shared_rounds([*rounds[:2], alone]) == [*rounds[:2], alone]
    other = rounds[4].task.model_copy(update={"sha256": "other"})
    elsewhere = rounds[4].model_copy(update={"task": other})
    assert shared_rounds([*rounds[:2], elsewhere]) == [*rounds[:2], elsewhere]


def test_rounds_at_ranks_of_two_searches_are_not_of_one_row(folder: Any) -> None:
    part = {"name": "lora", "label": "lora", "targets": [], "notes": []}
    part["tuned"] = {"trials": 6, "space": ["lr", "rank"]}
    keys = []
    for rank, lr in ((2, 1e-3), (64, 1e-3), (2, 1e-4)):
        method = part | {"settings": {"rank": rank}}
        keys.append(speed_key(folder.add("lora", 0, training={"lr": lr}, method=method)))
    assert keys[0] == keys[2] != keys[1]
