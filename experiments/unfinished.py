"""Take a comparison that has not finished to another machine.

    python experiments/unfinished.py keep OUT KEPT
    python experiments/unfinished.py resume KEPT OUT

`keep` adds to KEPT what OUT has trained: the records of its trials, and the record, the curve and
the predictions of each cell, these without the labels of dev. `resume` adds that to OUT, with the
labels from the task's own data (PEFTLAB_DATA_DIR). Then the command that wrote OUT trains what is
missing, whose adapters it has alone, and judges all.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from whole import whole

from peftlab.atomic import write
from peftlab.errors import RequestError
from peftlab.records.record import Record, TaskPart
from peftlab.records.store import Store, lines_of, rows_of
from peftlab.records.trials import read_trials, write_trials
from peftlab.tasks import load

TRIALS = "tuning"


def keep(out: Path, kept: Path) -> None:
    """Add what `out` has trained to `kept`; a cell that failed is not kept, and runs again."""
    _copy_trials(out, kept)
    source, target = Store(out), Store(kept)
    for record in _done(out):
        answers = rows_of(source.predictions(record.cell))
        rows = [{name: row[name] for name in row if name != "label"} for row in answers]
        _copy_cell(record, rows, source, target)


def resume(kept: Path, out: Path) -> None:
    """Add what `kept` has to `out`.

    Raises:
        RequestError: a task has other data now than its cells were trained on, or none.
    """
    records = _done(kept)
    tasks = {record.task.name: record.task for record in records}
    labels = {name: _labels(task) for name, task in tasks.items()}
    _copy_trials(kept, out)
    source, target = Store(kept), Store(out)
    for record in records:
        of_dev = labels[record.task.name]
        answers = rows_of(source.predictions(record.cell))
        rows = [{**row, "label": of_dev[row["index"]]} for row in answers]
        _copy_cell(record, rows, source, target)


def _done(folder: Path) -> list[Record]:
    records = whole(folder) if Store(folder).cells() else []
    return [record for record in records if record.is_done]


def _labels(task: TaskPart) -> list[int] | list[float]:
    found = load(task.name)
    if found.sha256() != task.sha256:
        raise RequestError(f"{task.name}: its data is not what these cells were trained on")
    return found.dev.labels


def _copy_trials(source: Path, target: Path) -> None:
    if (records := source / TRIALS / "records").exists():
        shutil.copytree(records, target / TRIALS / "records", dirs_exist_ok=True)
    if trials := read_trials(source / TRIALS):
        write_trials(target / TRIALS, trials)


def _copy_cell(record: Record, answers: list[dict[str, Any]], source: Store, target: Store) -> None:
    """The cell's files; the record last, since a cell with a record is done."""
    write(target.curve(record.cell), lines_of(rows_of(source.curve(record.cell))))
    write(target.predictions(record.cell), lines_of(answers))
    target.write_record(record)


if __name__ == "__main__":
    {"keep": keep, "resume": resume}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
