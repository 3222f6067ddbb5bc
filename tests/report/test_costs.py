"""Speed, memory and time: averaged over seeds that were measured alike, and over no others."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from peftlab.report import build, render_terminal, table
from peftlab.report.figures import figures
from peftlab.report.text import has_partial_means


def shown(records):
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(render_terminal(table(records)))
    return console.file.getvalue()


def at(one, speed, parts=None, **changes):
    """The record as if measured at `speed` (examples/s) in a changed environment."""
    packages = one.environment.packages | changes.pop("packages", {})
    changed = one.environment.model_copy(update={"packages": packages, **changes})
    speeds = one.speed.model_copy(update={"examples_per_s": speed})
    return one.model_copy(update={"environment": changed, "speed": speeds, "parts": parts})


UNLIKE = [
    ({"processor": "Other CPU"}, "Example CPU @ 2.0 GHz", "Other CPU"),
    ({"gpu": "A GPU"}, "no GPU", "A GPU"),
    ({"packages": {"torch": "2.10.0"}}, "torch 2.9.0", "torch 2.10.0"),
    ({"packages": {"peftlab": "0.2"}}, "peftlab not recorded", "peftlab 0.2"),
    ({"spin_count": "5000"}, "spin count not recorded", "spin count 5000"),
    ({"quantiser": "peftlab"}, "all other runs", "quantised by peftlab"),
    ({"kernels": "torch"}, "kernels not recorded", "kernels: torch"),
    ({"parts": 3.4}, "batches in 1.0 parts", "batches in 3.4 parts"),
]


@pytest.mark.parametrize(("change", "first", "second"), UNLIKE)
def test_speeds_of_unlike_environments_are_not_in_one_number(
    record, tmp_path, change, first, second
):
    """The score is one all the same: it does not depend on any of this."""
    records = [
        at(record(seed=0, score=0.6), 100.0, parts=1.0),
        at(record(seed=1, score=0.6), 100.0, parts=1.0),
        at(record(seed=2, score=0.9), 300.0, **{"parts": 1.0, **change}),
    ]
    (row,) = table(records).rows
    assert (row.cells[0].last.mean, row.cells[0].last.n) == (pytest.approx(0.7), 3)
    text = shown(records)
    assert "100 a" in text and "300 b" in text and "167" not in text
    assert f"  a: {first}\n  b: {second}\n" in text
    page = build(tmp_path, "demo", records, drawn=()).read_text(encoding="utf-8")
    assert "100<sup>a</sup><br>300<sup>b</sup>" in page.replace("\n", "")
    assert f"a: {first}; b: {second}." in page


def test_a_row_is_not_averaged_over_tasks_that_ran_on_unlike_machines(record):
    records = [
        at(record(task="mrpc"), 100.0),
        at(record(task="cola"), 300.0, processor="Other CPU"),
    ]
    (row,) = table(records).rows
    assert [(cost.n_tasks, cost.examples_per_s) for cost in row.costs] == [(1, 100.0), (1, 300.0)]
    assert "100† a" in shown(records) and "300† b" in shown(records)


def test_rows_of_unlike_machines_are_told_apart(record):
    text = shown([at(record("lora"), 100.0), at(record("dora"), 90.0, processor="Other CPU")])
    assert "100 a" in text and "90.0 b" in text


def test_what_the_drawing_of_batches_does_to_parts_is_no_unlikeness(record):
    records = [at(record(seed=n), 100.0, parts=parts) for n, parts in enumerate((1.71, 1.74))]
    assert "100 a" not in shown(records)
    assert len(table(records).conditions) == 1


def test_another_quantiser_of_another_method_is_no_unlikeness(record):
    records = [at(record("lora"), 100.0), at(record("qlora"), 90.0, quantiser="peftlab")]
    assert len(table(records).conditions) == 1


ALL = "sentences.cpp, dropout.cpp, gelu.cpp, low_rank.cpp"


@pytest.mark.parametrize(
    ("of_lora", "of_full", "unlike"),
    [
        (ALL, "sentences.cpp, dropout.cpp", False),
        ("low_rank.cpp", "torch", False),  # with activation checkpointing
        (ALL, "torch", True),  # one of them without a compiler
        (ALL, None, True),
    ],
)
def test_kernels_that_a_method_has_no_use_for_are_no_unlikeness(record, of_lora, of_full, unlike):
    records = [
        at(record("lora"), 100.0, kernels=of_lora),
        at(record("full"), 90.0, kernels=of_full),
    ]
    assert (len(table(records).conditions) > 1) == unlike


def test_a_row_that_ran_without_one_of_its_kernels_is_told_apart(record):
    records = [
        at(record(seed=0), 100.0, kernels=ALL),
        at(record(seed=1), 90.0, kernels="sentences.cpp, dropout.cpp, gelu.cpp"),
    ]
    assert "100 a" in shown(records)


def test_every_set_of_conditions_has_its_bar(record, tmp_path):
    records = [at(record(seed=0), 100.0), at(record(seed=1), 300.0, spin_count="5000")]
    speed, peak = figures(table(records), tmp_path)
    (rows,) = speed.spec["datasets"].values()
    assert [line.split(",")[:2] for line in rows.splitlines()[1:]] == [
        ["lora a", "100.0"],
        ["lora b", "300.0"],
    ]
    assert "lora a" in peak.alt and "lora b" in peak.alt


def test_a_task_on_which_every_row_failed_makes_no_row_s_means_partial(record, failed):
    lost = [failed(method, "rte") for method in ("lora", "vera")]
    found = table([record("lora", "mrpc"), record("vera", "mrpc"), *lost])
    assert (len(found.columns), found.n_tasks) == (2, 1)
    assert not has_partial_means(found)


def test_a_run_from_before_parts_were_recorded_is_told_apart(record):
    """It may have taken its batches whole."""
    records = [at(record(seed=0), 100.0), at(record(seed=1), 300.0, parts=3.4)]
    text = shown(records)
    assert "100 a" in text and "300 b" in text and "200" not in text


def test_a_level_of_parts_reaches_from_its_lowest_number(record):
    """1.09 is of the level of 1, though that of 1.11 is nearer."""
    parts = (1.0, 1.09, 1.11)
    records = [at(record(seed=n), 100.0 + n, parts=one) for n, one in enumerate(parts)]
    (row,) = table(records).rows
    speeds = [cost.examples_per_s.mean for cost in row.cells[0].costs]
    assert speeds == [100.5, 102.0]
