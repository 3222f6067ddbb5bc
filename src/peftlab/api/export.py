"""Export the winner of a comparison, and merge an adapter into its base.

The winner is the best seed of the recommended row (records/recommend.py). Rows of all suites of a
folder compete, as its table shows them. The adapter is loaded again and has to answer dev as it did
in training before it is copied.
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

# A share of the outputs' size, or for a regression of the labels' standard deviation. Other batches
# and another machine's rounding move outputs in bf16 by some thousandths, and a score by an
# example. Another adapter's outputs deviate by about their size, or by as much as labels differ.
TOLERANCE = 0.05


class Exported(NamedTuple):
    """The result of `export`.

    Attributes:
        record: of the adapter that was copied.
        reached: the main metric of the adapter after it was loaded again.
        rate_from_dev: whether dev, which judged its row, also chose its learning rate.
    """

    record: Record
    reached: float
    rate_from_dev: bool


def export(
    out: str | Path,
    to: str | Path,
    task: str | Task | None = None,
    method: str | None = None,
    base: str | Path | None = None,
) -> Exported:
    """Copy the winner's adapter of `out` to the folder `to`.

    Args:
        out: the output folder of a comparison.
        to: a new or empty folder, or one with an adapter, which is replaced.
        task: the task's name, if there are several; the `Task` itself if it was made in Python.
        method: the row to take instead of the winner.
        base: where the base lies now, if not where it lay in training.

    Raises:
        RequestError: if there is no such row or adapter, if its data can't be read again, or if it
            does not answer as it did in training.
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
        candidates = _select_by_examples(records, task, out)
    else:
        candidates = _select_latest(_select_by_name(records, task, out), store)
    row, rate_from_dev = _choose_row(candidates, _names_by_cell(records), method, out)
    record = _best_kept(store, row)
    try:
        if isinstance(task, Task):
            task = _as_seen(task, record).judged_by(record.task.main_metric)
        else:
            task = task_again(store, record)
    except RequestError as error:
        adapter = store.adapter(record.cell)
        raise RequestError(f"{error}; its adapter, which can't be checked, is {adapter}") from error
    reached = check_again(store, record, task, base)
    replace_folder(to, lambda folder: copy_adapter(store, record, folder))
    return Exported(record, reached, rate_from_dev)


def _select_by_examples(records: list[Record], task: Task, out: Path) -> list[Record]:
    """The records with the examples of a caller's task, and of their metrics the latest."""
    namesakes = _select_by_name(records, task.name, out)
    by_split = {is_judged_on_train(record): record for record in namesakes}
    hashes = {on_train: _as_seen(task, record).sha256() for on_train, record in by_split.items()}
    matches = [
        record for record in namesakes if hashes[is_judged_on_train(record)] == record.task.sha256
    ]
    done = [record for record in matches if record.is_done]
    if not done:
        raise RequestError(
            f"task {task.name} as it was given is not what {namesakes[-1].cell} saw: it has other "
            "examples or labels"
        )
    metric = done[-1].task.main_metric
    return [record for record in matches if record.task.main_metric == metric]


def _as_seen(task: Task, record: Record) -> Task:
    """A caller's task with the splits that the record's cell saw."""
    return carve(task) if is_judged_on_train(record) else task


def copy_adapter(store: Store, record: Record, folder: Path) -> None:
    """Copy a cell's adapter to `folder`, and its record, whose numbers `push` writes on a card."""
    for file in store.adapter(record.cell).iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / CELL_FILES["records"]).write_text(text_of(record), "utf-8")


def _select_by_name(records: list[Record], task: str | None, out: Path) -> list[Record]:
    """The records of the task of this name; None stands for the folder's only task."""
    tasks = list(dict.fromkeys(record.task.name for record in records if record.is_done))
    if not tasks:
        raise RequestError(f"no cell of {out} is done; run `peftlab compare` to its end first")
    if task is None and len(tasks) > 1:
        raise RequestError(f"{out} has several tasks; say which with --task: {', '.join(tasks)}")
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks)
    return [record for record in records if record.task.name == (task or tasks[0])]


def _select_latest(records: list[Record], store: Store) -> list[Record]:
    """The records with the examples and the metric of the last suite that requested the task.

    A file that was changed between two suites makes two tasks of one name; only the second one's
    data can be read again.
    """
    by_cell = {record.cell: record for record in records if record.is_done}
    cells = [cell["cell"] for suite in store.suites()[::-1] for cell in suite["cells"]]
    requested = next((by_cell[cell] for cell in cells if cell in by_cell), None)
    last = (requested or next(reversed(by_cell.values()))).task
    return [
        record
        for record in records
        if (record.task.sha256, record.task.main_metric) == (last.sha256, last.main_metric)
    ]


def _names_by_cell(records: list[Record]) -> dict[str, tuple[str, str]]:
    """The two names of each cell's row: its label, and its name in the folder's table."""
    rows = group(records)
    in_table = {record.cell: name for key, name in labels(rows).items() for record in rows[key]}
    return {
        record.cell: (record.method.label, in_table.get(record.cell, record.method.label))
        for record in records
    }


def _choose_row(
    records: list[Record], names: dict[str, tuple[str, str]], method: str | None, out: Path
) -> tuple[list[Record], bool]:
    """The done records of the row to take, and whether choosing it chose its rate on dev."""
    allowed = dict.fromkeys(name for record in records for name in names[record.cell])
    if method is not None and method not in allowed:
        raise unknown("method", method, allowed)
    candidates = [record for record in records if method is None or method in names[record.cell]]
    chosen = {record.cell for record in candidates}
    others = [record for record in records if record.cell not in chosen]
    recommendation = compare_rows(candidates, [out], unrequested=others).recommendation
    if recommendation is None:
        raise RequestError(f"no cell of {method or out} is done; run `peftlab compare` to its end")
    rows = group(candidates)
    row = next(rows[key] for key, name in labels(rows).items() if name == recommendation.row)
    return [record for record in row if record.is_done], recommendation.rate_from_dev


def _best_kept(store: Store, row: list[Record]) -> Record:
    """The record of the row's best seed among those whose adapters are in the folder."""
    kept = [record for record in row if store.adapter(record.cell).is_dir()]
    if not kept:
        sides = store.suites()[-1].get("sides") if store.suites() else None
        remedy = "run the comparison again with `peftlab compare … --keep all --rerun`"
        if sides:
            remedy = f"export it from the folder that it is of: {', '.join(sides.values())}"
        raise RequestError(f"no adapter of {row[0].method.label} was kept in {store.out}; {remedy}")
    return best_seed(kept)


def check_again(store: Store, record: Record, task: Task, base: str | Path | None = None) -> float:
    """Load the adapter of `record` again and return its main metric on its task.

    `base` is where its base lies now, if not where it lay in training.

    Raises:
        RequestError: if its outputs for dev are not those of the end of its training.
    """
    adapter = store.adapter(record.cell)
    device = record.training["device"]
    device = device if device in devices() else "cpu"
    with threads_for(device, record.training["threads"]):
        model, tokenizer = load(adapter, base=base, device=device)
        outputs = dev_outputs(model, tokenizer, task)
    recorded = torch.tensor(store.outputs(record.cell))
    is_comparable = outputs.shape == recorded.shape
    deviation = _relative_deviation(outputs, recorded, task) if is_comparable else 1.0
    if not deviation <= TOLERANCE:  # NaN is refused too
        raise RequestError(
            f"the adapter of {record.cell}, loaded again, does not answer as in training: its "
            f"outputs for dev are {deviation:.0%} off; it is not exported, and lies in {adapter}"
        )
    return task.score(predictions_of(task.kind, outputs.tolist()))[task.main_metric]


def _relative_deviation(outputs: Tensor, recorded: Tensor, task: Task) -> float:
    """The RMS difference, as a share of the labels' standard deviation or the outputs' RMS."""
    deviation = float((outputs - recorded).square().mean().sqrt())
    if task.kind == "regression":  # by size, a constant answer of 2,000 would be near any year
        return deviation / Unit.of(task.train.labels).sd
    size = float(recorded.square().mean().sqrt())
    return deviation / size if size else math.inf


class Merged(NamedTuple):
    """The result of `merge_folder`.

    Attributes:
        moved: the largest difference of a logit, on random tokens, from the adapter's.
        quantised: whether the adapter's base is in four bits.
    """

    moved: float
    quantised: bool


def merge_folder(adapter: Path, out: Path, base: str | None = None) -> Merged:
    """Merge an adapter into its base and write the model to `out`, in fp32.

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
    # products in fp32, so that no sum is rounded to bf16
    precision = Precision("nf4" if quantised else "fp32", "fp32")
    model, tokenizer = load_in(adapter, base, precision)
    return Merged(plain_folder(model, tokenizer, out), quantised)
