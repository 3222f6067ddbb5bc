"""Resolve a suite into its cells, and find all that is wrong with it before anything trains.

The model is found, its structure is built without weights, every method is injected into that, and
the tasks are loaded once. All that a cell still has to do is to train.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from peftlab.bench.cell import Cell
from peftlab.bench.own_method import OwnMethod, own_method, place_of, source_hash
from peftlab.bench.suite import Suite, Variant
from peftlab.bench.suite_tasks import load_tasks
from peftlab.errors import RequestError
from peftlab.layers import Precision, resolve_device
from peftlab.machine import default_threads
from peftlab.methods import Method, NeedsDevice, inject, is_built_in, make
from peftlab.models import (
    Source,
    check_checkpointing,
    check_weights,
    find,
    longest_input,
    precision_for,
    sized_model,
    state_of,
)
from peftlab.records.record import MethodPart, ModelPart, TaskPart
from peftlab.settings import Resolved, Training
from peftlab.tasks import Task

# Three epochs are enough where an epoch has a hundred updates. Five hundred examples make only 16,
# and lora's rates need some 300 updates to move anything. With fewer than 320 examples 300 updates
# would be more than thirty epochs, after which a model knows each example by heart.
LEAST_EPOCHS, MOST_EPOCHS, LEAST_UPDATES = 3, 30, 300
RATES = ("lr", "head_lr")  # settings of the training that a row may have of its own


class Row(NamedTuple):
    """One valid row of the table: its method, and what a record says of it."""

    variant: Variant
    method: Method
    part: MethodPart
    own: OwnMethod | None

    @property
    def fixed(self) -> set[str]:
        """The names of the settings and rates that the row was given; trials leave them alone."""
        variant = self.variant
        fixed = {*variant.settings, *(rate for rate in RATES if getattr(variant, rate))}
        if self.method.head_alone and "head_lr" in fixed:  # its one rate, which either name sets
            fixed.add("lr")
        return fixed


@dataclass(frozen=True)
class SuiteContext:
    """What all cells of a suite share: the base, the device, the precision, the settings."""

    training: Training
    name: str  # the suite's
    source: Source
    longest: int  # the most tokens that the model takes
    device: str
    precision: Precision
    notes: tuple[str, ...]
    _parts: list[tuple[Task, TaskPart]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, suite: Suite) -> Self:
        """The context of a suite.

        Raises:
            RequestError: for an unknown model, or one that can't be trained as asked.
        """
        source = find(suite.model)
        longest = longest_input(source.folder)
        device = resolve_device(suite.training.device)
        check_weights(source)
        precision, reason = precision_for(source, suite.training.precision, device.value)
        notes = (f"device {device.value} ({device.reason}), {precision.base} ({reason})",)
        return cls(suite.training, suite.name, source, longest, device.value, precision, notes)

    def row(self, variant: Variant) -> Row:
        """The row that a variant describes, its method tried on the model's structure.

        Raises:
            RequestError: for an unknown method, setting or target, or a value out of range; and
                whatever a method of the caller's own raises, with its place.
        """
        method = make(variant.name, variant.settings)
        model = sized_model(self.source.folder, 2, self._precision_for(method))
        try:
            if isinstance(method, NeedsDevice):
                method.check_device(self.device)
            inject(model, method)
            if self.training.checkpointing:
                check_checkpointing(model)
        except RequestError as error:
            raise RequestError(
                f"method {variant.label} on model {self.source.name}: {error}"
            ) from error
        except Exception as error:
            if is_built_in(type(method)):
                raise
            raise RequestError(
                f"method {variant.label} on model {self.source.name}: its own code failed: "
                f"{type(error).__name__}: {error}{place_of(error, type(method))}"
            ) from error
        part = method_part(model, method, self.training, variant)
        return Row(variant, method, part, own_method(type(method)))

    def cell(self, row: Row, task: Task, seed: int, epochs: int | None = None) -> Cell:
        """The row's cell on a task, of `epochs` epochs, or of as many as the suite says."""
        source = self.source
        training = self.training.model_copy(update={"epochs": epochs} if epochs else {})
        return Cell(
            suite=self.name,
            model=ModelPart(name=source.name, revision=source.revision, sha256=source.sha256),
            model_folder=source.folder,
            model_type=source.model_type,
            task=self.task_part(task),
            method=row.part,
            training=resolve_training(
                training, row.variant, row.method, task, self.longest, self.device
            ),
            precision=self._precision_for(row.method),
            seed=seed,
            own=row.own,
        )

    def task_part(self, task: Task) -> TaskPart:
        """The record's part on a task, whose examples are hashed once: 400,000 take a second."""
        for known, part in self._parts:
            if known is task:
                return part
        part = task_part(task)
        self._parts.append((task, part))
        return part

    def _precision_for(self, method: Method) -> Precision:
        return self.precision.of_base(method.base_precision)


@dataclass(frozen=True)
class Grid:
    """The cells of a suite in the order they run, and what they share."""

    suite: Suite
    context: SuiteContext
    rows: list[Row]
    tasks: dict[str, Task]
    cells: list[Cell]

    @property
    def notes(self) -> list[str]:
        """What a user should know before the grid runs, each note once."""
        notes = (note for row in self.rows for note in row.part.notes)
        return [*self.context.notes, *dict.fromkeys(notes)]

    def with_rows(self, rows: Mapping[str, list[Row]]) -> Grid:
        """The grid with other rows on each task; `rows` are by the task's name."""
        return dataclasses.replace(self, cells=_cells(self.suite, self.context, self.tasks, rows))


def resolve(suite: Suite) -> Grid:
    """Turn a suite into cells.

    Raises:
        RequestError: for an unknown model, task, method, setting or target, a value out of range,
            or data that can't be read.
    """
    for variant in suite.methods:
        make(variant.name, variant.settings)  # checked before data and model are read: that is slow
    tasks = {task.name: task for task in load_tasks(suite)}
    context = SuiteContext.of(suite)
    rows = [context.row(variant) for variant in suite.methods]
    _check_rows(rows, suite)
    cells = _cells(suite, context, tasks, dict.fromkeys(tasks, rows))
    return Grid(suite, context, rows, tasks, cells)


def _cells(
    suite: Suite, context: SuiteContext, tasks: Mapping[str, Task], rows: Mapping[str, list[Row]]
) -> list[Cell]:
    return [
        context.cell(row, task, seed)
        for name, task in tasks.items()
        for seed in dict.fromkeys(suite.seeds)
        for row in rows[name]
    ]


def method_part(model: Any, method: Method, training: Training, variant: Variant) -> MethodPart:
    """A record's part on the method that `model` was injected with."""
    targets = state_of(model).targets
    return MethodPart(
        name=method.name,
        label=variant.label,
        settings=method.settings,
        targets=targets.patterns if targets else [],
        notes=targets.notes if targets else [],
        rate_from="asked for" if requested_rate(training, variant, method) else "default",
        source_sha256=source_hash(type(method)),
    )


def resolve_training(
    training: Training, variant: Variant, method: Method, task: Task, limit: int, device: str
) -> Resolved:
    """The training settings with every default filled in by method, task and model.

    `limit` is the most tokens that the model takes.
    """
    max_length, class_weights = training.max_length, training.class_weights
    if max_length is not None and max_length > limit:
        raise RequestError(f"max_length must be <= {limit} for this model, got {max_length}")
    if class_weights != "none" and task.kind == "regression":
        raise RequestError(
            f"class_weights must be none for {task.name}, which is a regression and has no "
            f"classes, got {class_weights!r}"
        )
    lr, head_lr = resolve_rates(training, variant, method)
    return training.resolved(
        epochs=training.epochs or default_epochs(len(task.train), training.batch_size),
        lr=lr,
        head_lr=head_lr,
        max_length=max_length or min(task.max_length, limit),
        device=device,
        threads=training.threads or default_threads(),
    )


def resolve_rates(training: Training, variant: Variant, method: Method) -> tuple[float, float]:
    """The learning rates of adapter and head: the row's own, the suite's, or the defaults.

    A method that trains the head alone has one rate, which either name sets. Of the suite's two the
    head's wins, which is also the rate of the other rows' heads.
    """
    lr = requested_rate(training, variant, method) or method.default_lr
    if method.head_alone:
        return lr, lr
    return lr, variant.head_lr or training.head_lr or method.default_head_lr


def requested_rate(training: Training, variant: Variant, method: Method) -> float | None:
    """The rate that was asked for, for the row or for all rows; None for the method's default."""
    if method.head_alone:
        return variant.lr or variant.head_lr or training.head_lr or training.lr
    return variant.lr or training.lr


def default_epochs(n_train: int, batch_size: int) -> int:
    """`LEAST_EPOCHS`, or as many as make `LEAST_UPDATES`, but no more than `MOST_EPOCHS`.

    >>> default_epochs(8000, 32), default_epochs(500, 32), default_epochs(100, 32)
    (3, 19, 30)
    """
    epochs = math.ceil(LEAST_UPDATES / math.ceil(n_train / batch_size))
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, epochs))


def task_part(task: Task) -> TaskPart:
    """A record's part on a task that is not tokenised yet."""
    return TaskPart(
        name=task.name,
        kind=task.kind,
        main_metric=task.main_metric,
        source=task.source,
        licence=task.licence,
        n_train=len(task.train),
        n_dev=len(task.dev),
        n_truncated=None,
        sha256=task.sha256(),
        labels=list(task.labels),
    )


def _check_rows(rows: list[Row], suite: Suite) -> None:
    labels = [row.variant.label for row in rows]
    keys = [_row_key(row, suite) for row in rows]
    for label, key in zip(labels, keys, strict=True):
        if labels.count(label) > 1:
            raise RequestError(
                f"two methods are labelled {label!r}; give each a label of its own, "
                'as in { name = "lora", label = "LoRA r=16", rank = 16 }'
            )
        if keys.count(key) > 1:
            pairs = zip(labels, keys, strict=True)
            equal = [other for other, other_key in pairs if other_key == key]
            raise RequestError(
                f"{' and '.join(equal)} ask for the same; leave one of them out, or change one"
            )


def _row_key(row: Row, suite: Suite) -> tuple[object, ...]:
    """What tells the row's cells from those of other rows, defaults filled in.

    Where trials find settings, a row that leaves a setting open differs from one that fixes it at
    its default.
    """
    rates = resolve_rates(suite.training, row.variant, row.method)
    fixed = row.fixed & set(suite.tune.space) if suite.tune else ()
    return (row.part.name, str(row.part.settings), rates, str(sorted(fixed)))
