"""Judge predictions.

GLUE's five metrics and three more, computed by scikit-learn and scipy. Every score is a fraction (a
correlation: -1 to 1) or, of `rmse` and `mae`, an error in the label's unit, where less is better.
It is always a finite number: where all predictions, or all answers, are the same, a correlation is
undefined and counts as 0.0 here, Matthews' too, as in scikit-learn.
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

# The metrics of each kind of task, all of which are recorded.
ALLOWED = {
    "classes": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman", "rmse", "mae"),
}
METRICS = (*ALLOWED["classes"], *ALLOWED["regression"])


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
