"""Hold out a fifth of the examples: always the same fifth, stratified, no text on both sides.

Examples with equal texts form a group, which goes to one side whole; texts that differ only in
case, blanks and the order of a pair are equal, since many a model reads them as one. The groups of
a class (by the group's most frequent label) or of a quintile (by its mean label) are ordered by a
hash of their text and fill dev until it has a fifth of the stratum's examples. Neither the order of
the rows nor other classes' rows change where a group goes.

A choice, such as that of a learning rate, is made on such a fifth of train (`carve`), so that dev
judges on examples that no choice has seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from peftlab.errors import RequestError
from peftlab.naming import counted, few
from peftlab.tasks.base import Examples, Task

FIFTH = 0.2  # the share that goes to dev
LEAST_DRAWS = 30  # different texts of a part of pairs, for it to be drawn from many
QUANTILES = 5
# classes with fewer than two texts: more than this, and than half of all, tell a wrong column
MAX_SMALL_CLASSES = 20

Texts = tuple[str, ...]
Number = TypeVar("Number", int, float)


def carve(task: Task, share: float = FIFTH) -> Task:
    """The task with its train split in two: a share of it as dev, the rest as train.

    The task's own dev is not looked at. A class with fewer than two different texts stays in train:
    choices are made without it, and a note says so.

    Raises:
        RequestError: train has fewer than two different texts, or fewer than two classes with two.
    """
    try:
        train, dev = divide(task.train, task.labels, share, may_omit=True)
    except RequestError as error:
        raise RequestError(
            f"task {task.name} has no part of train to be judged on: {error}"
        ) from None
    part = "a fifth" if share == FIFTH else f"{share:.3g}"
    source = f"{task.source}, {part} of train"
    present = set(dev.labels)
    absent = [repr(name) for index, name in enumerate(task.labels) if index not in present]
    notes = task.notes
    if absent:
        notes += (f"{part} of train, which judges, has none of {few(absent)}: too few texts",)
    return dataclasses.replace(task, train=train, dev=dev, source=source, notes=notes, dev_notes=())


def divide(
    data: Examples, names: Sequence[str], share: float = FIFTH, may_omit: bool = False
) -> tuple[Examples, Examples]:
    """Split `data` in train and dev, which gets about `share` of the examples.

    `names` are the names of its classes; none for a regression. `may_omit`: see `by_class`.

    Raises:
        RequestError: see `by_class` and `by_quantile`.
    """
    texts = _unify_spellings(data.texts)
    if names:
        dev_texts = by_class(texts, [int(label) for label in data.labels], names, share, may_omit)
    else:
        dev_texts = by_quantile(texts, data.labels, share)
    train = [i for i, text in enumerate(texts) if text not in dev_texts]
    dev = [i for i, text in enumerate(texts) if text in dev_texts]
    return _subset(data, train), _subset(data, dev)


def n_in_both(train: Examples, dev: Examples) -> int:
    """How many texts of dev are in train, but for case, blanks and the order of a pair."""
    train_keys = {_unordered_key(text) for text in train.texts}
    return sum(_unordered_key(text) in train_keys for text in dev.texts)


def group_indices(texts: Sequence[Texts]) -> list[int]:
    """For each text the index of the first text that equals it but for case and blanks.

    >>> group_indices([("one",), ("two",), ("One ",)])
    [0, 1, 0]
    """
    first: dict[Texts, int] = {}
    return [first.setdefault(_key(text), index) for index, text in enumerate(texts)]


def draws(texts: Sequence[Texts]) -> list[int]:
    """For each example the index of the first that another dev set would have together with it.

    Those are equal texts, and of pairs all that share the part that repeats most, such as the
    question of twenty answers: taken for independent, intervals of 30 such questions covered 65 to
    89 % (LOG.md). A part of fewer than `LEAST_DRAWS` different texts is no draw: other dev sets
    have the same few, such as the aspects that reviews are asked about.

    >>> draws([("one",), ("two",), ("One ",)])
    [0, 1, 0]
    """
    whole, n_parts = group_indices(texts), len(texts[0]) if texts else 1
    by_part = [group_indices([(text[part],) for text in texts]) for part in range(n_parts)]
    repeated = [part for part in by_part if len(set(part)) >= LEAST_DRAWS]
    return min([whole, *repeated], key=lambda groups: len(set(groups)))


def _key(text: Texts) -> Texts:
    return tuple(" ".join(part.casefold().split()) for part in text)


def _unordered_key(text: Texts) -> Texts:
    return tuple(sorted(_key(text)))


def _unify_spellings(texts: Sequence[Texts]) -> list[Texts]:
    """The texts, each replaced by the first in Python's order of those that are equal to it."""
    keys, spelling = [_unordered_key(text) for text in texts], dict[Texts, Texts]()
    for key, text in zip(keys, texts, strict=True):
        spelling[key] = min(text, spelling.get(key, text))
    return [spelling[key] for key in keys]


def _subset(data: Examples, indices: list[int]) -> Examples:
    labels: Any = [data.labels[i] for i in indices]
    return Examples([data.texts[i] for i in indices], labels)


def by_class(
    texts: Sequence[Texts],
    labels: Sequence[int],
    names: Sequence[str],
    share: float = FIFTH,
    may_omit: bool = False,
) -> set[Texts]:
    """The texts that go to dev, about `share` of the examples of every class.

    With `may_omit`, classes of fewer than two different texts stay in train whole, if at least two
    other classes remain.

    Raises:
        RequestError: a class with fewer than two different texts can't be on both sides.
    """
    strata: dict[int, list[Texts]] = defaultdict(list)
    labels_of = _labels_by_text(texts, labels)
    for text, text_labels in labels_of.items():
        counts = Counter(text_labels)
        strata[min(counts, key=lambda label: (-counts[label], label))].append(text)
    n_small = sum(len(strata[index]) < 2 for index in range(len(names)))
    if n_small > max(MAX_SMALL_CLASSES, len(names) / 2):
        raise RequestError(
            f"{n_small:,} of {len(names):,} classes have fewer than two different texts; is this "
            "the column of labels?"
        )
    may_omit = may_omit and len(names) - n_small >= 2
    for index, name in enumerate(names):
        if len(strata[index]) < 2 and not may_omit:
            raise RequestError(
                f"class {name!r} has {counted(len(strata[index]), 'different text')} of its own; "
                "it needs at least 2, one to train on and one to judge by. Add examples, or leave "
                "the class out."
            )
    divisible = [stratum for stratum in strata.values() if len(stratum) >= 2]
    return {text for stratum in divisible for text in _choose_dev(stratum, labels_of, share)}


def by_quantile(
    texts: Sequence[Texts], labels: Sequence[float], share: float = FIFTH
) -> set[Texts]:
    """The texts that go to dev, about `share` of the examples of every quintile of the labels.

    Raises:
        RequestError: fewer than two different texts.
    """
    labels_of = _labels_by_text(texts, labels)
    if len(labels_of) < 2:
        raise RequestError(
            "all rows have the same text; at least 2 different ones are needed, "
            "one to train on and one to judge by."
        )
    means = {text: math.fsum(values) / len(values) for text, values in labels_of.items()}
    # not by the hash that chooses dev: a quintile that ends among equal labels would then have the
    # high hashes of these, and dev the other labels of the quintile
    ordered = sorted(labels_of, key=lambda text: (means[text], _hash(("tie", *text))))
    n_strata = max(1, min(QUANTILES, int(len(ordered) * share)))
    bounds = [len(ordered) * i // n_strata for i in range(n_strata + 1)]
    strata = [ordered[start:end] for start, end in itertools.pairwise(bounds)]
    return {text for stratum in strata for text in _choose_dev(stratum, labels_of, share)}


def _labels_by_text(texts: Sequence[Texts], labels: Sequence[Number]) -> dict[Texts, list[Number]]:
    labels_of: dict[Texts, list[Number]] = defaultdict(list)
    for text, label in zip(texts, labels, strict=True):
        labels_of[text].append(label)
    return labels_of


def _choose_dev(
    stratum: list[Texts], labels_of: dict[Texts, list[Number]], share: float
) -> list[Texts]:
    """Texts of `stratum` for dev: at least one, never all, with about `share` of the examples."""
    ordered = sorted(stratum, key=_hash)
    max_size = max(1, round(sum(len(labels_of[text]) for text in ordered) * share))
    chosen: list[Texts] = []
    size = 0
    for text in ordered:
        if size + len(labels_of[text]) <= max_size:
            chosen.append(text)
            size += len(labels_of[text])
    return chosen or [min(ordered, key=lambda text: len(labels_of[text]))]


def _hash(text: Texts) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()
