"""Judge predictions, and say what a score is worth.

GLUE's five metrics and three more, computed by scikit-learn and scipy. Every score is a fraction (a
correlation: -1 to 1) or, of `rmse` and `mae`, an error in the label's unit, where less is better.
It is always a finite number: where all predictions, or all answers, are the same, a correlation is
undefined and counts as 0.0 here, Matthews' too, as in scikit-learn.

A score is worth what it has over two baselines. `constant` reads no text and always gives the one
answer that is best by the metric (`Task.constant`). `tf-idf` is scikit-learn's logistic regression
(ridge for a regression) on the weighted words of the texts; of a pair also on how the two differ in
each word, and on their cosine. Both are fitted on train and scored on dev.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab.errors import unknown

if TYPE_CHECKING:
    import numpy as np

    from peftlab.tasks.base import Task

    Array = np.ndarray[tuple[int], np.dtype[np.float64]]
    from scipy.sparse import csr_matrix

# What a task of each kind can be judged by; all of it is recorded.
ALLOWED = {
    "classes": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman", "rmse", "mae"),
}
METRICS = (*ALLOWED["classes"], *ALLOWED["regression"])
# A fit on 8,000 pairs takes a second, and more rows or rarer words add little. Its time and memory
# grow with words times classes, hence the last limit.
MOST_ROWS, MOST_WORDS, MOST_CLASSES, MOST_NUMBERS = 20_000, 20_000, 1_000, 4_000_000


def score(
    metrics: Sequence[str],
    labels: Sequence[float],
    predictions: Sequence[float],
    n_classes: int | None = None,
) -> dict[str, float]:
    """Score `predictions` (n) against the answers `labels` (n) by each of `metrics`, in order.

    For `matthews`, `f1`, `macro_f1` and `accuracy` both are class indices; `f1` is of class 1
    where there are two classes, as in GLUE, and the unweighted mean over the classes, which
    `macro_f1` always is, where there are more (give `n_classes` if not every class need occur). For
    `pearson`, `spearman`, `rmse` and `mae` they are numbers.

    Raises:
        RequestError: a metric of another name.
        ValueError: not as many predictions as labels, none at all, or one that is not finite.

    >>> score(["accuracy", "f1"], [0, 1, 1, 0], [0, 1, 0, 0])
    {'accuracy': 0.75, 'f1': 0.6666666666666666}
    >>> score(["pearson"], [1.0, 2.0, 4.0], [3.0, 3.0, 3.0])
    {'pearson': 0.0}
    """
    import numpy as np

    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    if len(labels) != len(predictions) or not len(labels):
        counts = f"{len(labels)} labels and {len(predictions)} predictions"
        raise ValueError(f"a score needs one prediction a label and at least one, got {counts}")
    answers, guesses = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if not (np.isfinite(answers).all() and np.isfinite(guesses).all()):
        raise ValueError("labels and predictions must be finite numbers, got NaN or infinity")
    seen = int(max(answers.max(), guesses.max())) + 1
    return {name: _measured(name, answers, guesses, n_classes or seen) for name in metrics}


def _measured(name: str, labels: Array, predictions: Array, n_classes: int) -> float:
    from scipy import stats
    from sklearn import metrics

    match name:
        case "pearson":
            return _correlation(stats.pearsonr, labels, predictions)
        case "spearman":
            return _correlation(stats.spearmanr, labels, predictions)
        case "rmse":
            return float(metrics.root_mean_squared_error(labels, predictions))
        case "mae":
            return float(metrics.mean_absolute_error(labels, predictions))
        case "accuracy":
            return float((labels == predictions).mean())
    answers, guesses = labels.astype(int), predictions.astype(int)
    if name == "matthews":
        constant = _constant(labels) or _constant(predictions)
        return 0.0 if constant else float(metrics.matthews_corrcoef(answers, guesses))
    average = "binary" if name == "f1" and n_classes <= 2 else "macro"
    return float(metrics.f1_score(answers, guesses, average=average, zero_division=0.0))


def _correlation(
    measure: Callable[[Array, Array], tuple[float, float]], labels: Array, predictions: Array
) -> float:
    if _constant(labels) or _constant(predictions):
        return 0.0
    with warnings.catch_warnings():  # scipy warns of nearly constant input; its number stands
        warnings.simplefilter("ignore")
        value = float(measure(labels, predictions)[0])
    return value if math.isfinite(value) else 0.0


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())


@dataclass
class Baselines:
    """Scores by baseline and metric, and what a reader must know of them."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(task: Task) -> Baselines:
    """The scores of both on dev; `tf-idf` is left out, with a note, where it can't be fitted."""
    found = Baselines()
    found.scores["constant"] = {
        metric: task.score([task.constant(metric)] * len(task.dev))[metric]
        for metric in task.every_metric
    }
    if len(task.labels) > MOST_CLASSES:
        found.notes.append(f"no tf-idf baseline for more than {MOST_CLASSES:,} classes")
        return found
    try:
        found.scores["tf-idf"] = task.score(_by_words(task))
    except ValueError as error:  # no word in any text, or one class alone
        found.notes.append(f"no tf-idf baseline: {error}")
        return found
    if len(task.train) > MOST_ROWS:
        found.notes.append(
            f"tf-idf is fitted on {MOST_ROWS:,} of {len(task.train):,} rows of train"
        )
    return found


def _by_words(task: Task) -> list[float]:
    """Answers to dev of a linear model over the words of train."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    texts, labels = _sample(task)
    words = TfidfVectorizer(
        max_features=min(MOST_WORDS, MOST_NUMBERS // max(1, len(task.labels))),
        sublinear_tf=True,
        token_pattern=r"\w+",  # words of one letter too
        dtype=np.float32,
    )
    words.fit([text for row in texts for text in row])
    # on 2,490 pairs and 10,000 words it takes 0.03 s, lbfgs 5 s
    model = LogisticRegression(solver="newton-cg") if task.labels else Ridge()
    with warnings.catch_warnings():  # that it is not quite fitted: near enough
        warnings.simplefilter("ignore")
        model.fit(_features(words, texts), labels)
    answers: list[float] = model.predict(_features(words, task.dev.texts)).tolist()
    return answers


def _sample(task: Task) -> tuple[list[tuple[str, ...]], list[float]]:
    """The rows of train to fit on: all, or `MOST_ROWS` drawn at random, always the same."""
    n = len(task.train)
    rows = random.Random(0).sample(range(n), MOST_ROWS) if n > MOST_ROWS else range(n)
    return [task.train.texts[i] for i in rows], [task.train.labels[i] for i in rows]


def _features(words: Any, texts: list[tuple[str, ...]]) -> csr_matrix:
    """(rows, words) for one text a row; for a pair (rows, 3 · words + 1)."""
    from scipy import sparse

    columns = [words.transform(column) for column in zip(*texts, strict=True)]
    if len(columns) == 2:
        one, other = columns
        columns += [abs(one - other), sparse.csr_matrix(one.multiply(other).sum(axis=1))]
    return sparse.hstack(columns, format="csr")
