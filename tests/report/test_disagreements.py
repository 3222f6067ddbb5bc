"""Answers to dev examples, packed for the page."""

from __future__ import annotations

import json

import pytest

from peftlab.report import disagreements
from peftlab.report.disagreements import answers
from peftlab.report.scores import table


@pytest.fixture
def wrote(record, tmp_path):
    """A record whose predictions are written; `pairs` are (label, prediction)."""

    def write(method, pairs, task="mrpc", seed=0):
        one = record(method, task, seed)
        part = one.task.model_copy(update={"n_dev": len(pairs)})
        lines = [
            {"index": i, "label": label, "prediction": answer, "text": "quoth the raven"}
            for i, (label, answer) in enumerate(pairs)
        ]
        path = tmp_path / f"{one.cell}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return one.model_copy(update={"task": part})

    return write


def test_classes_are_a_character_an_example(wrote, tmp_path):
    records = [wrote("lora", [(0, 0), (1, 0), (2, 2)]), wrote("full", [(0, 1), (1, 1), (2, 2)])]
    (one,), left_out = answers(table(records), tmp_path)
    assert (one.labels, one.by_row) == ("012", {"lora": "002", "full": "112"})
    assert (one.task, one.seed, left_out) == ("mrpc", 0, [])


def test_numbers_are_rounded_to_a_thousandth_of_their_spread(wrote, tmp_path):
    records = [wrote(name, [(1.5, 1.23456789), (2.0, 2)], "stsb") for name in ("lora", "full")]
    (one,), _ = answers(table(records), tmp_path)
    assert one.labels == [1.5, 2.0] and one.by_row["full"] == [1.2346, 2.0]
    years = [
        wrote(name, [(2015.0, 2014.71), (2001.0, 2003.2)], "stsb") for name in ("lora", "full")
    ]
    (one,), _ = answers(table(years), tmp_path)
    assert one.by_row["full"] == [2014.71, 2003.2]


def test_the_seed_is_the_lowest_that_most_rows_have(wrote, tmp_path):
    pairs = [(0, 0), (1, 1)]
    records = [wrote("vera", pairs, seed=0)]
    records += [wrote(name, pairs, seed=seed) for name in ("lora", "full") for seed in (3, 2)]
    (one,), _ = answers(table(records), tmp_path)
    assert one.seed == 2 and list(one.by_row) == ["lora", "full"]


def test_answers_to_other_examples_are_not_compared(wrote, record, tmp_path):
    records = [wrote("lora", [(0, 0), (1, 1)]), wrote("full", [(0, 0), (1, 0)])]
    (tmp_path / f"{records[1].cell}.jsonl").write_text(
        '{"label": 0, "prediction": 0}\n{"label": 0, "prediction": 1}\n'
    )
    assert answers(table(records), tmp_path) == ([], [])
    (tmp_path / f"{records[1].cell}.jsonl").write_text('{"label": 0, "prediction": 0}\n')
    assert answers(table(records), tmp_path) == ([], [])


def test_what_does_not_fit_is_named(wrote, tmp_path, monkeypatch):
    records = [wrote(name, [(0, 0), (1, 1)]) for name in ("lora", "full")]
    monkeypatch.setattr(disagreements, "MOST_BYTES", 5)
    assert answers(table(records), tmp_path) == ([], ["mrpc"])


def test_texts_are_there_only_if_they_are_asked_for(wrote, tmp_path):
    records = [wrote(name, [(0, 0), (1, 1)]) for name in ("lora", "full")]
    (without,), _ = answers(table(records), tmp_path)
    assert list(without.texts) == []
    sha256 = records[0].task.sha256
    (asked,), _ = answers(table(records), tmp_path, {sha256: ["one", "two"], "of others": ["x"]})
    assert asked.texts == ["one", "two"]


def test_tasks_share_the_room(wrote, tmp_path, monkeypatch):
    pairs = [(0, 0), (1, 1)]
    records = [wrote(name, pairs, task) for task in ("mrpc", "rte") for name in ("lora", "full")]
    ((one, other), _) = answers(table(records), tmp_path)
    size = len(json.dumps([one.labels, one.by_row]))
    monkeypatch.setattr(disagreements, "MOST_BYTES", 2 * size - 1)
    (first,), left_out = answers(table(records), tmp_path)
    assert (first.task, left_out) == (one.task, [other.task])
