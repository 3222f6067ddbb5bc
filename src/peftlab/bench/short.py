"""A short task: what is measured in a few steps is measured on these examples."""

from __future__ import annotations

from dataclasses import replace

from peftlab.tasks import Examples, Task
from peftlab.training.batches import stratified


def short(task: Task, n_train: int, n_dev: int) -> Task:
    """The task with so many examples to train on and to answer, or all where there are fewer.

    They are a sample in which every class has its share, the same whenever it is drawn.
    """
    return replace(task, train=_sample(task.train, n_train), dev=_sample(task.dev, n_dev), notes=())


def _sample(examples: Examples, size: int) -> Examples:
    chosen = stratified(examples.labels, size, seed=0)
    return Examples([examples.texts[i] for i in chosen], [examples.labels[i] for i in chosen])
