"""What leaves: the winner of a comparison, and an adapter merged into its base.

The winner's adapter is copied out after it has shown that it is the one: of the recommended row's
(records/recommend.py) the one of the seed with the best score. Rows of all suites of a folder
compete, as its table shows them.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from peftlab.adapters import check_adapter, load, load_in, plain_folder, read_card
from peftlab.api.again import task_again
from peftlab.api.inference import dev_outputs
from peftlab.atomic import CELL_FILES, check_replaceable, replace_folder
from peftlab.bench.outcome import predictions_of
from peftlab.bench.retention import best_seed
from peftlab.errors import RequestError, expanded, expect, expect_path, unknown
from peftlab.layers import Precision, devices
from peftlab.machine import threads_for
from peftlab.models import Unit
from peftlab.records.record import Record
from peftlab.records.rows import group, is_judged_on_train, labels
from peftlab.records.store import Store, text_of
from peftlab.records.verdicts import compare_rows
from peftlab.tasks import Task, carve

# Of the outputs' size, for a regression of the labels' standard deviation. Batches are put together
# otherwise, and another machine rounds otherwise: in bf16 that moves outputs by some thousandths,
# and a score by an example. Another adapter's outputs are about as far off as they are large, or as
# labels differ.
MOVED = 0.05


class Exported(NamedTuple):
    """What was copied out.

    Attributes:
        record: the adapter's.
        reached: the main metric that it came to again.
        rate_from_dev: whether dev, which judged its row, has chosen its learning rate too.
    """

    record: Record
    reached: float
    rate_from_dev: bool


def export(
    out: str | Path, to: str | Path, task: str | Task | None = None, method: str | None = None
) -> Exported:
    """Copy the winner's adapter of `out` to the folder `to`.

    Args:
        out: the output folder of a comparison.
        to: a new or empty folder, or one with an adapter, which is replaced.
        task: which task's, if there are several; the `Task` itself if it was made in Python.
        method: the row to take instead of the winner.

    Raises:
        RequestError: if there is no such row or adapter, its data can't be had again, or it does
            not answer as it did in training.
    """
    expect_path("out", out)
    expect_path("to", to)
    if task is not None:
        expect("task", task, (str, Task), "a name or a Task")
    out, to = expanded(out), expanded(to)
    check_replaceable(to)
    store = Store(out)
    records = store.records()
    if isinstance(task, Task):
        of_task = _of_given(records, task, out)
    else:
        of_task = _as_asked_last(_of_task(records, task, out), store)
    row, rate_from_dev = _row(of_task, _names(records), method, out)
    record = _kept(store, row)
    try:
        seen = _seen(task, record) if isinstance(task, Task) else task_again(store, record)
    except RequestError as error:
        adapter = store.adapter(record.cell)
        raise RequestError(f"{error}; its adapter, which can't be checked, is {adapter}") from error
    reached = check_again(store, record, seen)
    replace_folder(to, lambda place: copy_adapter(store, record, place))
    return Exported(record, reached, rate_from_dev)


def _of_given(records: list[Record], task: Task, out: Path) -> list[Record]:
    """Those of a task that a caller holds, by its examples; of several metrics the latest's."""
    of_name = _of_task(records, task.name, out)
    kinds = {is_judged_on_train(one): one for one in of_name}
    hashes = {on_train: _seen(task, one).sha256() for on_train, one in kinds.items()}
    alike = [one for one in of_name if hashes[is_judged_on_train(one)] == one.task.sha256]
    done = [one for one in alike if one.is_done]
    if not done:
        raise RequestError(
            f"task {task.name} as it was given is not what {of_name[-1].cell} saw: it has other "
            "examples or labels"
        )
    return [one for one in alike if one.task.main_metric == done[-1].task.main_metric]


def _seen(task: Task, record: Record) -> Task:
    """The task that a caller holds, as a record of it saw it."""
    seen = carve(task) if is_judged_on_train(record) else task
    return seen.judged_by(record.task.main_metric)


def copy_adapter(store: Store, record: Record, place: Path) -> None:
    """Copy a cell's adapter to the folder `place`, and its record, which `push` tells of."""
    shutil.copytree(store.adapter(record.cell), place, dirs_exist_ok=True)
    (place / CELL_FILES["records"]).write_text(text_of(record), "utf-8")


def _of_task(records: list[Record], task: str | None, out: Path) -> list[Record]:
    tasks = list(dict.fromkeys(one.task.name for one in records if one.is_done))
    if not tasks:
        raise RequestError(f"no cell of {out} is done; run `peftlab compare` to its end first")
    if task is None and len(tasks) > 1:
        raise RequestError(f"{out} has several tasks; say which with --task: {', '.join(tasks)}")
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks)
    return [record for record in records if record.task.name == (task or tasks[0])]


def _as_asked_last(records: list[Record], store: Store) -> list[Record]:
    """Those with the examples and the metric that the task had when it was last asked for.

    A file that was changed between two suites makes two tasks of one name: the latter lies there.
    """
    of_cell = {record.cell: record for record in records if record.is_done}
    cells = [cell["cell"] for suite in store.suites()[::-1] for cell in suite["cells"]]
    found = next((of_cell[cell] for cell in cells if cell in of_cell), None)
    last = (found or next(reversed(of_cell.values()))).task
    return [
        record
        for record in records
        if (record.task.sha256, record.task.main_metric) == (last.sha256, last.main_metric)
    ]


def _names(records: list[Record]) -> dict[str, tuple[str, str]]:
    """What each cell's row may be called: as it was asked for, and as the folder's table has it."""
    rows = group(records)
    shown = {record.cell: name for key, name in labels(rows).items() for record in rows[key]}
    return {
        record.cell: (record.method.label, shown.get(record.cell, record.method.label))
        for record in records
    }


def _row(
    records: list[Record], names: dict[str, tuple[str, str]], method: str | None, out: Path
) -> tuple[list[Record], bool]:
    """The done records of the row to take, and whether to take it chose its rate on dev."""
    known = dict.fromkeys(name for record in records for name in names[record.cell])
    if method is not None and method not in known:
        raise unknown("method", method, known)
    members = [record for record in records if method is None or method in names[record.cell]]
    chosen = compare_rows(members, [out]).recommendation
    if chosen is None:
        raise RequestError(f"no cell of {method or out} is done; run `peftlab compare` to its end")
    rows = group(members)
    row = next(rows[key] for key, name in labels(rows).items() if name == chosen.row)
    return [record for record in row if record.is_done], chosen.rate_from_dev


def _kept(store: Store, row: list[Record]) -> Record:
    kept = [record for record in row if store.adapter(record.cell).is_dir()]
    if not kept:
        joined = store.suites()[-1].get("sides") if store.suites() else None
        otherwise = "run the comparison again with `peftlab compare … --keep all --rerun`"
        if joined:
            otherwise = f"export it from the folder that it is of: {', '.join(joined.values())}"
        raise RequestError(
            f"no adapter of {row[0].method.label} was kept in {store.out}; {otherwise}"
        )
    return best_seed(kept)


def check_again(store: Store, record: Record, task: Task) -> float:
    """The main metric that the adapter of `record`, loaded again, comes to on its task.

    Raises:
        RequestError: if its outputs for dev are not those that it had in training.
    """
    adapter = store.adapter(record.cell)
    device = record.training["device"]
    device = device if device in devices() else "cpu"
    with threads_for(device, record.training["threads"]):
        model, tokenizer = load(adapter, device=device)
        found = dev_outputs(model, tokenizer, task)
    then = torch.tensor(store.outputs(record.cell))
    moved = _moved(found, then, task) if found.shape == then.shape else 1.0
    if not moved <= MOVED:
        raise RequestError(
            f"the adapter of {record.cell}, loaded again, does not answer as in training: its "
            f"outputs for dev are {moved:.0%} off; it is not exported, and lies in {adapter}"
        )
    return task.score(predictions_of(task.kind, found.tolist()))[task.main_metric]


def _moved(found: Tensor, then: Tensor, task: Task) -> float:
    """How far outputs are off, as a share of what they are of."""
    off = float((found - then).square().mean().sqrt())
    if task.kind == "regression":  # 2,000 is near any year, and says nothing of one
        return off / Unit.of(task.train.labels).sd
    size = float(then.square().mean().sqrt())
    return off / size if size else math.inf


class Merged(NamedTuple):
    """How far a logit moves at most against the adapter, and whether on a base in four bits."""

    moved: float
    quantised: bool


def merge_folder(adapter: Path, out: Path, base: str | None = None) -> Merged:
    """Write the merged model to `out`, in fp32.

    Args:
        adapter: a folder that `peftlab.save` or HF PEFT wrote.
        out: a new or empty folder.
        base: where the base lies now, if not where it lay in training.

    Raises:
        RequestError: if the adapter can't be read or merged, or `out` can't be written.
    """
    check_adapter(adapter)
    check_replaceable(out, may_be_adapter=False)
    card = read_card(adapter)
    quantised = card is not None and card.precision == "nf4"
    held = Precision("nf4" if quantised else "fp32", "fp32")  # no sum is rounded on its way
    model, tokenizer = load_in(adapter, base, held)
    return Merged(plain_folder(model, tokenizer, out), quantised)
