"""The table's numbers: what is averaged, what is not, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from peftlab.report import table
from peftlab.report.text import describe_f1, describe_rounds, describe_spread

GOLDEN = Path(__file__).parent / "golden"


def test_golden_table(suite):
    """The whole table as data. When it should change, write the new one and read the diff."""
    expected = json.loads((GOLDEN / "table.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(table(suite).as_data())) == expected


def test_table_json_is_the_table(suite, out):
    written = json.loads((out / "report" / "table.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(table(suite).as_data()))


def test_mean_and_sd_of_seeds_equal_numpys(record):
    scores = [0.81, 0.84, 0.90]
    cell = (
        table(record(seed=seed, score=score) for seed, score in enumerate(scores)).rows[0].cells[0]
    )
    assert cell.last.mean == pytest.approx(np.mean(scores))
    assert cell.last.sd == pytest.approx(np.std(scores, ddof=1))
    assert cell.last.n == 3


def test_costs_are_means_over_tasks_and_memory_the_highest(record):
    records = [record(task=task, seed=seed) for task in ("mrpc", "cola") for seed in (0, 1)]
    memory = records[2].memory.model_copy(update={"peak_mib": 900.0})
    records[2:] = [one.model_copy(update={"memory": memory}) for one in records[2:]]
    row = table(records).rows[0]
    speeds = np.array([one.speed.examples_per_s for one in records]).reshape(2, 2)
    (cost,) = row.costs
    assert cost.examples_per_s == pytest.approx(speeds.mean(axis=1).mean())
    assert cost.cell_s == pytest.approx(np.mean([one.total_s for one in records]))
    assert row.all_cells_s == pytest.approx(sum(one.total_s for one in records))
    assert cost.peak_mib == 900.0


def test_rows_and_columns_keep_the_order_of_the_records(record):
    records = [record("vera", "stsb"), record("full", "cola"), record("vera", "cola")]
    found = table(records)
    assert [row.label for row in found.rows] == ["vera", "full"]
    assert [column.label for column in found.columns] == ["stsb", "cola"]
    assert found.rows[1].cells[0] is None


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({"training": {"lr": 2e-3}}, ["lora (lr 0.001)", "lora (lr 0.002)"]),
        ({"settings": {"rank": 16}}, ["lora (rank 8)", "lora (rank 16)"]),
        ({"precision": "bf16"}, ["lora (fp32)", "lora (bf16)"]),
        (
            {"model": {"name": "roberta-base", "revision": None, "sha256": "ab" * 32}},
            ["lora (minilm)", "lora (roberta-base)"],
        ),
        (
            {"model": {"name": "minilm", "revision": None, "sha256": "cd" * 32}},
            ["lora (weights abababab)", "lora (weights cdcdcdcd)"],
        ),
        ({"settings": {"use_dora": True}}, ["lora (use_dora –)", "lora (use_dora True)"]),
    ],
)
def test_what_differs_is_not_averaged(record, change, labels):
    first = record(seed=0, score=0.2)
    second = record(seed=1, score=0.8, **change)
    rows = table([first, second]).rows
    assert [row.label for row in rows] == labels
    assert [row.cells[0].last.mean for row in rows] == [0.2, 0.8]


def test_labels_name_patterns_and_hashes_only_where_nothing_else_differs(record):
    one = record()
    other = one.method.model_copy(update={"targets": ["x"]})
    plain = one.model_copy(update={"method": other, "cell": "x"})
    assert table([one, plain]).rows[1].label == "lora (adapted ['x'])"
    setting = one.method.model_copy(update={"targets": ["x"], "settings": {"targets": "x"}})
    named = one.model_copy(update={"method": setting, "cell": "y"})
    assert "adapted" not in table([one, named]).rows[1].label


def test_a_label_of_ones_own_stays_as_it_is(record):
    rows = table([record(label="LoRA r=16", settings={"rank": 16}), record()]).rows
    assert [row.label for row in rows] == ["LoRA r=16", "lora"]


def test_what_the_task_decides_does_not_part_rows(record):
    """Longer inputs for one task: one row a method, and the task's column says so."""
    records = [
        record(method, task, training={"max_length": length})
        for method in ("full", "lora")
        for task, length in (("mrpc", 128), ("stsb", 256))
    ]
    found = table(records)
    assert [row.label for row in found.rows] == ["full", "lora"]
    assert [column.training for column in found.columns] == [
        {"max_length": 128},
        {"max_length": 256},
    ]


EPOCHS = {"cola": 3, "mrpc": 4}


def follow(record, *more):
    """Two rows at each task's own epochs, and cells beside them: (row, task, epochs)."""
    usual = [(row, task, n) for row in ("lora", "dora") for task, n in EPOCHS.items()]
    return [
        record(row, task, training={"epochs": n}, cell=f"{row}-{task}-{n}")
        for row, task, n in [*usual, *more]
    ]


@pytest.mark.parametrize("epochs", [6, 4])
def test_a_cell_beside_the_rest_leaves_rows_whole(record, epochs):
    """One more cell at other epochs is a row of its own, even at those of the other task."""
    found = table(follow(record, ("lora", "cola", epochs)))
    assert [(row.label, row.n_tasks) for row in found.rows] == [
        ("lora (epochs by task)", 2),
        ("dora", 2),
        (f"lora (epochs {epochs})", 1),
    ]
    assert [column.training for column in found.columns] == [{"epochs": 3}, {"epochs": 4}]


def test_what_most_rows_keep_over_tasks_the_task_does_not_decide(record):
    """Epochs that were asked for, on both tasks, and again longer on one of them alone."""
    longer = [(row, "cola", 6) for row in ("lora", "dora", "vera")]
    asked = [(row, task, 3) for row in ("lora", "dora") for task in EPOCHS]
    found = table(follow(record, *longer, *asked)[4:])
    assert [row.label for row in found.rows] == [
        *("lora (epochs 6)", "dora (epochs 6)", "vera"),
        *("lora (epochs 3)", "dora (epochs 3)"),
    ]
    assert [column.training for column in found.columns] == [{}, {}]


def test_one_name_with_other_examples_is_another_task(record):
    one = record()
    other = one.model_copy(update={"task": one.task.model_copy(update={"sha256": "ef" * 32})})
    labels = [
        column.label for column in table([one, other.model_copy(update={"cell": "x"})]).columns
    ]
    assert labels == ["mrpc (cdcdcdcd)", "mrpc (efefefef)"]


def test_one_task_judged_by_two_metrics_is_two_columns(record):
    one = record()
    task = one.task.model_copy(update={"main_metric": "accuracy"})
    other = one.model_copy(update={"cell": "x", "task": task, "score": {"accuracy": 0.9}})
    labels = [column.label for column in table([one, other]).columns]
    assert labels == ["mrpc (f1)", "mrpc (accuracy)"]


def test_one_method_under_two_labels_is_one_row(record):
    """Two suites in one folder may call it otherwise; the seeds are of one kind all the same."""
    (row,) = table([record(seed=0, label="mine"), record(seed=1)]).rows
    assert (row.label, row.cells[0].last.n) == ("mine", 2)


def test_a_cell_given_twice_is_one_seed(record):
    cell = table([record(score=0.1), record(score=0.7)]).rows[0].cells[0]
    assert (cell.last.mean, cell.last.n) == (0.7, 1)


def test_failed_cells_are_counted_listed_and_in_no_mean(record, failed):
    found = table([record(seed=0, score=0.75), failed(seed=1, message="out of memory")])
    cell = found.rows[0].cells[0]
    assert (cell.last.mean, cell.last.n, cell.n_failed) == (0.75, 1, 1)
    assert [(bad.row, bad.task, bad.seed, bad.message) for bad in found.failures] == [
        ("lora", "mrpc", 1, "out of memory")
    ]


def test_all_failed_leaves_nothing_measured(failed):
    row = table([failed(seed=0), failed(seed=1)]).rows[0]
    assert (row.cells[0].last.mean, row.cells[0].n_failed) == (None, 2)
    assert (row.costs, row.all_cells_s, row.total.low) == ((), None, None)


def test_not_measured_is_none_and_never_zero(record):
    nothing = dict.fromkeys(("examples_per_s", "tokens_per_s", "step_ms_p50", "step_ms_p95"))
    row = table([record(speed=nothing, score=float("nan"))]).rows[0]
    assert row.costs[0].examples_per_s is None
    assert row.cells[0].last.mean is None


def test_scores_by_rank_are_averaged_over_seeds(record):
    by_rank = [{"1": {"f1": 0.6}, "8": {"f1": 0.8}}, {"1": {"f1": 0.7}, "8": {"f1": 0.9}}]
    cell = (
        table(record(seed=n, score_by_rank=one) for n, one in enumerate(by_rank)).rows[0].cells[0]
    )
    assert {rank: score.mean for rank, score in cell.by_rank.items()} == pytest.approx(
        {"1": 0.65, "8": 0.85}
    )


def test_one_seed_is_said_of_those_scores_that_have_one(record):
    lone = [record(method, seed=0) for method in ("full", "lora")]
    assert describe_spread(table(lone)) == "one seed, so no spread can be given"
    mixed = [*lone, *(record("dora", seed=seed) for seed in range(3))]
    assert describe_spread(table(mixed)).startswith(
        "one seed, where no other n is given; ± sample sd"
    )


def test_a_row_without_a_run_is_not_told_to_be_measured_apart(record, failed):
    rounds = [
        one.model_copy(
            update={
                "cell": f"{one.cell}-round",
                "speed": one.speed.model_copy(update={"turn": "x"}),
                "task": one.task.model_copy(update={"drawn_from": one.task.sha256}),
            }
        )
        for one in (record("full"), record("lora"))
    ]
    assert table([record("full"), record("lora"), failed("dora")], rounds).out_of_turn == ()
    assert table([record("full"), record("dora")], rounds[:1]).out_of_turn == ("dora",)


def test_a_run_that_a_later_one_replaced_is_not_counted(record):
    """Two searches of one seed are one run: the later."""
    tuned = {"trials": 4, "validation": 0.1, "space": ["lr"]}
    part = record("lora").method.model_copy(update={"tuned": tuned})
    runs = [
        record("lora", cell=f"at-{lr}", training={"lr": lr}).model_copy(update={"method": part})
        for lr in (1e-3, 2e-3)
    ]
    found = table(runs)
    assert [len(cell.runs) for row in found.rows for cell in row.cells] == [1]
    assert (found.n_cells, found.n_done) == (1, 1)


def test_without_a_score_no_spread_is_told(failed):
    assert describe_spread(table([failed("lora")])) == "no cell finished"


def test_f1_says_of_which_class_it_is(record):
    part = record().task.model_copy(update={"labels": ["fraud", "legit"]})
    one = record().model_copy(update={"task": part})
    assert describe_f1(table([one])) == "F1 is that of the class legit."
    other = record(task="grammar")
    assert describe_f1(table([one, other])) == "F1 is that of the class legit (mrpc)."
    assert describe_f1(table([other])) == ""


def test_tasks_without_rounds_are_named_where_others_have_some(record):
    cells = [record(task=task, seed=seed) for task in ("mrpc", "grammar") for seed in (0, 1)]
    cells = [
        one.model_copy(
            update={"task": one.task.model_copy(update={"sha256": one.task.name.ljust(64, "0")})}
        )
        for one in cells
    ]
    short = cells[0].task.model_copy(
        update={"sha256": "ff" * 32, "drawn_from": cells[0].task.sha256}
    )
    rounds = [one.model_copy(update={"cell": f"r{one.seed}", "task": short}) for one in cells[:2]]
    found = table(cells, rounds)
    assert found.out_of_rounds == ("grammar",)
    assert "On grammar they are of whole cells" in describe_rounds(found)
    assert table(cells).out_of_rounds == ()


def test_runs_on_other_numbers_of_threads_are_no_seeds_of_one_row(record):
    """They differ in the order of sums, and a cell is another one for it."""
    one, other = record(seed=0, score=0.2), record(seed=1, score=0.8)
    more = other.environment.model_copy(update={"threads": one.environment.threads + 1})
    rows = table([one, other.model_copy(update={"environment": more})]).rows
    n = one.environment.threads
    assert [row.label for row in rows] == [f"lora (threads {n})", f"lora (threads {n + 1})"]
