"""The influence of each dev example on a score: the infinitesimal jackknife of every metric.

    u_i = d T((1 - e) F + e δ_i) / de at e = 0,    mean(u) = 0,    var T ≈ var(u) / n

T is the metric as a function of the distribution F of (label, prediction), δ_i all weight on
example i.

Paper      Efron 1982, "The jackknife, the bootstrap and other resampling plans", ch. 6
Shapes     labels (n,) or (..., n), predictions (..., n) -> scores (...,), influences (..., n)

Scores are those of tasks/metrics.py. Where a score is defined there by convention, such as 0 for a
correlation with a constant, no reweighting changes it and every influence is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import unknown

Array = NDArray[np.float64]
Scored = tuple[Array, Array]  # scores (...,), influences (..., n)


def influences(metric: str, labels: Array, predictions: Array, n_classes: int = 0) -> Scored:
    """The scores of `predictions` (..., n) and the influence of every example on them.

    Args:
        metric: one of `METRICS`.
        labels: (n,) or (..., n); class indices or numbers.
        predictions: (..., n), likewise.
        n_classes: of the task; 0 for a regression, and where it is not known: then it is taken from
            the largest class that occurs.

    Raises:
        RequestError: if there is no metric of that name.

    >>> score, u = influences("accuracy", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    >>> float(score), u.tolist()
    (0.75, [0.25, 0.25, -0.75, 0.25])
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    predictions = np.asarray(predictions, np.float64)
    labels = np.broadcast_to(np.asarray(labels, np.float64), predictions.shape)
    if not n_classes and metric in OF_CLASSES:
        n_classes = int(max(labels.max(), predictions.max())) + 1
    scores, u = METRICS[metric](labels, predictions, n_classes)
    if metric in CORRELATIONS:
        defined = _varies(labels) & _varies(predictions)
        scores, u = scores * defined, u * defined[..., None]
    return scores, u


def grain(
    metric: str, labels: Array, predictions: Array, texts: Array, n_classes: int = 0
) -> float:
    """A third of the largest change of the score by other answers to three texts of one class.

    Of every class, the answers to three right texts are made wrong, and to three wrong texts right:
    in an F1 near 1, of a rare class, an answer weighs much more than 1 / n. Three at once, since
    the first of a Matthews of few right answers weighs more than the next. 0 for a regression.
    `texts` (n,) are numbers, equal where the texts are.
    """
    if metric not in OF_CLASSES:
        return 0.0
    variants = [predictions]
    classes, counts = np.unique(labels, return_counts=True)
    for label in classes:
        others = classes[classes != label]
        wrong = others[counts[classes != label].argmax()] if others.size else float(label == 0)
        is_right = predictions == label
        for candidates, answer in ((is_right, wrong), (~is_right, label)):
            changed = np.unique(texts[(labels == label) & candidates])[:3]
            variants.append(np.where(np.isin(texts, changed), answer, predictions))
    scores, _ = influences(metric, labels, np.stack(variants), n_classes)
    return float(abs(scores - scores[0]).max()) / 3


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(axis=-1, keepdims=True))


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, and 0 where the denominator is not above 0."""
    zeros = np.zeros(np.broadcast(numerator, denominator).shape)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def _mean_score(values: Array) -> Scored:
    """The score that is the mean of `values`, one an example."""
    return values.mean(axis=-1), values - _mean(values)


def _accuracy(labels: Array, predictions: Array, n_classes: int) -> Scored:
    return _mean_score((labels == predictions).astype(np.float64))


def _f1_of(index: int, labels: Array, predictions: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """F1 of one class against the rest, its influences, and whether the class occurs at all."""
    is_label, is_prediction = labels == index, predictions == index
    both, total = (is_label & is_prediction).astype(float), is_label.astype(float) + is_prediction
    score = _divide(2 * _mean(both), _mean(total))
    return score, _divide(2 * both - score * total, _mean(total)), _mean(total) > 0


def _f1(labels: Array, predictions: Array, n_classes: int) -> Scored:
    if n_classes > 2:
        return _macro_f1(labels, predictions, n_classes)
    score, u, _ = _f1_of(1, labels, predictions)
    return score[..., 0], u


def _macro_f1(labels: Array, predictions: Array, n_classes: int) -> Scored:
    score, u = np.zeros((*labels.shape[:-1], 1)), np.zeros(labels.shape)
    n_occurring = np.zeros(score.shape)
    for index in range(n_classes):
        class_score, class_u, occurs = _f1_of(index, labels, predictions)
        score, u, n_occurring = score + class_score, u + class_u, n_occurring + occurs
    return (score / n_occurring)[..., 0], u / n_occurring


def _matthews(labels: Array, predictions: Array, n_classes: int) -> Scored:
    """For any number of classes: the correlation of two indicators (Gorodkin 2004)."""
    # t_k and p_k, the shares of class k: cov = accuracy - Σ t p, var = 1 - Σ t² and 1 - Σ p²
    agree = (labels == predictions).astype(np.float64)
    tp, tt, pp = np.zeros(labels.shape), np.zeros(labels.shape), np.zeros(labels.shape)
    for index in range(n_classes):
        is_label, is_prediction = labels == index, predictions == index
        t, p = _mean(is_label), _mean(is_prediction)
        tp += is_label * p + is_prediction * t  # mean: 2 Σ t p
        tt += is_label * t  # mean: Σ t²
        pp += is_prediction * p
    return _correlation(
        (_mean(agree) - _mean(tp) / 2, agree - _mean(agree) - (tp - _mean(tp))),
        (1 - _mean(tt), -2 * (tt - _mean(tt))),
        (1 - _mean(pp), -2 * (pp - _mean(pp))),
    )


def _correlation(cov: Scored, var_x: Scored, var_y: Scored) -> Scored:
    """Of cov / sqrt(var_x · var_y); an argument is a value (..., 1) and its influences (..., n)."""
    varies = (var_x[0] > 0) & (var_y[0] > 0)
    root = np.sqrt(np.where(varies, var_x[0] * var_y[0], 1))
    score = np.where(varies, cov[0] / root, 0)
    change = _divide(var_x[1], var_x[0] * varies) + _divide(var_y[1], var_y[0] * varies)
    return score[..., 0], np.where(varies, cov[1] / root - score / 2 * change, 0)


def _varies(values: Array) -> NDArray[np.bool_]:
    return np.asarray((values != values[..., :1]).any(axis=-1))


def _centred(values: Array) -> Array:
    """`values` less their mean, in units of the largest, so that no square underflows."""
    centred = values - _mean(values)
    return _divide(centred, abs(centred).max(axis=-1, keepdims=True))


def _pearson(labels: Array, predictions: Array, n_classes: int) -> Scored:
    x, y = _centred(labels), _centred(predictions)
    products = [x * y, x**2, y**2]
    cov, var_x, var_y = ((_mean(product), product - _mean(product)) for product in products)
    return _correlation(cov, var_x, var_y)


def _spearman(labels: Array, predictions: Array, n_classes: int) -> Scored:
    """Pearson's of the ranks; an example also moves the ranks of all that lie above it."""
    x, y = _shares_below(labels), _shares_below(predictions)
    parts = [  # products of two shares, and how an example moves those of the others
        (x * y, _mean_above(labels, y) + _mean_above(predictions, x)),
        (x * x, 2 * _mean_above(labels, x)),
        (y * y, 2 * _mean_above(predictions, y)),
    ]
    # a mean of products of two shares weighs every example three times: itself and in each share
    cov, var_x, var_y = (
        (_mean(product) - 0.25, product + moved - 3 * _mean(product)) for product, moved in parts
    )
    return _correlation(cov, var_x, var_y)


def _shares_below(values: Array) -> Array:
    """For each example the share of examples that lie below it, ties half (itself too)."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values, axis=-1) - 0.5) / values.shape[-1])


def _mean_above(values: Array, weights: Array) -> Array:
    """For each example the mean of `weights` where `values` are higher than its own, ties half."""
    n = values.shape[-1]
    rows = zip(values.reshape(-1, n), weights.reshape(-1, n), strict=True)
    return np.stack([_mean_above_1d(*row) for row in rows]).reshape(values.shape)


def _mean_above_1d(values: Array, weights: Array) -> Array:
    _, group = np.unique(values, return_inverse=True)
    sums = np.bincount(group, weights)
    at_or_above = np.cumsum(sums[::-1])[::-1]
    return np.asarray((at_or_above - sums / 2)[group] / len(values))


def _rmse(labels: Array, predictions: Array, n_classes: int) -> Scored:
    mean, u = _mean_score((labels - predictions) ** 2)
    root = np.sqrt(mean)
    return root, _divide(u, 2 * root[..., None])


def _mae(labels: Array, predictions: Array, n_classes: int) -> Scored:
    return _mean_score(abs(labels - predictions))


METRICS: dict[str, Callable[[Array, Array, int], Scored]] = {
    "matthews": _matthews,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "accuracy": _accuracy,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": _rmse,
    "mae": _mae,
}
OF_CLASSES = frozenset({"matthews", "f1", "macro_f1", "accuracy"})
CORRELATIONS = frozenset({"matthews", "pearson", "spearman"})  # 0 where one side is constant
