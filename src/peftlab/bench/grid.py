"""From a suite to its cells: everything that can be wrong is found here, before anything trains.

The model is found and its structure built without weights, every method is injected into that,
the tasks are loaded once; what is left for a cell is to train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch

from peftlab.bench.cell import Cell
from peftlab.bench.own import OwnMethod, sent, source_hash
from peftlab.bench.suite import Suite, Variant
from peftlab.errors import RequestError
from peftlab.layers import Precision, resolve_device, resolve_precision
from peftlab.methods import Method, NeedsDevice, inject, make
from peftlab.models import (
    Source,
    Unit,
    check_weights,
    empty_model,
    find,
    hidden_size,
    longest_input,
    state_of,
)
from peftlab.records.record import MethodPart, ModelPart, TaskPart
from peftlab.settings import Resolved, Training
from peftlab.tasks import Task, carved, load, load_file

# Three passes are enough where a pass has a hundred updates. Five hundred rows make 16: lora's
# rates need some 300 to move anything. Over fewer than 320 rows that would be more than thirty
# passes, by which a model knows each row by heart.
LEAST_EPOCHS, MOST_EPOCHS, LEAST_UPDATES = 3, 30, 300


@dataclass(frozen=True)
class Grid:
    """The cells of a suite in the order they run, and the data that they share."""

    suite: Suite
    cells: list[Cell]
    tasks: dict[str, Task]
    notes: list[str]


def resolve(suite: Suite) -> Grid:
    """Turn a suite into cells.

    Raises:
        RequestError: for an unknown model, task, method, setting or target, a value out of range,
            or data that can't be read.
    """
    methods = [make(variant.name, variant.settings) for variant in suite.methods]
    tasks = load_tasks(suite)
    source = find(suite.model)
    sizes = Sizes(longest_input(source.folder), hidden_size(source.folder))
    device = resolve_device(suite.training.device)
    precision, why = resolve_precision(suite.training.precision, device.value)
    check_weights(source)
    parts = [
        _method_part(
            source,
            suite.training,
            variant,
            method,
            precision.of_base(method.base_precision),
            device.value,
        )
        for variant, method in zip(suite.methods, methods, strict=True)
    ]
    _check_rows(parts, suite)
    own_methods = [sent(type(method)) for method in methods]
    cells = [
        make_cell(
            suite=suite.name,
            source=source,
            task=task,
            part=part,
            training=resolve_training(suite.training, variant, method, task, sizes, device.value),
            precision=precision.of_base(method.base_precision),
            seed=seed,
            own=own,
        )
        for task, seed, (variant, method, part, own) in product(
            tasks,
            dict.fromkeys(suite.seeds),
            list(zip(suite.methods, methods, parts, own_methods, strict=True)),
        )
    ]
    notes = [f"device {device.value} ({device.reason}), {precision.base} ({why})"]
    notes += list(dict.fromkeys(note for part in parts for note in part.notes))
    return Grid(suite, cells, {task.name: task for task in tasks}, notes)


def load_tasks(suite: Suite) -> list[Task]:
    """The suite's tasks, each once, with their data; dev is the part that they are judged on."""
    tasks = _read_tasks(suite)
    if suite.metric is not None:
        tasks = [task.judged_by(suite.metric) for task in tasks]
    if suite.judge_on == "train":
        tasks = [carved(task) for task in tasks]
    for task in tasks:
        if len(task.train) == 0 or len(task.dev) == 0:
            empty = "train" if len(task.train) == 0 else "dev"
            raise RequestError(f"task {task.name}: its {empty} split is empty")
        if task.kind == "regression":
            _check_labels(task)
    return tasks


def _read_tasks(suite: Suite) -> list[Task]:
    if suite.data is not None:
        data = suite.data
        return [load_file(data.path, data.text, data.label, data.dev, data.kind)]
    tasks = [load(task, suite.data_dir) if isinstance(task, str) else task for task in suite.tasks]
    return list({task.name: task for task in tasks}.values())


def _check_labels(task: Task) -> None:
    try:
        Unit.of(task.train.labels)
    except RequestError as error:
        raise RequestError(f"task {task.name}: {error}") from None


def _method_part(
    source: Source,
    asked: Training,
    variant: Variant,
    method: Method,
    precision: Precision,
    device: str,
) -> MethodPart:
    model = empty_model(source.folder, num_labels=2, precision=precision.base)
    try:
        if isinstance(method, NeedsDevice):
            method.check_device(device)
        inject(model, method)
    except RequestError as error:
        raise RequestError(f"method {variant.label} on model {source.name}: {error}") from error
    return method_part(model, method, asked, variant)


def method_part(model: Any, method: Method, asked: Training, variant: Variant) -> MethodPart:
    """The record's part on the method that `model` was injected with."""
    targets = state_of(model).targets
    return MethodPart(
        name=method.name,
        label=variant.label,
        settings=method.settings,
        targets=targets.patterns if targets else [],
        notes=targets.notes if targets else [],
        rate_from="asked for" if _asked_rate(asked, variant, method) else "default",
        source_sha256=source_hash(type(method)),
    )


class Sizes(NamedTuple):
    """What of a model decides settings: the most tokens it takes, and its hidden states' width."""

    longest: int
    width: int


def resolve_training(
    asked: Training, variant: Variant, method: Method, task: Task, sizes: Sizes, device: str
) -> Resolved:
    """The training settings with every default filled in by method, task and model."""
    limit = sizes.longest
    if asked.max_length is not None and asked.max_length > limit:
        raise RequestError(f"max_length must be <= {limit} for this model, got {asked.max_length}")
    if asked.class_weights != "none" and task.kind == "regression":
        raise RequestError(
            f"class_weights must be none for {task.name}, which is a regression and has no "
            f"classes, got {asked.class_weights!r}"
        )
    lr, head_lr = resolve_rates(asked, variant, method, sizes.width)
    return asked.resolved(
        epochs=asked.epochs or default_epochs(len(task.train), asked.batch_size),
        lr=lr,
        head_lr=head_lr,
        max_length=asked.max_length or min(task.max_length, limit),
        device=device,
        threads=asked.threads or torch.get_num_threads(),
    )


def resolve_rates(
    asked: Training, variant: Variant, method: Method, width: int
) -> tuple[float, float]:
    """The learning rates of adapter and head: the row's own, the suite's, or the defaults.

    Where the head is all that is trained both are one, which either may set.
    """
    lr = _asked_rate(asked, variant, method) or method.lr_at(width)
    if method.head_alone:
        return lr, lr
    return lr, variant.head_lr or asked.head_lr or method.default_head_lr


def _asked_rate(asked: Training, variant: Variant, method: Method) -> float | None:
    if method.head_alone:
        return variant.lr or variant.head_lr or asked.lr or asked.head_lr
    return variant.lr or asked.lr


def default_epochs(n_train: int, batch_size: int) -> int:
    """Three, or as many as make `LEAST_UPDATES`, but no more than `MOST_EPOCHS`.

    >>> default_epochs(8000, 32), default_epochs(500, 32), default_epochs(100, 32)
    (3, 19, 30)
    """
    wanted = math.ceil(LEAST_UPDATES / math.ceil(n_train / batch_size))
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))


def make_cell(
    *,
    suite: str,
    source: Source,
    task: Task,
    part: MethodPart,
    training: Resolved,
    precision: Precision,
    seed: int,
    own: OwnMethod | None,
) -> Cell:
    """One cell of what was found for it."""
    return Cell(
        suite=suite,
        model=ModelPart(name=source.name, revision=source.revision, sha256=source.sha256),
        model_folder=source.folder,
        model_type=source.model_type,
        task=task_part(task),
        method=part,
        training=training,
        precision=precision,
        seed=seed,
        own=own,
    )


def task_part(task: Task) -> TaskPart:
    """The record's part on a task that is not tokenised yet."""
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


def _check_rows(parts: list[MethodPart], suite: Suite) -> None:
    rows = [
        (variant.label, f"{part.name} {part.settings}", variant.lr, variant.head_lr)
        for variant, part in zip(suite.methods, parts, strict=True)
    ]
    labels = [row[0] for row in rows]
    asked = [row[1:] for row in rows]
    for row in rows:
        if asked.count(row[1:]) > 1 and labels.count(row[0]) == 1:
            same = [other[0] for other in rows if other[1:] == row[1:]]
            raise RequestError(f"{' and '.join(same)} ask for the same; leave one of them out")
        if labels.count(row[0]) > 1:
            raise RequestError(
                f"two methods are labelled {row[0]!r}; give each a label of its own, "
                'as in { name = "lora", label = "LoRA r=16", rank = 16 }'
            )
