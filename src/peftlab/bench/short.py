"""Short tasks and cells of one epoch, for measurements that need a few steps only."""

from __future__ import annotations

from dataclasses import replace

from peftlab.bench.cell import Cell
from peftlab.records.record import TaskPart
from peftlab.tasks import Examples, Task
from peftlab.training.batches import stratified_sample


def short(task: Task, n_train: int, n_dev: int) -> Task:
    """The task with at most `n_train` examples to train on and `n_dev` to answer.

    They are a sample in which every class has its share, the same whenever it is drawn, and in
    which not all labels are equal, unless one example is drawn or all of the task's are.
    """
    return replace(task, train=_sample(task.train, n_train), dev=_sample(task.dev, n_dev), notes=())


def short_cell(cell: Cell, task: TaskPart, seed: int | None = None) -> Cell:
    """The cell with one epoch of another task, and with another seed if one is given."""
    training = cell.training.model_copy(update={"epochs": 1})
    seed = cell.seed if seed is None else seed
    return cell.model_copy(update={"task": task, "training": training, "seed": seed})


def _sample(examples: Examples, size: int) -> Examples:
    chosen = stratified_sample(examples.labels, size, seed=0)
    seen = {examples.labels[index] for index in chosen}
    other = next((i for i, label in enumerate(examples.labels) if label not in seen), None)
    if len(seen) == 1 and other is not None:  # nothing can be trained on one answer
        chosen[-1] = other
    return Examples([examples.texts[i] for i in chosen], [examples.labels[i] for i in chosen])
