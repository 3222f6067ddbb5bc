"""Judge predictions: GLUE's five metrics and three more, computed by scikit-learn and scipy.

Every score is a fraction (a correlation: -1 to 1) or, of `rmse` and `mae`, an error in the label's
unit, where less is better. It is always a finite number: where all predictions, or all answers, are
the same, a correlation is undefined and counts as 0.0 here, Matthews' too, as in scikit-learn.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peftlab.errors import unknown

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int], np.dtype[np.float64]]


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
    return {name: float(METRICS[name](answers, guesses, n_classes or seen)) for name in metrics}


def _matthews(labels: Array, predictions: Array, n_classes: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(labels) or _constant(predictions):
        return 0.0
    return float(matthews_corrcoef(labels.astype(int), predictions.astype(int)))


def _f1(labels: Array, predictions: Array, n_classes: int) -> float:
    from sklearn.metrics import f1_score

    average = "binary" if n_classes <= 2 else "macro"
    answers, guesses = labels.astype(int), predictions.astype(int)
    return float(f1_score(answers, guesses, average=average, zero_division=0.0))


def _macro_f1(labels: Array, predictions: Array, n_classes: int) -> float:
    from sklearn.metrics import f1_score

    answers, guesses = labels.astype(int), predictions.astype(int)
    return float(f1_score(answers, guesses, average="macro", zero_division=0.0))


def _accuracy(labels: Array, predictions: Array, n_classes: int) -> float:
    return float((labels == predictions).mean())


def _pearson(labels: Array, predictions: Array, n_classes: int) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predictions)


def _spearman(labels: Array, predictions: Array, n_classes: int) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predictions)


def _rmse(labels: Array, predictions: Array, n_classes: int) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(labels, predictions))


def _mae(labels: Array, predictions: Array, n_classes: int) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(labels, predictions))


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


METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "matthews": _matthews,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "accuracy": _accuracy,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": _rmse,
    "mae": _mae,
}

# What a task of each kind can be judged by, and of these what is recorded whatever it is judged by.
ALLOWED = {
    "classes": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman", "rmse", "mae"),
}
RECORDED = {"classes": ("accuracy", "f1", "macro_f1"), "regression": ALLOWED["regression"]}
