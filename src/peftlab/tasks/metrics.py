"""Judge predictions, and say what a score is worth.

GLUE's five metrics and three more, computed by scikit-learn and scipy. Every score is a fraction (a
correlation: -1 to 1) or, of `rmse` and `mae`, an error in the label's unit, where less is better.
It is always a finite number: where all predictions, or all answers, are the same, a correlation is
undefined and counts as 0.0 here, Matthews' too, as in scikit-learn.

Two baselines show what a score is worth. `constant` reads no text and always gives the one answer
that is best by the metric (`Task.constant`). `tf-idf` is scikit-learn's logistic regression (ridge
for a regression) on the weighted words of the texts; for a pair also on the difference of the two
in each word, and on their cosine. Both are fitted on train and scored on dev.
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

# The metrics of each kind of task, all of which are recorded.
ALLOWED = {
    "classes": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman", "rmse", "mae"),
}
METRICS = (*ALLOWED["classes"], *ALLOWED["regression"])
# A fit on 8,000 pairs takes a second, and more rows or rarer words add little. Its time and memory
# grow with its coefficients, words times classes.
MAX_ROWS, MAX_WORDS, MAX_CLASSES, MAX_COEFFICIENTS = 20_000, 20_000, 1_000, 4_000_000


def score(
    metrics: Sequence[str],
    labels: Sequence[float],
    predictions: Sequence[float],
    n_classes: int | None = None,
) -> dict[str, float]:
    """Score `predictions` (n) against the true `labels` (n) by each of `metrics`, in order.

    For `matthews`, `f1`, `macro_f1` and `accuracy` both are class indices; for `pearson`,
    `spearman`, `rmse` and `mae` they are numbers. `macro_f1` is the unweighted mean over the
    classes. `f1` is that of class 1 where there are two classes, as in GLUE, and `macro_f1` where
    there are more (give `n_classes` if not every class need occur).

    Raises:
        RequestError: an unknown metric.
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
    y_true, y_pred = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if not (np.isfinite(y_true).all() and np.isfinite(y_pred).all()):
        raise ValueError("labels and predictions must be finite numbers, got NaN or infinity")
    n_classes = n_classes or int(max(y_true.max(), y_pred.max())) + 1
    return {name: _compute(name, y_true, y_pred, n_classes) for name in metrics}


def _compute(name: str, y_true: Array, y_pred: Array, n_classes: int) -> float:
    from scipy import stats
    from sklearn import metrics

    match name:
        case "pearson":
            return _correlation(stats.pearsonr, y_true, y_pred)
        case "spearman":
            return _correlation(stats.spearmanr, y_true, y_pred)
        case "rmse":
            return float(metrics.root_mean_squared_error(y_true, y_pred))
        case "mae":
            return float(metrics.mean_absolute_error(y_true, y_pred))
        case "accuracy":
            return float((y_true == y_pred).mean())
    true_classes, predicted_classes = y_true.astype(int), y_pred.astype(int)
    if name == "matthews":
        if _is_constant(y_true) or _is_constant(y_pred):
            return 0.0
        return float(metrics.matthews_corrcoef(true_classes, predicted_classes))
    average = "binary" if name == "f1" and n_classes <= 2 else "macro"
    return float(
        metrics.f1_score(true_classes, predicted_classes, average=average, zero_division=0.0)
    )


def _correlation(
    measure: Callable[[Array, Array], tuple[float, float]], y_true: Array, y_pred: Array
) -> float:
    if _is_constant(y_true) or _is_constant(y_pred):
        return 0.0
    with warnings.catch_warnings():  # scipy warns of nearly constant input; its number stands
        warnings.simplefilter("ignore")
        value = float(measure(y_true, y_pred)[0])
    return value if math.isfinite(value) else 0.0


def _is_constant(values: Array) -> bool:
    return bool((values == values[0]).all())


@dataclass
class Baselines:
    """Scores by baseline and metric, and what a reader must know of them."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(task: Task) -> Baselines:
    """Score both baselines on dev; `tf-idf` is left out, with a note, where it can't be fitted."""
    scores, notes = dict[str, dict[str, float]](), list[str]()
    scores["constant"] = {
        metric: task.score([task.constant(metric)] * len(task.dev))[metric]
        for metric in task.every_metric
    }
    if len(task.labels) > MAX_CLASSES:
        notes.append(f"no tf-idf baseline for more than {MAX_CLASSES:,} classes")
        return Baselines(scores, notes)
    try:
        scores["tf-idf"] = task.score(_predict_by_tfidf(task))
    except ValueError as error:  # no word in any text, or one class alone
        notes.append(f"no tf-idf baseline: {error}")
        return Baselines(scores, notes)
    if len(task.train) > MAX_ROWS:
        notes.append(f"tf-idf is fitted on {MAX_ROWS:,} of {len(task.train):,} rows of train")
    return Baselines(scores, notes)


def _predict_by_tfidf(task: Task) -> list[float]:
    """The answers of a linear model over the words of train to dev."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    texts, labels = _sample(task)
    vectorizer = TfidfVectorizer(
        max_features=min(MAX_WORDS, MAX_COEFFICIENTS // max(1, len(task.labels))),
        sublinear_tf=True,
        token_pattern=r"\w+",  # words of one letter too
        dtype=np.float32,
    )
    vectorizer.fit([text for row in texts for text in row])
    # on 2,490 pairs and 10,000 words it takes 0.03 s, lbfgs 5 s
    model = LogisticRegression(solver="newton-cg") if task.labels else Ridge()
    with warnings.catch_warnings():  # of a fit that has not converged: it is near enough
        warnings.simplefilter("ignore")
        model.fit(_features(vectorizer, texts), labels)
    answers: list[float] = model.predict(_features(vectorizer, task.dev.texts)).tolist()
    return answers


def _sample(task: Task) -> tuple[list[tuple[str, ...]], list[float]]:
    """The rows of train to fit on: all, or `MAX_ROWS` drawn at random, always the same."""
    n = len(task.train)
    rows = random.Random(0).sample(range(n), MAX_ROWS) if n > MAX_ROWS else range(n)
    return [task.train.texts[i] for i in rows], [task.train.labels[i] for i in rows]


def _features(vectorizer: Any, texts: list[tuple[str, ...]]) -> csr_matrix:
    """(rows, words) for one text per row; (rows, 3 · words + 1) for a pair."""
    from scipy import sparse

    columns = [vectorizer.transform(column) for column in zip(*texts, strict=True)]
    if len(columns) == 2:
        first, second = columns
        cosine = sparse.csr_matrix(first.multiply(second).sum(axis=1))
        columns += [abs(first - second), cosine]
    return sparse.hstack(columns, format="csr")
