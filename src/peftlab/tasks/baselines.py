"""What a score is worth: that of an answer which reads no text, and of a linear model over words.

`majority` (for a regression `mean`) always answers `Task.constant`. `tf-idf` is scikit-learn's
logistic regression (ridge for a regression) on the weighted words of the texts; of a pair also on
how the two differ in each word, and on their cosine. Both are fitted on train and scored on dev.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab.tasks.base import Task

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# 8,000 pairs take a second; what a fit on more rows or rarer words would add is small, and numbers
# of the model (words times classes) are what its time and memory go with.
MOST_ROWS, MOST_WORDS, MOST_CLASSES, MOST_NUMBERS = 20_000, 20_000, 1_000, 4_000_000


@dataclass
class Baselines:
    """Scores by baseline and metric, and what a reader must know of them."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(task: Task) -> Baselines:
    """The scores of both on dev; `tf-idf` is left out, with a note, where it can't be fitted."""
    found = Baselines()
    name = "majority" if task.kind == "classes" else "mean"
    found.scores[name] = task.score([task.constant] * len(task.dev))
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
    """The rows of train to fit on: all, or `MOST_ROWS` at even distances."""
    n = len(task.train)
    rows = [i * n // MOST_ROWS for i in range(MOST_ROWS)] if n > MOST_ROWS else range(n)
    return [task.train.texts[i] for i in rows], [task.train.labels[i] for i in rows]


def _features(words: Any, texts: list[tuple[str, ...]]) -> csr_matrix:
    """(rows, words) for one text a row; for a pair (rows, 3 · words + 1)."""
    from scipy import sparse

    columns = [words.transform(column) for column in zip(*texts, strict=True)]
    if len(columns) == 2:
        one, other = columns
        columns += [abs(one - other), sparse.csr_matrix(one.multiply(other).sum(axis=1))]
    return sparse.hstack(columns, format="csr")
