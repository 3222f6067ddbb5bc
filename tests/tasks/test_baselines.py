"""What a score is worth beside: a constant answer, and words counted by scikit-learn."""

from __future__ import annotations

import random
import time

import pytest

from peftlab.tasks import Examples, Task, baselines, load
from peftlab.tasks.metrics import score

WORDS = [f"word{i}" for i in range(3000)]


def spam(n: int, rare: int) -> Examples:
    """One in `rare` texts says prize."""
    draw = random.Random(n)
    labels = [int(i % rare == 0) for i in range(n)]
    texts = [
        (" ".join([*draw.choices(WORDS, k=8), "prize" if one else "hello"]),) for one in labels
    ]
    return Examples(texts, labels)


def task_of(train: Examples, dev: Examples, labels: tuple[str, ...] = ("ham", "spam")) -> Task:
    kind = "classes" if labels else "regression"
    return Task("mail", kind, ("accuracy",) if labels else ("pearson",), train, dev, labels)


def test_majority_is_what_always_answering_train_s_commonest_class_scores() -> None:
    task = task_of(spam(300, 10), spam(100, 5))
    always = score(task.every_metric, task.dev.labels, [0] * 100, 2)
    assert baselines(task).scores["majority"] == always
    assert always["accuracy"] == 0.8


def test_of_a_regression_it_is_train_s_mean() -> None:
    task = load("similarity")
    mean = sum(task.train.labels) / len(task.train)
    always = score(task.every_metric, task.dev.labels, [mean] * len(task.dev))
    assert baselines(task).scores["mean"] == always


def test_words_tell_spam_from_ham() -> None:
    task = task_of(spam(300, 3), spam(100, 3))
    found = baselines(task).scores
    assert set(found) == {"majority", "tf-idf"}
    assert found["tf-idf"]["accuracy"] > 0.9 > found["majority"]["accuracy"]


@pytest.mark.parametrize("name", ["acceptability", "paraphrase", "entailment", "similarity"])
def test_of_pairs_it_sees_how_they_differ(name: str) -> None:
    task = load(name)
    constant, words = (by[task.main_metric] for by in baselines(task).scores.values())
    assert words > constant + 0.1


def test_it_is_the_same_each_time() -> None:
    task = load("entailment")
    assert baselines(task) == baselines(task)


def test_where_there_is_no_word_it_is_left_out_and_said() -> None:
    emoji = Examples([("!",), ("?",), ("!!",), ("??",)], [0, 1, 0, 1])
    found = baselines(task_of(emoji, emoji))
    assert set(found.scores) == {"majority"}
    assert found.notes == [
        "no tf-idf baseline: empty vocabulary; perhaps the documents only contain stop words"
    ]


def test_very_many_classes_are_left_out_and_said() -> None:
    many = Examples([(f"a {i}",) for i in range(1001)], list(range(1001)))
    found = baselines(task_of(many, many, tuple(map(str, range(1001)))))
    assert set(found.scores) == {"majority"}
    assert found.notes == ["no tf-idf baseline for more than 1,000 classes"]


def test_of_very_many_rows_a_part_is_fitted_on_and_said() -> None:
    found = baselines(task_of(spam(20_003, 3), spam(50, 3)))
    assert found.notes == ["tf-idf is fitted on 20,000 of 20,003 rows of train"]
    assert found.scores["tf-idf"]["accuracy"] == 1.0


def test_eight_thousand_pairs_take_a_couple_of_seconds() -> None:
    one, other = spam(8000, 3), spam(8001, 3)
    pairs = Examples([a + b for a, b in zip(one.texts, other.texts, strict=False)], one.labels)
    few = Examples(pairs.texts[:800], pairs.labels[:800])
    baselines(task_of(few, few))  # imports
    started = time.process_time()
    baselines(task_of(pairs, few))
    assert time.process_time() - started < 2
