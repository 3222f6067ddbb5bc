"""Keep a fifth apart: always the same one, stratified, and no text on both sides.

Examples with equal texts form a group, which goes to one side whole; texts that differ in case,
blanks and the order of a pair alone are equal, as many a model reads them as one. The groups of a
class (of the group's most frequent label) or of a quintile (of its mean) are ordered by a hash of
their text and fill dev until it has a fifth of the stratum's examples. Neither the order of the
rows nor other classes' rows change where a group goes.

What is chosen, a learning rate say, is chosen on such a fifth of train (`carved`), so that dev
still judges what nobody has seen.
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

FIFTH = 0.2  # goes to dev
QUANTILES = 5
MANY = 20  # classes of a text each: if they are most, the column holds no labels

Texts = tuple[str, ...]
Label = TypeVar("Label", int, float)


def carved(task: Task, share: float = FIFTH) -> Task:
    """The task with a share of train in place of dev, which is not looked at, and train the rest.

    A class with fewer than two different texts stays in train: it is chosen without, and a note
    says so.

    Raises:
        RequestError: fewer than two different texts, or classes that have so many.
    """
    try:
        train, dev = divided(task.train, task.labels, share, sparing=True)
    except RequestError as error:
        raise RequestError(
            f"task {task.name} has no part of train to be judged on: {error}"
        ) from None
    part = "a fifth" if share == FIFTH else f"{share:.3g}"
    source = f"{task.source}, {part} of train"
    judged = set(dev.labels)
    absent = [repr(name) for index, name in enumerate(task.labels) if index not in judged]
    notes = task.notes
    if absent:
        notes += (f"{part} of train, which judges, has none of {few(absent)}: too few texts",)
    return dataclasses.replace(task, train=train, dev=dev, source=source, notes=notes)


def divided(
    data: Examples, names: Sequence[str], share: float = FIFTH, sparing: bool = False
) -> tuple[Examples, Examples]:
    """The two sides of `data`: what is left to train on, and about that share to judge by.

    `names` are its classes'; none for a regression.

    Raises:
        RequestError: see `by_class` and `by_quantile`.
    """
    texts = _one_spelling(data.texts)
    if names:
        kept = by_class(texts, [int(label) for label in data.labels], names, share, sparing)
    else:
        kept = by_quantile(texts, data.labels, share)
    train = [i for i, text in enumerate(texts) if text not in kept]
    dev = [i for i, text in enumerate(texts) if text in kept]
    return _subset(data, train), _subset(data, dev)


def n_in_both(train: Examples, dev: Examples) -> int:
    """How many texts of dev are in train, but for case, blanks and the order of a pair."""
    known = {_loose(text) for text in train.texts}
    return sum(_loose(text) in known for text in dev.texts)


def groups(texts: Sequence[Texts]) -> list[int]:
    """Of each text the place of the first that is the same, but for case and blanks.

    >>> groups([("one",), ("two",), ("One ",)])
    [0, 1, 0]
    """
    first: dict[Texts, int] = {}
    return [first.setdefault(_plain(text), index) for index, text in enumerate(texts)]


def _plain(text: Texts) -> Texts:
    return tuple(" ".join(part.casefold().split()) for part in text)


def _loose(text: Texts) -> Texts:
    return tuple(sorted(_plain(text)))


def _one_spelling(texts: Sequence[Texts]) -> list[Texts]:
    """In the place of each text the least, as Python orders them, of those that are the same."""
    keys, least = [_loose(text) for text in texts], dict[Texts, Texts]()
    for key, text in zip(keys, texts, strict=True):
        least[key] = min(text, least.get(key, text))
    return [least[key] for key in keys]


def _subset(data: Examples, indices: list[int]) -> Examples:
    labels: Any = [data.labels[i] for i in indices]
    return Examples([data.texts[i] for i in indices], labels)


def by_class(
    texts: Sequence[Texts],
    labels: Sequence[int],
    names: Sequence[str],
    share: float = FIFTH,
    sparing: bool = False,
) -> set[Texts]:
    """The texts that go to dev, about that share of every class.

    `sparing` leaves to train what a class of fewer than two different texts has, where two others
    have as many.

    Raises:
        RequestError: a class with fewer than two different texts can't be on both sides.
    """
    strata: dict[int, list[Texts]] = defaultdict(list)
    members = _members(texts, labels)
    for text, found in members.items():
        counts = Counter(found)
        strata[min(counts, key=lambda label: (-counts[label], label))].append(text)
    short = sum(len(strata[index]) < 2 for index in range(len(names)))
    if short > max(MANY, len(names) / 2):
        raise RequestError(
            f"{short:,} of {len(names):,} classes have fewer than two different texts; is this the "
            "column of labels?"
        )
    spared = sparing and len(names) - short >= 2
    for index, name in enumerate(names):
        if len(strata[index]) < 2 and not spared:
            raise RequestError(
                f"class {name!r} has {counted(len(strata[index]), 'different text')} of its own; "
                "it needs at least 2, one to train on and one to judge by. Add examples, or leave "
                "the class out."
            )
    divisible = [group for group in strata.values() if len(group) >= 2]
    return {text for group in divisible for text in _share(group, members, share)}


def by_quantile(
    texts: Sequence[Texts], labels: Sequence[float], share: float = FIFTH
) -> set[Texts]:
    """The texts that go to dev, about that share of every quintile of the labels.

    Raises:
        RequestError: fewer than two different texts.
    """
    members = _members(texts, labels)
    if len(members) < 2:
        raise RequestError(
            "all rows have the same text; at least 2 different ones are needed, "
            "one to train on and one to judge by."
        )
    mean = {text: math.fsum(found) / len(found) for text, found in members.items()}
    ordered = sorted(members, key=lambda text: (mean[text], _hash(text)))
    n_strata = max(1, min(QUANTILES, int(len(ordered) * share)))
    bounds = [len(ordered) * i // n_strata for i in range(n_strata + 1)]
    strata = [ordered[start:end] for start, end in itertools.pairwise(bounds)]
    return {text for group in strata for text in _share(group, members, share)}


def _members(texts: Sequence[Texts], labels: Sequence[Label]) -> dict[Texts, list[Label]]:
    members: dict[Texts, list[Label]] = defaultdict(list)
    for text, label in zip(texts, labels, strict=True):
        members[text].append(label)
    return members


def _share(stratum: list[Texts], members: dict[Texts, list[Label]], share: float) -> list[Texts]:
    """Groups of `stratum` for dev: at least one, never all, and near that share of the examples."""
    ordered = sorted(stratum, key=_hash)
    wanted = max(1, round(sum(len(members[text]) for text in ordered) * share))
    taken: list[Texts] = []
    size = 0
    for text in ordered:
        if size + len(members[text]) <= wanted:
            taken.append(text)
            size += len(members[text])
    return taken or [min(ordered, key=lambda text: len(members[text]))]


def _hash(text: Texts) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()
