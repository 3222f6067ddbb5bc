"""The winner of a comparison: its adapter, copied out after it has shown that it is the one.

The winner is the row with the highest mean of the main metric over seeds, last epoch, of those with
the most done seeds; of its seeds, the adapter with the highest score.
"""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

from peftlab.adapters import load
from peftlab.adapters.whole import replace_folder
from peftlab.bench.grid import load_tasks
from peftlab.bench.keep import best_seed, main_score
from peftlab.bench.record import Record
from peftlab.bench.single import evaluate
from peftlab.bench.store import Store
from peftlab.bench.suite import Suite, Training
from peftlab.errors import JSON_ERRORS, RequestError, unknown
from peftlab.tasks import Task, names

TOLERANCE = 0.005  # of a score: batches are put together otherwise, and another machine may round


def export(
    out: Path, to: Path, task: str | None = None, method: str | None = None
) -> tuple[Record, float]:
    """Copy the winner's adapter of `out` to the folder `to`.

    Args:
        out: the output folder of a comparison.
        to: a new or empty folder, or one with an adapter, which is replaced.
        task: which task's, if there are several.
        method: the row to take instead of the winner.

    Returns:
        The adapter's record, and the score that it reached again.

    Raises:
        RequestError: if there is no such row or adapter, its data can't be had again, or it does
            not reach its record's score.
    """
    store = Store(out)
    done = [record for record in store.records() if record.status == "done"]
    record = _kept(store, _row(_of_task(done, task, out), method))
    reached = _score_again(store, record)
    if abs(reached - main_score(record)) > TOLERANCE:
        raise RequestError(
            f"the adapter of {record.cell} reaches {record.task.main_metric} {reached:.4f} and its "
            f"record says {main_score(record):.4f}; it is not exported"
        )
    replace_folder(
        to, lambda place: shutil.copytree(store.adapter(record.cell), place, dirs_exist_ok=True)
    )
    return record, reached


def _of_task(records: list[Record], task: str | None, out: Path) -> list[Record]:
    tasks = list(dict.fromkeys(record.task.name for record in records))
    if not tasks:
        raise RequestError(f"no cell of {out} is done; run `peftlab compare` to its end first")
    if task is None and len(tasks) > 1:
        raise RequestError(f"{out} has several tasks; say which with --task: {', '.join(tasks)}")
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks)
    return [record for record in records if record.task.name == (task or tasks[0])]


def _row(records: list[Record], method: str | None) -> list[Record]:
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.method.label, []).append(record)
    if method is not None:
        if method not in rows:
            raise unknown("method", method, rows)
        return rows[method]
    # one lucky seed of five must not beat the mean of all five
    most = max(len(row) for row in rows.values())
    whole = [row for row in rows.values() if len(row) == most]
    return max(whole, key=lambda row: statistics.fmean(map(main_score, row)))


def _kept(store: Store, row: list[Record]) -> Record:
    kept = [record for record in row if store.adapter(record.cell).is_dir()]
    if not kept:
        raise RequestError(
            f"no adapter of {row[0].method.label} was kept in {store.out}; run the comparison "
            "again with --keep all --rerun"
        )
    return best_seed(kept)


def _score_again(store: Store, record: Record) -> float:
    task = _task_again(store, record)
    if task.sha256() != record.task.sha256:
        raise RequestError(f"the data of task {task.name} is no longer what {record.cell} saw")
    torch.set_num_threads(record.training["threads"])
    model, tokenizer = load(store.adapter(record.cell))
    model.to(record.training["device"] if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return evaluate(model, tokenizer, task)[task.main_metric]


def _task_again(store: Store, record: Record) -> Task:
    asked = _asked(store.out / "suite.json")
    if asked["data"] is None and record.task.name not in names():
        raise RequestError(
            f"task {record.task.name} was handed over in Python, so its data is not at hand to "
            f"check the adapter with; it lies in {store.adapter(record.cell)}"
        )
    suite = Suite.model_validate(asked | {"tasks": [record.task.name], "training": Training()})
    return load_tasks(suite)[0]


def _asked(path: Path) -> dict[str, Any]:
    """Of suite.json what says where the data lies."""
    if not path.is_file():
        raise RequestError(
            f"{path} is not there, so the data to check the adapter with is not known; "
            "run the same `peftlab compare` again, which writes it and trains nothing"
        )
    try:
        asked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {
            "name": asked["name"],
            "data": _with_paths(asked["data"]),
            "data_dir": Path(asked["data_dir"]) if asked["data_dir"] else None,
        }
        Suite.model_validate(found)
    except (*JSON_ERRORS, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is damaged ({error}); run the same `peftlab compare` again, which writes it "
            "anew and trains nothing"
        ) from error
    return found


def _with_paths(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """A data table whose paths are paths again, after JSON."""
    if data is None:
        return None
    return data | {key: Path(data[key]) for key in ("path", "dev") if data[key] is not None}
