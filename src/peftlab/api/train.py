"""Train a model that one holds in one's own hands.

model, tokenizer = peftlab.load_model("minilm", num_labels=2)
record = peftlab.train(model, tokenizer, "paraphrase", peftlab.LoRA(rank=8))
peftlab.predict(model, tokenizer, [("a sentence", "another one")])
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from peftlab.adapters import check_ids, check_savable, is_merged, save
from peftlab.api.compare import arguments_of, foreseeing
from peftlab.api.inference import check_num_labels, task_of
from peftlab.api.progress import callers_console, observer
from peftlab.atomic import BESIDE, check_replaceable, replace_folder
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, check_trainable, method_part, resolve_training, task_part
from peftlab.bench.outcome import CellScorer, Outcome, Row
from peftlab.bench.process import train_model
from peftlab.bench.run import run_grid
from peftlab.bench.suite import Variant
from peftlab.bench.tokens import tokens_of
from peftlab.errors import RequestError, check_seed, expect_path
from peftlab.layers import PreTrainedModel, resolve_precision
from peftlab.machine import threads_for
from peftlab.methods import Method, NeedsDevice, inject, injected, resolve_method
from peftlab.models import (
    agree_on_padding,
    check_batches,
    check_model,
    check_tokenizer,
    precision_for,
    precision_of,
    state_of,
    token_limit,
)
from peftlab.records.lock import locked
from peftlab.records.record import ModelPart, Record
from peftlab.records.store import BESIDE_PREFIX, Store, lines_of, text_of
from peftlab.settings import Resolved, Training
from peftlab.tasks import Task
from peftlab.training import MemoryMeter

SUITE = "train"
TRAINED_BEFORE = "these epochs come on top of an earlier training"


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task | str,
    method: Method | str,
    *,
    epochs: int | None = None,
    batch_size: int = 32,
    lr: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
    **training: Any,
) -> Record:
    """Train `model` in place on `task` by `method`, evaluating after every epoch.

    The model is injected with the method first, unless it has been already. One that has been
    trained before goes on from there, and the record's notes say so. The generators of the CPU
    and of the GPU that trains are left as they were.

    Args:
        model: from `load_model`.
        tokenizer: the model's own.
        task: a name, or a `Task`.
        method: a name, with settings as in `lora[rank=16]`, or a `Method`.
        epochs: passes over the train split; by default as many as make 300 updates, 3 to 30.
        batch_size: examples a step.
        lr: the highest learning rate of the adapter; the method's default if not given.
        seed: of data order, dropout and, if they are drawn here, the adapters.
        out: a new or empty folder, or an adapter's, which is replaced: for the adapter, as `save`
            writes it, and record.json, curve.jsonl and predictions.jsonl, as `peftlab train` does;
            nothing is written if not given.
        quiet: no progress.
        training: further fields of `peftlab.settings.Training`, such as head_lr or warmup;
            device and a frozen base's precision are the model's own. Without `threads` they are
            torch's, or as many as others leave cores for; the record says how many.

    Raises:
        RequestError: if the request is wrong, or `out` holds something else.
        Diverged: if the loss is no number any more.
        Untrained: if something that should be trained is not.
    """
    started = time.perf_counter()
    check_model(model)
    check_tokenizer(tokenizer)
    task = task_of(task)
    method = resolve_method(method)
    check_seed(seed)
    asked = _asked({"epochs": epochs, "batch_size": batch_size, "lr": lr, **training}, method)
    check_num_labels(model, task)
    check_trainable(task)
    if is_merged(model):
        raise RequestError(
            "this model is merged, so no adapter is left in it to train; unmerge it first"
        )
    agree_on_padding(model, tokenizer)
    check_batches(model, tokenizer)
    check_ids(model, tokenizer)
    folder = None if out is None else _checked_folder(model, out)
    devices = [model.device] if model.device.type == "cuda" else []
    with threads_for(model.device.type, asked.threads), torch.random.fork_rng(devices):
        outcome = _run(model, tokenizer, task, method, asked, seed, started, folder, quiet)
    state_of(model).tokenizer = tokenizer
    if folder is not None:
        replace_folder(folder, lambda place: _fill(place, model, outcome))
    return outcome.record


def _run(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    method: Method,
    asked: Training,
    seed: int,
    started: float,
    folder: Path | None,
    quiet: bool,
) -> Outcome:
    memory = MemoryMeter(model.device, model)
    longest = token_limit(tokenizer, model.config)
    variant = Variant.model_validate(method)
    training = resolve_training(asked, variant, method, task, longest, model.device.type)
    if isinstance(method, NeedsDevice):
        method.check_device(model.device.type)
    torch.manual_seed(seed)
    if injected(model) != method:  # after all that refuses: an injected model takes no other method
        inject(model, method)
    if folder is not None:
        check_savable(model)  # what it freezes is known by now
    cell = _cell(model, task, method, asked, training, seed)
    tokens = tokens_of(tokenizer, task, cell.training.max_length)
    with observer(callers_console(quiet), quiet) as progress:
        progress.cell(cell)
        before = [TRAINED_BEFORE] if state_of(model).has_learnt else []
        for note in before:
            progress.note(f"{note}; a base that is loaded anew begins anew")

        def on_step(row: Row, total: int) -> None:
            state_of(model).has_learnt = True
            progress.step(cell, row, total)

        scorer = CellScorer(task, on_step=on_step, on_epoch=functools.partial(progress.epoch, cell))
        try:
            trained = train_model(model, task, tokens, cell, scorer, memory, started)
        finally:
            model.eval()  # after Ctrl-C too, so that its outputs have no dropout in them
        noted = trained.model_copy(update={"notes": [*before, *trained.notes]})
        outcome = scorer.outcome(cell, noted)
        progress.end(outcome.record)
    return outcome


def _checked_folder(model: PreTrainedModel, out: Any) -> Path:
    """`out`, to which the trained adapter can be written: found out before it is trained."""
    expect_path("out", out)
    check_replaceable(Path(out))
    check_savable(model)
    return Path(out)


def _fill(place: Path, model: PreTrainedModel, outcome: Outcome) -> None:
    """Write the adapter and, beside it, what `peftlab train` writes there."""
    save(model, place)
    texts = {
        "records": text_of(outcome.record),
        "curves": lines_of(outcome.curve),
        "predictions": lines_of(outcome.predictions),
    }
    for kind, text in texts.items():
        (place / BESIDE[kind]).write_text(text, encoding="utf-8")


def _asked(training: dict[str, Any], method: Method) -> Training:
    ways = {
        "device": "move the model with model.to(device)",
        "precision": "load the model with load_model(..., precision=...)",
    }
    if method.base_precision == "fp32":
        del ways["precision"]  # an fp32 base computes in what is asked
    for name in sorted(ways.keys() & training.keys()):
        raise RequestError(f"train() takes the model as it is; for {name}, {ways[name]}")
    return Training.of(training, arguments_of(train))


def _cell(
    model: PreTrainedModel,
    task: Task,
    method: Method,
    asked: Training,
    training: Resolved,
    seed: int,
) -> Cell:
    precision, source = precision_of(model), state_of(model).source
    if method.base_precision == "fp32":
        device = training.device
        found, _ = (
            precision_for(source, asked.precision, device)
            if source
            else resolve_precision(asked.precision, device)
        )
        precision = found.of_base(precision.base)
    folder = Path(model.name_or_path or "model")
    return Cell(
        suite=SUITE,
        model=ModelPart(
            name=source.name if source else folder.name,
            revision=source.revision if source else None,
            sha256=source.sha256 if source else None,
        ),
        model_folder=source.folder if source else folder,
        model_type=model.config.model_type,
        task=task_part(task),
        method=method_part(model, method, asked, Variant.model_validate(method)),
        training=training,
        precision=precision,
        seed=seed,
    )


def train_folder(grid: Grid, out: Path, console: Console, quiet: bool = False) -> Record:
    """Run the grid's one cell and write its adapter to `out`, record, curve and predictions beside.

    A cell that fails leaves nothing in `out`. It runs beside `out`, where there is to be room; a
    training that is stopped is kept there, as is one that can't be written, and the same command
    takes it up.

    Raises:
        RequestError: if the grid has more than one cell, or `out` can't be replaced.
    """
    if len(grid.cells) != 1:
        raise RequestError(
            f"train runs one cell, and this asks for {len(grid.cells)}; `peftlab compare` runs many"
        )
    check_replaceable(out)
    (cell,) = grid.cells
    store = _beside(out, cell)
    written = False
    with store.prepared(), locked(store.out):
        store.out.chmod(0o700)
        try:
            if not store.adapter(cell.name).is_dir():  # as on a disk that was full at the end
                store.forget(cell.name)
            (record,) = run_grid(
                grid,
                store.out,
                observer(console, quiet),
                shown=out,
                foresee=foreseeing(grid, out, console),
            )
            if record.is_done:
                _put(store, record, out)
                written = True
        finally:
            if written or kept_in(grid, out) is None:
                shutil.rmtree(store.out, ignore_errors=True)
    return record


def kept_in(grid: Grid, out: Path) -> Path | None:
    """Where `train_folder` has kept what it has come to, and goes on from, if it has."""
    (cell,) = grid.cells
    store = _beside(out, cell)
    record = store.read(cell.name)
    done = record is not None and record.is_done
    return store.out if done or store.checkpoint(cell.name).exists() else None


def _beside(out: Path, cell: Cell) -> Store:
    """Where the cell runs that is to come to `out`: the same for each command that asks for it."""
    place = out.resolve()
    # no part of the path's own name, which may be as long as names can
    asked = hashlib.sha256(bytes(place) + cell.identity.encode()).hexdigest()
    return Store(place.parent / f"{BESIDE_PREFIX}{asked[:16]}")


def _put(store: Store, record: Record, out: Path) -> None:
    try:
        if not store.adapter(record.cell).is_dir():
            raise RequestError("; ".join(record.method.notes))
        replace_folder(out, lambda place: _gather(store, record, place))
    except RequestError as error:
        raise RequestError(
            f"{error}; its record is kept in {store.out}, and the same command takes it up"
        ) from error


def _gather(store: Store, record: Record, place: Path) -> None:
    for file in store.adapter(record.cell).iterdir():
        shutil.copyfile(file, place / file.name)
    for kind, name in BESIDE.items():
        (path,) = (store.out / kind).glob(f"{record.cell}.json*")
        shutil.copyfile(path, place / name)
