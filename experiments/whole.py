"""All records of a folder of `peftlab compare`, where a missing one would change the answer."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import RequestError
from peftlab.records.record import Record
from peftlab.records.store import Store


def whole(folder: Path) -> list[Record]:
    """Every record of the folder.

    Raises:
        RequestError: if there is none, or one can't be read.
    """
    store = Store(folder)
    if damaged := store.unreadable():
        raise RequestError(f"{folder} has records that can't be read: {', '.join(damaged)}")
    return store.records()
