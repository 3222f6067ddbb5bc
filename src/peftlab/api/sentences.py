"""The texts of a folder's dev examples, read from its tasks' data again: no record holds them.

A page shows them only on request (`peftlab report DIR --sentences`): data may be private, and a
page is easily passed on.
"""

from __future__ import annotations

from pathlib import Path

from peftlab.api.again import task_again
from peftlab.records.store import Store, select


def sentences(
    folder: Path,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    last: bool = False,
) -> dict[str, list[str]]:
    """The dev texts of every task, by the sha256 of its data; the texts of a pair are joined by |.

    Args:
        folder: of a comparison, or of several that were joined.
        tasks: the names of the tasks to read; None for all.
        methods: only tasks with a row of one of these labels or names; None for all.
        last: whether to read only the tasks that the latest comparison requested.

    Raises:
        RequestError: if the data of a task can't be read where its suite found it, or has changed
            since: other texts would stand beside the answers.
    """
    store = Store(folder)
    by_data = {record.task.sha256: record for record in select(store.records(last), tasks, methods)}
    return {
        sha256: [" | ".join(texts) for texts in task_again(store, record).dev.texts]
        for sha256, record in by_data.items()
    }
