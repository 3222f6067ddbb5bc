"""A suite's tasks with their examples: train can be learnt from, and dev tells models apart.

Settings are chosen on a part of train, which is made here too.
"""

from __future__ import annotations

from peftlab.bench.suite import Suite
from peftlab.errors import RequestError
from peftlab.models import Unit
from peftlab.records.rows import LOWER_IS_BETTER
from peftlab.tasks import Task, carve, load, load_file


def load_tasks(suite: Suite) -> list[Task]:
    """The suite's tasks, each once, with their data; methods are judged on each task's dev."""
    tasks = _read_tasks(suite)
    if suite.metric is not None:
        tasks = [task.judged_by(suite.metric) for task in tasks]
    if suite.judge_on == "train":
        tasks = [carve(task) for task in tasks]
    for task in tasks:
        check_task(task)
    return tasks


def part_of_train(task: Task, share: float) -> Task:
    """The task with a share of its train as dev, to choose by.

    Raises:
        RequestError: if that share, or the rest of train, can't be had or has one answer only: it
            would tell no setting from another.
    """
    part = carve(task, share)
    try:
        check_task(part)
    except RequestError:
        raise RequestError(
            f"task {task.name}: {share:.3g} of train, by which settings are chosen, or the rest of "
            "it has one answer only; give more rows"
            + (", or take --metric rmse" if task.kind == "regression" else "")
        ) from None
    return part


def check_task(task: Task) -> None:
    """Raise `RequestError` unless train can be learnt from and dev tells one model from another."""
    _check_train(task)
    _check_dev(task)


def _check_train(task: Task) -> None:
    if len(task.train) == 0 or len(task.dev) == 0:
        empty = "train" if len(task.train) == 0 else "dev"
        raise RequestError(f"task {task.name}: its {empty} split is empty")
    if task.kind == "regression":
        _check_labels(task)
    elif len(set(task.train.labels)) < 2:
        raise RequestError(
            f"task {task.name}: every example of train is of one class, so that nothing can be "
            "learnt; give a train with several"
        )


def _check_dev(task: Task) -> None:
    # an error such as rmse tells models apart also where all labels are equal
    needs_variety = task.kind == "classes" or task.main_metric not in LOWER_IS_BETTER
    if needs_variety and len(set(task.dev.labels)) == 1:
        answer = task.labels[int(task.dev.labels[0])] if task.labels else task.dev.labels[0]
        raise RequestError(
            f"task {task.name}: every example of dev has the answer {answer!r}, so that no score "
            "tells a model from a constant answer; give a dev with several"
        )


def _read_tasks(suite: Suite) -> list[Task]:
    if suite.data is not None:
        data = suite.data
        return [load_file(data.path, data.text, data.label, data.dev, data.kind)]
    tasks = [load(task, suite.data_dir) if isinstance(task, str) else task for task in suite.tasks]
    return _without_duplicates(tasks)


def _without_duplicates(tasks: list[Task]) -> list[Task]:
    """The tasks, each once.

    Raises:
        RequestError: if different tasks share a name: their records would be mixed.
    """
    by_name: dict[str, Task] = {}
    for task in tasks:
        first = by_name.setdefault(task.name, task)
        if first is not task and _identity(first) != _identity(task):
            raise RequestError(
                f"two tasks are called {task.name!r} and differ (from {first.source} and "
                f"{task.source}); give one of them another name"
            )
    return list(by_name.values())


def _identity(task: Task) -> tuple[object, ...]:
    return task.sha256(), task.metrics, task.max_length


def _check_labels(task: Task) -> None:
    try:
        Unit.of(task.train.labels)
    except RequestError as error:
        raise RequestError(f"task {task.name}: {error}") from None
