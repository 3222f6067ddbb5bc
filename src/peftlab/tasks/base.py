"""A task: texts with labels, split into train and dev, and the metrics that judge a model on it.

Tasks come from five places, all of which give the same plain value, `Task`: the built-in synthetic
ones (one file each in builtin/), GLUE (glue.py), a user's own file (files/), a table in memory
(table.py) and any data set of the hub (hub.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator
from pydantic.dataclasses import dataclass

from peftlab.errors import Explained, RequestError, unknown
from peftlab.labels import Kind, LabelType, check_encodable, check_names
from peftlab.naming import counted, listed
from peftlab.tasks.metrics import ALLOWED, score


@dataclass(frozen=True)
class Examples(metaclass=Explained):
    """One split: `texts[i]` has one text per text column (one, or a pair), `labels[i]` the answer.

    A label is an index into `Task.labels` for classes and a number for a regression. A plain string
    stands for a tuple of one. `peftlab.make_task` makes both splits from a table, and takes names
    of classes.
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    @field_validator("texts", mode="before")
    @classmethod
    def _wrap_strings(cls, texts: Any) -> Any:
        if not is_column(texts):
            return texts  # for pydantic to refuse
        return [(text,) if isinstance(text, str) else text for text in texts]

    @field_validator("labels", mode="before")
    @classmethod
    def _unwrap_scalars(cls, labels: Any) -> Any:
        if not is_column(labels):
            return labels
        values = [label.item() if hasattr(label, "item") else label for label in labels]
        if names := [label for label in values if isinstance(label, str)]:
            raise RequestError(
                f"the label {names[0]!r} is a text; labels are indices into Task.labels, or "
                "numbers; peftlab.make_task takes names"
            )
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts have {len(self.labels)} labels")
        if not all(isinstance(label, int) or math.isfinite(label) for label in self.labels):
            raise ValueError("a label is NaN or infinite")
        if (widths := {len(texts) for texts in self.texts}) not in ({1}, {2}, set()):
            given = listed(sorted(map(str, widths)))
            raise ValueError(f"a row must be one text, or a pair in all rows; rows have {given}")
        for texts in self.texts:
            for text in texts:
                check_encodable(text)
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        first = f": {reprlib.repr(self.texts[0])} -> {self.labels[0]!r}" if self.labels else ""
        return f"<{counted(len(self), 'example')}{first}{', ...' * (len(self) > 1)}>"


def is_column(values: Any) -> bool:
    """Whether `values` can be iterated as cells: a text, a mapping or a table can't."""
    is_excluded = isinstance(values, str | bytes | Mapping) or hasattr(values, "columns")
    return isinstance(values, Iterable) and not is_excluded


@dataclass(frozen=True)
class Task(metaclass=Explained):
    """What a model is asked, with the data that it is trained and judged on.

    Attributes:
        name: as on the command line and in the record.
        kind: "classes" (cross-entropy) or "regression" (one output, mean squared error).
        metrics: names of metrics.py; the first is the main one, which tables and "best" use.
            The others of the task's kind are recorded too.
        labels: the classes' names, in the order of their indices; empty for a regression.
        max_length: longest input in tokens; longer ones are cut.
        source: where the data came from: "synthetic", "folder ...", "hub ..." or "file ...";
            followed by ", a fifth of train" where a part of train stands in for dev.
        columns: the names of the text columns in their file, where they have any.
        notes: what was decided about the data, and how to ask for something else.
        dev_notes: what must be known of this dev, and of no part of train in its place.
        licence: of the data, in its source's own words; None where the source names none.
        label_type: of the labels whose names are `labels`: "3" may name a number or a text.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    train: Examples
    dev: Examples
    labels: tuple[str, ...] = ()
    max_length: int = Field(default=128, ge=4)
    source: str = "python"
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dev_notes: tuple[str, ...] = ()
    licence: str | None = None
    label_type: LabelType = "str"

    @model_validator(mode="after")
    def _check(self) -> Self:
        allowed = ALLOWED[self.kind]
        wrong_metrics = [metric for metric in self.metrics if metric not in allowed]
        if wrong_metrics or not self.metrics:
            given = ", ".join(wrong_metrics) or "none"
            raise ValueError(f"metrics of {self.kind} are {', '.join(allowed)}; given: {given}")
        if self.train.texts and self.dev.texts:
            n_train, n_dev = (len(split.texts[0]) for split in (self.train, self.dev))
            if n_train != n_dev:
                raise ValueError(f"train has {n_train} texts a row and dev {n_dev}")
        if self.kind == "classes":
            self._check_classes()
        return self

    def _check_classes(self) -> None:
        n_classes = len(self.labels)
        if not n_classes:
            raise ValueError("labels is missing: the names of the classes, in their order")
        check_names(self.labels, self.label_type)
        indices = range(n_classes)
        for name, split in (("train", self.train), ("dev", self.dev)):
            wrong = [i for i in split.labels if not isinstance(i, int) or i not in indices]
            if wrong:
                raise ValueError(
                    f"{name} has the label {wrong[0]}; labels of classes are indices from 0 to "
                    f"{n_classes - 1} (whole numbers), into the task's {n_classes} labels"
                )

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    @property
    def every_metric(self) -> tuple[str, ...]:
        """The metrics that score a run: the task's own, then all others of its kind."""
        return tuple(dict.fromkeys((*self.metrics, *ALLOWED[self.kind])))

    def judged_by(self, metric: str) -> Task:
        """The task with `metric` as its main one.

        Raises:
            RequestError: if `metric` is not one for tasks of this kind.
        """
        allowed = ALLOWED[self.kind]
        if metric not in allowed:
            raise unknown(f"metric of {self.kind} (task {self.name})", metric, allowed)
        return dataclasses.replace(self, metrics=tuple(dict.fromkeys((metric, *self.metrics))))

    def constant(self, metric: str) -> float:
        """The answer that, given to every text, is best on train by `metric`.

        For classes the commonest one, except that F1 of two classes, which scores class 1, is best
        with that class. For a regression the mean, or the median by the mean absolute error.
        """
        labels = self.train.labels
        if self.kind == "regression":
            return (statistics.median if metric == "mae" else statistics.fmean)(labels)
        if metric == "f1" and len(self.labels) == 2:
            return 1.0
        counts = Counter(labels)
        return min(counts, key=lambda label: (-counts[label], label))

    @property
    def balanced_weights(self) -> tuple[float, ...]:
        """One weight per class, n / (k · count) over the k classes of train: all count alike.

        These are scikit-learn's "balanced" weights. A class that does not occur in train has 1.
        """
        counts = Counter(self.train.labels)
        n, k = len(self.train), len(counts)
        return tuple(n / (k * counts[i]) if i in counts else 1.0 for i in range(len(self.labels)))

    def score(self, answers: Sequence[float]) -> dict[str, float]:
        """Score `answers` for dev, indices of classes or numbers, by every metric."""
        n_classes = self.num_labels if self.kind == "classes" else None
        return score(self.every_metric, self.dev.labels, answers, n_classes)

    @property
    def num_labels(self) -> int:
        """The number of outputs of the head: one per class, or one for a regression."""
        return len(self.labels) if self.kind == "classes" else 1

    def sha256(self) -> str:
        """Hash of the kind, the labels and every example, wherever the data lies."""
        content = [self.kind, self.labels, self.train.texts, self.train.labels]
        content += [self.dev.texts, self.dev.labels]
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the task as JSON, so that another process reads the very same examples."""
        path.write_bytes(_ADAPTER.dump_json(self))

    @staticmethod
    def read(path: Path) -> Task:
        return _ADAPTER.validate_json(path.read_bytes())


_ADAPTER = TypeAdapter(Task)


@dataclass(frozen=True)
class BuiltIn:
    """A built-in task: what is known of it before its examples are generated."""

    name: str
    summary: str
    kind: Kind
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    generate: Callable[[], tuple[Examples, Examples]]
    source: ClassVar[str] = "synthetic, built in"

    def is_here(self, data_dir: Path | None = None) -> bool:
        """Whether it can be loaded without a network: always."""
        return True

    def load(self) -> Task:
        """Generate the examples: the same ones on every machine and in every process."""
        train, dev = self.generate()
        return Task(
            name=self.name,
            kind=self.kind,
            metrics=self.metrics,
            train=train,
            dev=dev,
            labels=self.labels,
            source="synthetic",
        )
