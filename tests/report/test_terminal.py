"""The table on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from peftlab.report import render_terminal, table

GOLDEN = Path(__file__).parent / "golden"


def shown(records, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_terminal(table(records)))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("width", [100, 60])
def test_golden(suite, width):
    """A narrow terminal gets two tables. When one should change, write it anew, read the diff."""
    expected = (GOLDEN / f"terminal-{width}.txt").read_text(encoding="utf-8")
    assert shown(suite, width) == expected


def judged(record, metric="accuracy", labels=("ham", "spam"), baselines=None, **changes):
    """The record with another main metric, named classes and baselines."""
    changed = {"main_metric": metric, "labels": list(labels), "baselines": baselines or {}}
    return record.model_copy(
        update={
            "task": record.task.model_copy(update=changed),
            "score": {metric: next(iter(record.score.values()))},
            **changes,
        }
    )


def test_the_baselines_of_each_task_stand_below_the_methods(record):
    scores = {"majority": {"accuracy": 0.97}, "tf-idf": {"accuracy": 0.981}}
    mean = {"mean": {"rmse": 1.21}, "tf-idf": {"rmse": 0.873}}
    text = shown(
        [
            judged(record(task="mrpc"), baselines=scores),
            judged(record(task="stsb"), "rmse", (), mean),
        ]
    )
    lines = [line.split() for line in text.splitlines()]
    start = lines.index(["baselines"])
    assert lines[start + 1 : start + 4] == [
        ["majority", ".970", "–"],
        ["tf-idf", ".981", "0.873"],
        ["mean", "–", "1.21"],
    ]
    assert next(n for n, line in enumerate(lines) if line[:1] == ["lora"]) < start
    assert "majority always gives train's most frequent class" in text
    assert "baselines" not in shown([record()])


def test_what_a_score_hides_is_said_with_how_many_seeds(record):
    never, flat = "never predicts spam", "collapsed: scores no more than always answering 'ham'"
    warnings = [[never, flat], [never], []]
    records = [record("head", seed=n, score=0.97, warnings=w) for n, w in enumerate(warnings)]
    records += [record("lora", seed=n, score=0.98) for n in range(3)]
    text = shown(records)
    assert "! .970 ± .000" in text and "! .980" not in text
    assert "! marks a score that hides something; 1 of 6 finished cells collapsed:" in text
    assert f"  head, mrpc: 2 of 3 seeds: {never}\n" in text
    assert f"  head, mrpc: 1 of 3 seeds: {flat}\n" in text
    assert f"  lora, mrpc: {never}\n" in shown([record(warnings=[never])])


def test_scores_by_rank_stand_below_the_table(record):
    by_rank = [{"1": {"f1": 0.6}, "8": {"f1": 0.8}}, {"1": {"f1": 0.7}, "8": {"f1": 0.9}}]
    text = shown([record("dylora", seed=n, score_by_rank=one) for n, one in enumerate(by_rank)])
    assert "  dylora, mrpc: 1: .650, 8: .850\n" in text
    assert "by rank" not in shown([record()])


def test_labels_in_the_line_of_default_rates_are_printable(record):
    default = record(label="a\x1b[2Jb")
    part = default.method.model_copy(update={"rate_from": "default"})
    text = shown([default.model_copy(update={"method": part}), record("full")])
    assert "not tuned here: a [2Jb." in text and "\x1b" not in text


def test_default_rates_are_said_to_be_defaults(record):
    def rate(method, origin):
        one = record(method)
        part = one.method.model_copy(update={"rate_from": origin})
        return one.model_copy(update={"method": part})

    told = "Learning rates are defaults, not tuned here"
    assert f"{told}.\n" in shown([rate("lora", "default"), rate("dora", "default")])
    assert f"{told}: lora.\n" in shown([rate("lora", "default"), rate("dora", "asked for")])
    assert told not in shown([rate("lora", "asked for"), rate("dora", "")])


def test_an_error_is_no_fraction_and_less_of_it_is_better(record):
    text = shown([judged(record(seed=n, score=s), "rmse") for n, s in enumerate((12.0, 13.0))])
    assert "rmse ↓" in text and "12.5 ± 0.7" in text
    assert "lower is better" in text and "lower is better" not in shown([record()])


def test_one_seed_has_no_spread_and_says_so(record):
    text = shown([record(score=0.8612)])
    assert ".861" in text and "±" not in text
    assert "one seed, so no spread can be given" in text


def test_another_number_of_seeds_is_said_in_the_cell(record):
    records = [record("full", seed=seed) for seed in range(3)] + [record("lora", seed=0)]
    assert "n = 1" in shown(records) and "over 3 seeds" in shown(records)


def test_not_measured_is_a_dash(record):
    text = shown([record(memory=None, speed=None, total_s=None, n_trainable=None)])
    assert text.splitlines()[5].split()[2:] == ["–"] * 5


def test_failures_say_which_and_why(record, failed):
    text = shown([record(seed=0), failed(seed=1, message="out of memory")])
    assert "1 of 2 failed" in text
    assert "lora, mrpc, seed 1: Diverged: out of memory" in text


def test_names_are_neither_markup_nor_control_codes(record, failed):
    text = shown(
        [record(label="lora[rank=16]"), failed(seed=1, message="\x1b[2Jgone [red]x[/red]")]
    )
    assert "lora[rank=16]" in text
    assert "[red]x[/red]" in text and "\x1b" not in text


def test_no_score_is_cut_where_there_are_many_tasks(record):
    """Of eight tasks at 80 columns mean, sd and mark stood on lines of their own."""
    tasks = [f"task {letter}" for letter in "abcdefgh"]
    records = [
        record(label, task=task, seed=seed, score=0.861 + seed / 1000)
        for label in ("lora", "lora[rank=16]")
        for task in tasks
        for seed in (0, 1)
    ]
    for width in (80, 50):
        lines = [line.strip() for line in shown(records, width).splitlines()]
        heads = [line for line in lines if line.startswith("task ")]
        assert len(heads) > 1
        assert [name for head in heads for name in tasks if name in head] == tasks
        rows = [line for line in lines if line.startswith(("lora ", "lora[rank=16] "))]
        assert sum(line.count(".861 ± .001") for line in rows) == 16
