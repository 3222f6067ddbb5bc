"""What the dev examples of a folder say: of its tasks' own data, which no record holds.

A page shows them only if its reader asks (`peftlab report DIR --sentences`): data may be private,
and a page is easily passed on.
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
    """The dev texts, both of a pair, by the sha256 of their task's data.

    Args:
        folder: of a comparison, or of several that were joined.
        tasks: these alone.
        methods: those of these rows alone, by label or name.
        last: only those that the latest comparison asked for.

    Raises:
        RequestError: if the data of one of them can't be read where its suite found it, or is not
            what it was: nothing else could be laid beside the answers.
    """
    store = Store(folder)
    of_data = {one.task.sha256: one for one in select(store.records(last), tasks, methods)}
    return {
        sha256: [" | ".join(texts) for texts in task_again(store, record).dev.texts]
        for sha256, record in of_data.items()
    }
