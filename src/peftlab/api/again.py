"""The task that a record is of, from where the suite that asked for it found its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.bench.grid import load_tasks
from peftlab.bench.suite import Suite, with_paths
from peftlab.errors import RequestError
from peftlab.records.record import Record
from peftlab.records.store import Store
from peftlab.tasks import Task, names


def task_again(store: Store, record: Record) -> Task:
    """The task with its data, which is what the record's cell saw.

    Args:
        store: of the folder that has the record; of one that others were joined to, theirs.
        record: of a done cell.

    Raises:
        RequestError: if the data was handed over in Python, can't be read, or is no longer the
            same, or if no suite says where it lies.
    """
    asked = _asked(store, record)
    try:
        suite = Suite.model_validate(
            {
                "name": asked["name"],
                "tasks": [record.task.name],
                "data": asked["data"] and with_paths(asked["data"], Path),
                "data_dir": Path(asked["data_dir"]) if asked["data_dir"] else None,
                "metric": record.task.main_metric,
                "judge_on": asked.get("judge_on", "dev"),
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


def _asked(store: Store, record: Record) -> dict[str, Any]:
    """The latest suite that asked for the record's cell, or else for its task."""
    suites = store.suites()[::-1]
    for suite in suites:
        if record.side in suite.get("sides", {}):
            return _asked_there(Store(Path(suite["sides"][record.side])), record)
        if any(cell["cell"] == record.cell for cell in suite["cells"]):
            return suite
    for suite in suites:
        if record.task.name in suite.get("tasks", []):
            return suite
    raise RequestError(
        f"{store.out / 'suite.json'} does not say where the data of {record.cell} lies; run the "
        "same `peftlab compare` again, which writes it and trains nothing"
    )


def _asked_there(home: Store, marked: Record) -> dict[str, Any]:
    """Of a record that was joined with others, in the folder that it is from."""
    alike = [one for one in home.records() if one.task == marked.task]
    if not alike:
        raise RequestError(f"{home.out} no longer has the task that {marked.cell} is of")
    return _asked(home, alike[0])
