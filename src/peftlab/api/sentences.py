"""What the dev examples of a folder say: of its tasks' own data, which no record holds.

A page shows them only if its reader asks (`peftlab report DIR --sentences`): data may be private,
and a page is easily passed on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.bench.grid import load_tasks
from peftlab.bench.suite import Suite
from peftlab.errors import RequestError
from peftlab.records.store import Store, chosen
from peftlab.tasks import Task, names

WHERE = ("data", "data_dir", "judge_on")  # what of a suite says where its texts are


def sentences(folders: Sequence[Path], tasks: list[str] | None = None) -> dict[str, list[str]]:
    """The dev texts of every task in the folders, by the sha256 of its data; of a pair both.

    Args:
        folders: of comparisons.
        tasks: these alone.

    Raises:
        RequestError: if a task's data can't be read where its suite found it, or is not what it
            was; nothing else could be laid beside the answers.
    """
    found: dict[str, list[str]] = {}
    for folder in folders:
        store = Store(folder)
        wanted = {one.task.sha256: one.task.name for one in chosen(store.records(), tasks, None)}
        found |= {
            task.sha256(): [" | ".join(texts) for texts in task.dev.texts]
            for suite in store.suites()
            for task in _tasks(suite, set(wanted.values()))
        }
        if lost := sorted({name for sha256, name in wanted.items() if sha256 not in found}):
            raise RequestError(
                f"--sentences: the texts of {', '.join(lost)} in {folder} are not to be had: they "
                "were handed over in Python, or have changed since; leave --sentences out, or "
                "name other tasks with --tasks"
            )
    return found


def _tasks(suite: dict[str, Any], wanted: set[str]) -> list[Task]:
    """The suite's tasks among `wanted`, with their data."""
    where = {key: suite[key] for key in WHERE if suite.get(key)}
    if "data" not in where:
        where["tasks"] = sorted(wanted & set(names()) & set(suite.get("tasks") or []))
    if not where.get("tasks", True):
        return []
    # as JSON, for a path is a string there
    return load_tasks(Suite.model_validate_json(json.dumps({"name": suite["name"], **where})))
