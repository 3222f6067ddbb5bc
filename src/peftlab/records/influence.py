"""What each dev example adds to a score: the infinitesimal jackknife of every metric.

    u_i = d T((1 - e) F + e δ_i) / de at e = 0,    mean(u) = 0,    var T ≈ var(u) / n

T is the metric as a function of the distribution F of (label, prediction), δ_i all weight on
example i.

Paper      Efron 1982, "The jackknife, the bootstrap and other resampling plans", ch. 6
Shapes     labels (n,) or (..., n), predictions (..., n) -> scores (...,), influences (..., n)

Scores are those of tasks/metrics.py. Where that defines a score by convention, such as 0 for a
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
        n_classes: of the task; 0 where it is a regression or not known, then those that occur.

    Raises:
        RequestError: a metric of another name.

    >>> score, u = influences("accuracy", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    >>> float(score), u.tolist()
    (0.75, [0.25, 0.25, -0.75, 0.25])
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    predictions = np.asarray(predictions, np.float64)
    labels = np.broadcast_to(np.asarray(labels, np.float64), predictions.shape)
    seen = int(max(labels.max(), predictions.max())) + 1 if metric in OF_CLASSES else 0
    scores, u = METRICS[metric](labels, predictions, n_classes or seen)
    if metric in CORRELATIONS:
        defined = _varies(labels) & _varies(predictions)
        scores, u = scores * defined, u * defined[..., None]
    return scores, u


def grain(
    metric: str, labels: Array, predictions: Array, texts: Array, n_classes: int = 0
) -> float:
    """By how much another answer to one text of n changes the score, of several the most.

    0 but for classes. Of every class one text that is answered rightly is answered wrongly, and one
    that is answered wrongly rightly: in an F1 near 1, of a rare class, one answer weighs much more
    than 1 / n. `texts` (n,) are equal where the texts are.
    """
    if metric not in OF_CLASSES:
        return 0.0
    changed = [predictions]
    classes, counts = np.unique(labels, return_counts=True)
    for one in classes:
        others = classes[classes != one]
        instead = others[counts[classes != one].argmax()] if others.size else float(one == 0)
        for place, answer in ((predictions == one, instead), (predictions != one, one)):
            found = np.flatnonzero((labels == one) & place)
            if found.size:
                changed.append(np.where(texts == texts[found[0]], answer, predictions))
    scores, _ = influences(metric, labels, np.stack(changed), n_classes)
    return float(abs(scores - scores[0]).max())


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(axis=-1, keepdims=True))


def _divided(above: Array, below: Array) -> Array:
    """The quotient, and 0 where nothing is below."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _of_mean(values: Array) -> Scored:
    return values.mean(axis=-1), values - _mean(values)


def _accuracy(labels: Array, predictions: Array, n_classes: int) -> Scored:
    return _of_mean((labels == predictions).astype(np.float64))


def _f1_of(one: int, labels: Array, predictions: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """F1 of one class against the rest, its influences, and whether the class occurs at all."""
    is_label, is_prediction = labels == one, predictions == one
    both, either = (is_label & is_prediction).astype(float), is_label.astype(float) + is_prediction
    score = _divided(2 * _mean(both), _mean(either))
    return score, _divided(2 * both - score * either, _mean(either)), _mean(either) > 0


def _f1(labels: Array, predictions: Array, n_classes: int) -> Scored:
    if n_classes > 2:
        return _macro_f1(labels, predictions, n_classes)
    score, u, _ = _f1_of(1, labels, predictions)
    return score[..., 0], u


def _macro_f1(labels: Array, predictions: Array, n_classes: int) -> Scored:
    score, u = np.zeros((*labels.shape[:-1], 1)), np.zeros(labels.shape)
    n = np.zeros(score.shape)
    for one in range(n_classes):
        of_class, u_of_class, occurs = _f1_of(one, labels, predictions)
        score, u, n = score + of_class, u + u_of_class, n + occurs
    return (score / n)[..., 0], u / n


def _matthews(labels: Array, predictions: Array, n_classes: int) -> Scored:
    """Of any number of classes: the correlation of two indicators (Gorodkin 2004)."""
    # t_k and p_k, the shares of class k: cov = accuracy - Σ t p, spread = 1 - Σ t², 1 - Σ p²
    agree = (labels == predictions).astype(np.float64)
    crossed, own_t, own_p = np.zeros(labels.shape), np.zeros(labels.shape), np.zeros(labels.shape)
    for one in range(n_classes):
        is_label, is_prediction = labels == one, predictions == one
        t, p = _mean(is_label), _mean(is_prediction)
        crossed += is_label * p + is_prediction * t  # mean: 2 Σ t p
        own_t += is_label * t  # mean: Σ t²
        own_p += is_prediction * p
    cov = _mean(agree) - _mean(crossed) / 2
    d_cov = agree - _mean(agree) - (crossed - _mean(crossed))
    spread_t, spread_p = 1 - _mean(own_t), 1 - _mean(own_p)
    return _ratio(
        (cov, d_cov),
        (spread_t, -2 * (own_t - _mean(own_t))),
        (spread_p, -2 * (own_p - _mean(own_p))),
    )


def _ratio(cov: Scored, one: Scored, other: Scored) -> Scored:
    """As cov / sqrt(one · other), with its influences; each is (value (..., 1), influences)."""
    varies = (one[0] > 0) & (other[0] > 0)
    root = np.sqrt(np.where(varies, one[0] * other[0], 1))
    score = np.where(varies, cov[0] / root, 0)
    change = _divided(one[1], one[0] * varies) + _divided(other[1], other[0] * varies)
    return score[..., 0], np.where(varies, cov[1] / root - score / 2 * change, 0)


def _varies(values: Array) -> NDArray[np.bool_]:
    return np.asarray((values != values[..., :1]).any(axis=-1))


def _centred(values: Array) -> Array:
    """Less their mean, and in units of the largest, so that no square is too small to hold."""
    centred = values - _mean(values)
    return _divided(centred, abs(centred).max(axis=-1, keepdims=True))


def _pearson(labels: Array, predictions: Array, n_classes: int) -> Scored:
    x, y = _centred(labels), _centred(predictions)
    parts = [(x * y), x**2, y**2]
    cov, one, other = ((_mean(part), part - _mean(part)) for part in parts)
    return _ratio(cov, one, other)


def _spearman(labels: Array, predictions: Array, n_classes: int) -> Scored:
    """Pearson's of the ranks; an example also moves the ranks of all that lie above it."""
    x, y = _shares(labels), _shares(predictions)
    moved = _above(labels, y) + _above(predictions, x)
    parts = [
        (x * y, moved),
        (x * x, 2 * _above(labels, x)),
        (y * y, 2 * _above(predictions, y)),
    ]
    # a mean of products of two shares weighs every example three times: itself and in each share
    cov, one, other = ((_mean(own) - 0.25, own + other - 3 * _mean(own)) for own, other in parts)
    return _ratio(cov, one, other)


def _shares(values: Array) -> Array:
    """The share of examples that lie below each one, ties half (itself too)."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(values, axis=-1) - 0.5) / values.shape[-1])


def _above(values: Array, weights: Array) -> Array:
    """For each example the mean of `weights`, counting only higher `values`, ties half."""
    flat = [
        _above_row(one, weight)
        for one, weight in zip(
            values.reshape(-1, values.shape[-1]), weights.reshape(-1, values.shape[-1]), strict=True
        )
    ]
    return np.stack(flat).reshape(values.shape)


def _above_row(values: Array, weights: Array) -> Array:
    _, group = np.unique(values, return_inverse=True)
    sums = np.bincount(group, weights)
    at_or_above = np.cumsum(sums[::-1])[::-1]
    return np.asarray((at_or_above - sums / 2)[group] / len(values))


def _rmse(labels: Array, predictions: Array, n_classes: int) -> Scored:
    mean, u = _of_mean((labels - predictions) ** 2)
    root = np.sqrt(mean)
    return root, _divided(u, 2 * root[..., None])


def _mae(labels: Array, predictions: Array, n_classes: int) -> Scored:
    return _of_mean(abs(labels - predictions))


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
