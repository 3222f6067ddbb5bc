"""Which cells' adapters stay on disk: all of them, the best seed's of each row, or none.

A method that changes the whole model, full fine-tuning, keeps its best seed's at most: each is as
large as the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal, get_args

from peftlab.bench.cell import Cell
from peftlab.errors import unknown
from peftlab.methods import METHODS
from peftlab.records.record import Record
from peftlab.records.rows import merit, row_of
from peftlab.records.store import Store

Keep = Literal["all", "best", "none"]


def check_keep(keep: str) -> None:
    """Raise `RequestError` if that is no way to keep adapters."""
    if keep not in get_args(Keep):
        raise unknown("keep", str(keep), get_args(Keep))


def room_mib(missing: Sequence[Cell], keep: Keep) -> float:
    """The disk space of whole models: the best one of each row, and a new one beside them."""
    whole = {cell.row for cell in missing if METHODS[cell.method.name].saves_full_weights}
    if keep == "none" or not whole:
        return 0.0
    folder = missing[0].model_folder
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return (len(whole) + 1) * size / 2**20


def drop_beaten(
    store: Store, records: Sequence[Record], beside: Sequence[Record], keep: Keep
) -> None:
    """Delete the adapters that `keep` does not want, given the records so far.

    The best is the best of those whose adapter is there. Of `beside`, other records of the folder,
    those of the same rows count: their seeds were asked for by another command.
    """
    asked = {row_of(record) for record in records}
    rows: dict[str, list[Record]] = {}
    for record in (*records, *(one for one in beside if row_of(one) in asked)):
        whole = METHODS[record.method.name].saves_full_weights
        kept = store.adapter(record.cell).is_dir()
        if kept and record.is_done and (whole or keep == "best"):
            rows.setdefault(row_of(record), []).append(record)
    for row in rows.values():
        for record in row:
            if record is not best_seed(row):
                shutil.rmtree(store.adapter(record.cell), ignore_errors=True)


def best_seed(row: Sequence[Record]) -> Record:
    """Of one row's done cells, the one with the best last score; of equals, the first seed."""
    return max(
        row,
        key=lambda record: (merit(record.task.main_metric, main_score(record)), -record.seed),
    )


def main_score(record: Record) -> float:
    """The main metric after the last epoch."""
    assert record.score is not None
    return record.score[record.task.main_metric]
