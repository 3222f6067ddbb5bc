"""Load the task of a record again, from where its suite found the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.bench.suite import Suite, with_paths
from peftlab.bench.suite_tasks import load_tasks
from peftlab.errors import RequestError
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.tasks import Task, names


def task_again(store: Store, record: Record) -> Task:
    """The task with the data that the record's cell saw.

    Args:
        store: of the folder that holds the record; it may be one that others were joined in.
        record: of any cell of that folder.

    Raises:
        RequestError: if the data was handed over in Python, can't be read, or is no longer the
            same, or if no suite says where it lies.
    """
    request = _suite_of(store, record)
    try:
        suite = Suite.model_validate(
            {
                "name": request["name"],
                "tasks": [record.task.name],
                "data": request["data"] and with_paths(request["data"], Path),
                "data_dir": Path(request["data_dir"]) if request["data_dir"] else None,
                "metric": record.task.main_metric,
                "judge_on": request.get("judge_on", "dev"),
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{store.out / 'suite.json'} is damaged ({error}); run the same `peftlab compare` "
            "again, which writes it anew and trains nothing"
        ) from error
    if suite.data is None and record.task.name not in names():
        raise RequestError(
            f"task {record.task.name} was handed over in Python, so its data is not at hand (there "
            "export takes it: task=)"
        )
    task = load_tasks(suite)[0]
    if task.sha256() != record.task.sha256:
        where = f" ({suite.data.path})" if suite.data else ""
        raise RequestError(
            f"the data of task {task.name}{where} is no longer what {record.cell} saw; put it back "
            "as it was, or run the same `peftlab compare` again, which trains on what it is now"
        )
    return task


def _suite_of(store: Store, record: Record) -> dict[str, Any]:
    """The latest suite that requested the record's cell, or else its task, as suite.json has it."""
    suites = store.suites()[::-1]
    for suite in suites:
        if record.side in suite.get("sides", {}):
            return _suite_of_joined(Store(Path(suite["sides"][record.side])), record)
        if any(cell["cell"] == record.cell for cell in suite["cells"]):
            return suite
    for suite in suites:
        if record.task.name in suite.get("tasks", []):
            return suite
    raise RequestError(
        f"{store.out / 'suite.json'} does not say where the data of {record.cell} lies; run the "
        "same `peftlab compare` again, which writes it and trains nothing"
    )


def _suite_of_joined(origin: Store, joined: Record) -> dict[str, Any]:
    """The suite of a joined record in the folder that it comes from.

    It is that of the first record there on the same data: joining gave the cell another name.
    """
    matches = [
        record
        for record in origin.records()  # whose metric may be another one by now
        if (record.task.name, record.task.sha256) == (joined.task.name, joined.task.sha256)
    ]
    if not matches:
        raise RequestError(f"{origin.out} no longer has the task that {joined.cell} is of")
    return _suite_of(origin, matches[0])
