"""Which cells' adapters stay on disk: all of them, the best seed's of each row, or none.

Of a method that saves whole models, such as full fine-tuning, at most the best seed's stays: each
is as large as the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal, get_args

from peftlab.bench.cell import Cell
from peftlab.errors import unknown
from peftlab.methods import METHODS
from peftlab.records.record import Record
from peftlab.records.rows import merit, seeds_key
from peftlab.records.store import Store

Keep = Literal["all", "best", "none"]


def check_keep(keep: str) -> None:
    """Raise `RequestError` unless `keep` is one of the values of `Keep`."""
    if keep not in get_args(Keep):
        raise unknown("keep", str(keep), get_args(Keep))


def room_mib(missing: Sequence[Cell], keep: Keep) -> float:
    """MiB of the whole models that will lie on disk: the best of each row, and the newest one."""
    rows = {cell.row for cell in missing if METHODS[cell.method.name].saves_full_weights}
    if keep == "none" or not rows:
        return 0.0
    folder = missing[0].model_folder
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return (len(rows) + 1) * size / 2**20


def drop_beaten(
    store: Store, records: Sequence[Record], others: Sequence[Record], keep: Keep
) -> None:
    """Delete the adapters that `keep` does not want, given the records so far.

    Of a row, the best of the seeds whose adapters exist is kept. `others` are the folder's other
    records; those of the same rows count too, as seeds that another command asked for, but not
    those at values that another search found.
    """
    keys = {seeds_key(record) for record in records}
    rows: dict[str, list[Record]] = {}
    for record in (*records, *(other for other in others if seeds_key(other) in keys)):
        keeps_one = keep == "best" or METHODS[record.method.name].saves_full_weights
        if keeps_one and record.is_done and store.adapter(record.cell).is_dir():
            rows.setdefault(seeds_key(record), []).append(record)
    for row in rows.values():
        best = best_seed(row)
        for record in row:
            if record is not best:
                shutil.rmtree(store.adapter(record.cell), ignore_errors=True)


def best_seed(row: Sequence[Record]) -> Record:
    """The done cell of a row with the best last score; of equal scores, that of the first seed."""
    return max(
        row,
        key=lambda record: (merit(record.task.main_metric, main_score(record)), -record.seed),
    )


def main_score(record: Record) -> float:
    """The main metric after the last epoch."""
    assert record.score is not None
    return record.score[record.task.main_metric]
