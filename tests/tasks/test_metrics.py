"""Every metric, against scikit-learn's and scipy's own; and the baselines that a score is worth."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from peftlab.errors import RequestError
from peftlab.tasks import Examples, Task, baseline, baselines, load
from peftlab.tasks.metrics import METRICS, score

CLASSES = ["matthews", "f1", "accuracy"]
NUMBERS = ["pearson", "spearman"]
ERRORS = ["rmse", "mae"]

answers = [0, 1, 1, 0, 1, 1, 0, 1]
guesses = [0, 1, 0, 0, 1, 1, 1, 1]


def test_two_classes_are_scored_as_glue_does():
    assert score(CLASSES, answers, guesses) == {
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(answers, guesses)),
        "f1": pytest.approx(sklearn.metrics.f1_score(answers, guesses, pos_label=1)),
        "accuracy": 0.75,
    }


def test_macro_f1_of_two_classes_is_their_mean():
    each = sklearn.metrics.f1_score(answers, guesses, average=None)
    assert score(["macro_f1"], answers, guesses) == {"macro_f1": pytest.approx(each.mean())}


def test_a_rare_class_that_is_never_predicted_shows_in_macro_f1():
    scores = score(["accuracy", "macro_f1"], [0] * 97 + [1] * 3, [0] * 100)
    assert scores == {"accuracy": 0.97, "macro_f1": pytest.approx(0.97 / 1.97)}


def test_errors_are_in_the_label_s_unit():
    labels, predictions = [0.0, 10.0, 20.0], [3.0, 10.0, 24.0]
    assert score(ERRORS, labels, predictions) == {
        "rmse": pytest.approx(math.sqrt(25 / 3)),
        "mae": pytest.approx(7 / 3),
    }


def test_f1_is_of_class_one_not_of_class_zero():
    flipped = [1 - label for label in answers], [1 - guess for guess in guesses]
    assert score(["f1"], *flipped) != score(["f1"], answers, guesses)


def test_f1_of_more_classes_is_their_mean():
    labels, predictions = [0, 1, 2, 2], [0, 2, 2, 1]
    assert score(["f1"], labels, predictions)["f1"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_f1_knows_of_a_third_class_that_does_not_occur():
    assert score(["f1"], [0, 1, 1], [0, 0, 1], n_classes=3)["f1"] == pytest.approx(2 / 3)
    assert score(["f1"], [0, 0, 1], [0, 0, 0], n_classes=2)["f1"] == 0.0


def test_numbers_are_scored_as_scipy_does():
    labels, predictions = [0.0, 1.5, 3.2, 5.0], [0.3, 9.0, 2.5, 4.0]
    assert score(NUMBERS, labels, predictions) == {
        "pearson": pytest.approx(scipy.stats.pearsonr(labels, predictions)[0]),
        "spearman": pytest.approx(scipy.stats.spearmanr(labels, predictions)[0]),
    }


def test_scores_come_in_the_order_asked_for():
    assert list(score(["spearman", "pearson"], [1.0, 2.0], [2.0, 3.0])) == ["spearman", "pearson"]


@pytest.mark.parametrize("constant", [[1, 1, 1], [0, 0, 0]])
def test_a_constant_prediction_is_worth_nothing_and_warns_of_nothing(constant):
    assert score(["matthews"], [0, 1, 1], constant) == {"matthews": 0.0}
    assert score(NUMBERS, [0.5, 1.0, 2.0], constant) == {"pearson": 0.0, "spearman": 0.0}
    assert score(NUMBERS, constant, [0.5, 1.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_f1_without_a_positive_is_zero():
    assert score(["f1"], [0, 0], [0, 0]) == {"f1": 0.0}


def test_one_example_has_a_score():
    assert score([*CLASSES, *NUMBERS], [1], [1]) == {
        "matthews": 0.0,
        "f1": 1.0,
        "accuracy": 1.0,
        "pearson": 0.0,
        "spearman": 0.0,
    }


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_a_correlation_is_always_a_number_between_minus_one_and_one(pairs):
    labels, predictions = zip(*pairs, strict=True)
    for value in score(NUMBERS, labels, predictions).values():
        assert math.isfinite(value) and -1 - 1e-9 <= value <= 1 + 1e-9


def test_every_score_is_a_plain_float():
    for name in METRICS:
        assert type(score([name], [0, 1, 1], [0, 1, 0])[name]) is float


def test_an_unknown_metric_is_named():
    with pytest.raises(RequestError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        score(["acuracy"], [0], [0])


@pytest.mark.parametrize(("labels", "predictions"), [([0, 1], [0]), ([], [])])
def test_unequal_or_empty_lists_are_refused(labels, predictions):
    with pytest.raises(ValueError, match="one prediction a label"):
        score(["accuracy"], labels, predictions)


def test_a_prediction_that_is_no_number_is_refused_not_scored():
    with pytest.raises(ValueError, match="finite"):
        score(["pearson"], [1.0, 2.0], [math.nan, 1.0])


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


def test_the_constant_answer_is_the_best_one_by_each_metric() -> None:
    """Of two classes F1 is of class 1: that one for all comes to more than the commonest's 0."""
    task = task_of(spam(300, 10), spam(100, 5))
    one, other = (score(task.every_metric, task.dev.labels, [k] * 100, 2) for k in (0, 1))
    found = baselines(task).scores["constant"]
    assert found == {name: max(one[name], other[name]) for name in task.every_metric}
    assert found["accuracy"] == 0.8 and found["f1"] == pytest.approx(1 / 3)


def test_of_a_regression_it_is_train_s_mean_or_by_the_absolute_error_its_median() -> None:
    task = load("similarity")
    labels = np.array(task.train.labels)
    for metric, answer in (("rmse", labels.mean()), ("mae", np.median(labels)), ("pearson", 1.0)):
        always = score([metric], task.dev.labels, [float(answer)] * len(task.dev))
        assert baselines(task).scores["constant"][metric] == pytest.approx(always[metric])


def test_words_tell_spam_from_ham() -> None:
    task = task_of(spam(300, 3), spam(100, 3))
    found = baselines(task).scores
    assert set(found) == {"constant", "tf-idf"}
    assert found["tf-idf"]["accuracy"] > 0.9 > found["constant"]["accuracy"]


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
    assert set(found.scores) == {"constant"}
    assert found.notes == [
        "no tf-idf baseline: empty vocabulary; perhaps the documents only contain stop words"
    ]


def test_very_many_classes_are_left_out_and_said() -> None:
    many = Examples([(f"a {i}",) for i in range(1001)], list(range(1001)))
    found = baselines(task_of(many, many, tuple(map(str, range(1001)))))
    assert set(found.scores) == {"constant"}
    assert found.notes == ["no tf-idf baseline for more than 1,000 classes"]


def test_of_very_many_rows_a_part_is_fitted_on_and_said() -> None:
    found = baselines(task_of(spam(20_003, 3), spam(50, 3)))
    assert found.notes == ["tf-idf is fitted on 20,000 of 20,003 rows of train"]
    assert found.scores["tf-idf"]["accuracy"] == 1.0


def test_that_part_is_not_in_step_with_the_file() -> None:
    """At even distances it was of one class alone where they alternate, and tf-idf came to .5."""
    n = 39_999
    texts = [(f"{'good' if i % 2 else 'bad'} thing",) for i in range(n)]
    train = Examples(texts, [i % 2 for i in range(n)])
    dev = Examples(texts[:100], [i % 2 for i in range(100)])
    assert baselines(task_of(train, dev)).scores["tf-idf"]["accuracy"] == 1.0


def test_eight_thousand_pairs_take_a_couple_of_seconds() -> None:
    one, other = spam(8000, 3), spam(8001, 3)
    pairs = Examples([a + b for a, b in zip(one.texts, other.texts, strict=False)], one.labels)
    few = Examples(pairs.texts[:800], pairs.labels[:800])
    baselines(task_of(few, few))  # imports
    started = time.process_time()
    baselines(task_of(pairs, few))
    assert time.process_time() - started < 2


def test_of_pairs_a_word_counts_that_only_one_of_them_has_whichever() -> None:
    """By its sign the difference would say nothing that the two texts' own words do not."""
    rows = []
    for label, (odd, other) in enumerate((("red", "blue"), ("blue", "red"))):
        for one in ((f"{odd} {other}", other), (odd, "")):
            rows += [((f"a cat {a}", f"a cat {b}"), label) for a, b in (one, one[::-1])]
    split = Examples([texts for texts, _ in rows] * 20, [label for _, label in rows] * 20)
    assert baselines(task_of(split, split)).scores["tf-idf"]["accuracy"] == 1.0


def test_words_of_one_letter_are_words() -> None:
    split = Examples([(f"answer {'a' if i % 2 else 'b'}",) for i in range(40)], [0, 1] * 20)
    assert baselines(task_of(split, split)).scores["tf-idf"]["accuracy"] == 1.0


def test_of_many_classes_fewer_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit's memory is words times classes: 20,000 by 1,000 would be 160 MB of weights."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    asked: list[int] = []
    original = TfidfVectorizer.__init__

    def noted(self: TfidfVectorizer, **options: Any) -> None:
        asked.append(options["max_features"])
        original(self, **options)

    monkeypatch.setattr(TfidfVectorizer, "__init__", noted)
    for n, words in ((2, baseline.MAX_WORDS), (500, baseline.MAX_COEFFICIENTS // 500)):
        split = Examples([(f"word{i}",) for i in range(n)], list(range(n)))
        baselines(task_of(split, split, tuple(map(str, range(n)))))
        assert asked.pop() == words
