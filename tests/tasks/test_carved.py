"""A part of train that judges in dev's place, so that what is chosen is not chosen on dev."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from peftlab.api.again import task_again
from peftlab.bench.grid import resolve
from peftlab.bench.outcome import Failed, failure_record
from peftlab.bench.run import write_suite
from peftlab.bench.suite import make_suite, merged_request
from peftlab.bench.suite_tasks import load_tasks
from peftlab.errors import RequestError
from peftlab.machine import environment
from peftlab.records.record import Failure
from peftlab.records.store import Store
from peftlab.tasks import Examples, Task, carve, draws, load


def test_nothing_of_dev_remains_and_nothing_of_train_is_lost() -> None:
    for name in ("acceptability", "similarity"):
        task = load(name)
        found = carve(task)
        before = Counter(zip(task.train.texts, task.train.labels, strict=True))
        sides = [zip(side.texts, side.labels, strict=True) for side in (found.train, found.dev)]
        assert sum((Counter(side) for side in sides), Counter()) == before
        assert not set(found.dev.texts) & set(task.dev.texts)


def test_pairs_are_drawn_by_the_text_that_repeats_most_unless_it_is_of_few() -> None:
    questions = [(f"Q {i % 30}", f"a {i}") for i in range(90)]
    assert draws(questions) == [i % 30 for i in range(90)]
    assert draws([(answer, question) for question, answer in questions]) == draws(questions)
    aspects = [(f"aspect {i % 29}", f"review {i % 80}") for i in range(90)]
    assert draws(aspects) == [i % 80 for i in range(90)]
    assert draws([("one", "x"), ("ONE", "y"), ("one", "X ")]) == [0, 1, 0]
    assert draws([]) == []


def test_dev_is_not_looked_at() -> None:
    task = load("paraphrase")
    other = dataclasses.replace(task, dev=Examples([("x", "y")], [0]))
    assert carve(other) == carve(task)


def test_no_text_is_on_both_sides() -> None:
    texts = [(f"text {i % 20}",) for i in range(60)]
    labels = [i % 20 % 2 for i in range(60)]
    task = Task(
        "t", "classes", ("accuracy",), Examples(texts, labels), Examples([], []), ("a", "b")
    )
    found = carve(task)
    assert (len(found.train), len(found.dev)) == (48, 12)
    assert not set(found.train.texts) & set(found.dev.texts)


def test_the_part_has_a_fifth_of_every_class() -> None:
    texts = [(f"text {i}",) for i in range(200)]
    labels = [int(i >= 150) for i in range(200)]
    task = Task(
        "t", "classes", ("accuracy",), Examples(texts, labels), Examples([], []), ("a", "b")
    )
    assert Counter(carve(task).dev.labels) == {0: 30, 1: 10}


def test_the_part_has_a_fifth_of_every_quintile() -> None:
    texts = [(f"text {i}",) for i in range(200)]
    labels = [float(i) for i in range(200)]
    task = Task("t", "regression", ("pearson",), Examples(texts, labels), Examples([], []))
    assert Counter(int(value // 40) for value in carve(task).dev.labels) == dict.fromkeys(
        range(5), 8
    )


def test_the_part_is_the_same_whatever_the_rows_order(tiny_task: Task) -> None:
    rows = list(zip(tiny_task.train.texts, tiny_task.train.labels, strict=True))
    random.Random(0).shuffle(rows)
    train = Examples([text for text, _ in rows], [label for _, label in rows])
    shuffled = carve(dataclasses.replace(tiny_task, train=train))
    assert sorted(shuffled.dev.texts) == sorted(carve(tiny_task).dev.texts)


def test_the_source_says_so() -> None:
    assert carve(load("similarity")).source == "synthetic, a fifth of train"


def test_too_little_to_carve_names_the_task() -> None:
    train = Examples([("one",), ("two",), ("three",)], [0, 0, 1])
    task = Task("few", "classes", ("accuracy",), train, Examples([("four",)], [0]), ("a", "b"))
    with pytest.raises(RequestError, match=r"task few has no part of train .* class 'b' has 1"):
        carve(task)


def test_a_class_with_one_text_is_left_to_train() -> None:
    texts = [(f"text {i}",) for i in range(21)]
    labels = [0] * 10 + [1] * 10 + [2]
    train = Examples(texts, labels)
    task = Task("t", "classes", ("accuracy",), train, train, ("a", "b", "c", "d"))
    found = carve(task)
    assert Counter(found.train.labels) == {0: 8, 1: 8, 2: 1}
    assert Counter(found.dev.labels) == {0: 2, 1: 2}
    (note,) = found.notes
    assert note == "a fifth of train, which judges, has none of 'c', 'd': too few texts"


def test_a_suite_may_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "rates.toml"
    file.write_text('tasks = ["similarity"]\njudge_on = "train"\n')
    (task,) = load_tasks(merged_request(file, {}))
    assert task == carve(load("similarity"))
    (task,) = load_tasks(merged_request(file, {"judge_on": "dev"}))
    assert task == load("similarity")
    with pytest.raises(RequestError, match="judge_on must be 'dev' or 'train', got 'test'"):
        make_suite(judge_on="test")


def test_the_file_s_own_dev_is_left_alone_too(tmp_path: Path) -> None:
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(50)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *rows]))
    request = {"data": {"path": path, "text": ["text"], "label": "label"}}
    (plain,) = load_tasks(make_suite(**request))
    (found,) = load_tasks(make_suite(**request, judge_on="train"))
    assert (len(plain.train), len(plain.dev)) == (40, 10)
    assert (len(found.train), len(found.dev)) == (32, 8)
    assert not set(plain.dev.texts) & {*found.train.texts, *found.dev.texts}


def test_its_cells_are_others(tiny_model: Path, tiny_task: Task) -> None:
    names = {
        resolve(
            make_suite(
                model=str(tiny_model), tasks=[tiny_task], methods=["lora"], seeds=[0], judge_on=part
            )
        )
        .cells[0]
        .name
        for part in ("dev", "train")
    }
    assert len(names) == 2


def test_an_exported_adapter_is_checked_on_the_part_that_judged_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    asked = {"model": str(tiny_model), "tasks": ["acceptability"], "methods": ["lora"]}
    grid = resolve(make_suite(**asked, seeds=[0], judge_on="train", metric="macro_f1"))
    (cell,) = grid.cells
    store = Store(tmp_path)
    store.prepare()
    write_suite(store, grid)
    end = Failed(failure=Failure(kind="None", message=""), environment=environment(1))
    again = task_again(store, failure_record(cell, end))
    assert again.sha256() == cell.task.sha256
    assert again.main_metric == "macro_f1"
