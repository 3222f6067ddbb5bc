"""Two baselines that show what a score is worth, fitted on train and scored on dev.

`constant` reads no text and always gives the one answer that is best by the metric
(`Task.constant`). `tf-idf` is scikit-learn's logistic regression (ridge for a regression) on the
weighted words of the texts; for a pair also on the difference of the two in each word, and on their
cosine.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab.tasks.base import Task

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# A fit on 8,000 pairs takes a second, and more rows or rarer words add little. Its time and memory
# grow with its coefficients, words times classes.
MAX_ROWS, MAX_WORDS, MAX_CLASSES, MAX_COEFFICIENTS = 20_000, 20_000, 1_000, 4_000_000


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
