"""train: train a loaded model in place, or one cell into a folder.

model, tokenizer = peftlab.load_model("minilm", num_labels=2)
record = peftlab.train(model, tokenizer, "paraphrase", peftlab.LoRA(rank=8))
peftlab.predict(model, tokenizer, [("a sentence", "another one")])
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from peftlab.adapters import check_ids, check_savable, is_merged, save
from peftlab.api.compare import forecaster
from peftlab.api.export import copy_adapter
from peftlab.api.inference import check_num_labels, task_of
from peftlab.api.progress import callers_console, observer
from peftlab.api.request import arguments_of
from peftlab.atomic import CELL_FILES, check_replaceable, replace_folder
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, method_part, resolve_training, task_part
from peftlab.bench.outcome import CellScorer, Outcome
from peftlab.bench.process import train_model
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.suite import Variant
from peftlab.bench.suite_tasks import check_task
from peftlab.bench.tokens import Tokens, tokens_of
from peftlab.errors import RequestError, check_seed, expanded, expect_path
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
from peftlab.records.store import WORKING_PREFIX, Store, lines_of, text_of
from peftlab.settings import Resolved, Training
from peftlab.tasks import Task
from peftlab.training import Line, MemoryMeter, cublas_in_order

SUITE = "train"
TRAINED_BEFORE = "these epochs come on top of an earlier training"
ONE_AT_A_TIME = threading.RLock()


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
    and of the GPU that trains are left as they were. Of several threads one trains at a time, since
    these generators are the process's, and `predict` waits while its model trains.

    Args:
        model: from `load_model`.
        tokenizer: the model's own.
        task: a name, or a `Task`.
        method: a name, with settings as in `lora[rank=16]`, or a `Method`.
        epochs: passes over the train split; by default as many as make 300 updates, 3 to 30.
        batch_size: examples a step.
        lr: the highest learning rate of the adapter; the method's default if not given.
        seed: for data order, dropout and, if they are drawn here, the adapters.
        out: the folder for the adapter, as `save` writes it, and for record.json, curve.jsonl and
            predictions.jsonl, as `peftlab train` writes them. It is new or empty, or holds an
            adapter, which is replaced. Nothing is written if not given.
        quiet: no progress.
        training: further fields of `peftlab.settings.Training`, such as head_lr or warmup;
            device and a frozen base's precision are the model's own. Without `threads`, torch's
            number is used, or as many as other processes leave cores for; the record has it.

    Raises:
        RequestError: if the request is wrong, or `out` holds something else.
        Diverged: if the loss is no longer a finite number.
        Untrained: if a parameter that should be trained is not.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    task = task_of(task)
    method = resolve_method(method)
    seed = check_seed(seed)
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, **training}
    requested = _requested_training(settings, method)
    check_num_labels(model, task)
    check_task(task)
    if is_merged(model):
        raise RequestError(
            "this model is merged, so no adapter is left in it to train; unmerge it first"
        )
    with ONE_AT_A_TIME, state_of(model).turn, _for_training(model.device, requested.threads):
        started = time.perf_counter()
        agree_on_padding(model, tokenizer)
        with cublas_in_order():
            check_batches(model, tokenizer)
        check_ids(model, tokenizer)
        folder = None if out is None else _checked_folder(model, out)
        memory = MemoryMeter(model.device, model)
        cell = _injected_cell(model, tokenizer, task, method, requested, seed)
        if folder is not None:
            check_savable(model)  # again: only now is it known what the method freezes
        tokens = tokens_of(tokenizer, task, cell.training.max_length)
        with observer(callers_console(quiet), quiet) as progress:
            outcome = _train_cell(model, task, tokens, cell, memory, started, progress)
    state_of(model).tokenizer = tokenizer
    if folder is not None:
        replace_folder(folder, lambda new: _write_outcome(new, model, outcome))
    return outcome.record


@contextlib.contextmanager
def _for_training(device: torch.device, threads: int | None) -> Iterator[None]:
    """Torch's settings of the process as a training needs them; behind it the caller's again."""
    with (
        threads_for(device.type, threads),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _kept_generator_of_mps(device),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


@contextlib.contextmanager
def _kept_generator_of_mps(device: torch.device) -> Iterator[None]:
    """What torch's fork_rng does for CUDA; it takes no device that has no number."""
    if device.type != "mps":
        yield
        return
    state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)


def _injected_cell(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    method: Method,
    requested: Training,
    seed: int,
) -> Cell:
    """The cell to train, once its settings are resolved and the method is injected."""
    limit = token_limit(tokenizer, model.config)
    variant = Variant.model_validate(method)
    training = resolve_training(requested, variant, method, task, limit, model.device.type)
    if isinstance(method, NeedsDevice):
        method.check_device(model.device.type)
    torch.manual_seed(seed)
    if injected(model) != method:  # after all checks: an injected model takes no other method
        inject(model, method)
    return _cell(model, task, method, requested, training, seed)


def _train_cell(
    model: PreTrainedModel,
    task: Task,
    tokens: Tokens,
    cell: Cell,
    memory: MemoryMeter,
    started: float,
    progress: Observer,
) -> Outcome:
    progress.cell(cell)
    notes = [TRAINED_BEFORE] if state_of(model).has_learnt else []
    for note in notes:
        progress.note(f"{note}; a base that is loaded anew begins anew")

    def on_step(row: Line, total: int) -> None:
        state_of(model).has_learnt = True
        progress.step(cell, row, total)

    scorer = CellScorer(task, on_step=on_step, on_epoch=functools.partial(progress.epoch, cell))
    try:
        trained = train_model(model, task, tokens, cell, scorer, memory, started)
    finally:
        model.eval()  # after Ctrl-C too, so that its outputs have no dropout in them
    noted = trained.model_copy(update={"notes": [*notes, *trained.notes]})
    outcome = scorer.outcome(cell, noted)
    progress.end(outcome.record)
    return outcome


def _checked_folder(model: PreTrainedModel, out: Any) -> Path:
    """`out` as a path, checked before training: the adapter can be written there."""
    expect_path("out", out)
    folder = expanded(out)
    check_replaceable(folder)
    check_savable(model)
    return folder


def _write_outcome(folder: Path, model: PreTrainedModel, outcome: Outcome) -> None:
    """Write the adapter and, beside it, its record, curve and predictions."""
    save(model, folder)
    texts = {
        "records": text_of(outcome.record),
        "curves": lines_of(outcome.curve),
        "predictions": lines_of(outcome.predictions),
    }
    for kind, text in texts.items():
        (folder / CELL_FILES[kind]).write_text(text, encoding="utf-8")


def _requested_training(settings: dict[str, Any], method: Method) -> Training:
    remedies = {
        "device": "move the model with model.to(device)",
        "precision": "load the model with load_model(..., precision=...)",
    }
    if method.base_precision == "fp32":
        del remedies["precision"]  # the base stays fp32; this is the precision of products
    for name in sorted(remedies.keys() & settings.keys()):
        raise RequestError(f"train() takes the model as it is; for {name}, {remedies[name]}")
    return Training.of(settings, arguments_of(train))


def _cell(
    model: PreTrainedModel,
    task: Task,
    method: Method,
    requested: Training,
    training: Resolved,
    seed: int,
) -> Cell:
    precision, source = precision_of(model), state_of(model).source
    if method.base_precision == "fp32":
        device = training.device
        computed, _ = (
            precision_for(source, requested.precision, device)
            if source
            else resolve_precision(requested.precision, device)
        )
        precision = computed.of_base(precision.base)
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
        method=method_part(model, method, requested, Variant.model_validate(method)),
        training=training,
        precision=precision,
        seed=seed,
    )


def train_folder(grid: Grid, out: Path, console: Console, quiet: bool = False) -> Record:
    """Run the grid's one cell; write its adapter, record, curve and predictions to `out`.

    The cell runs in a hidden folder beside `out`, on the disk that has to have room. If it fails,
    nothing is written to `out`. A training that is stopped or can't be written is kept in the
    hidden folder, and the same command resumes it.

    Raises:
        RequestError: if the grid has more than one cell, or `out` can't be replaced.
    """
    if len(grid.cells) != 1:
        raise RequestError(
            f"train runs one cell, and this asks for {len(grid.cells)}; `peftlab compare` runs many"
        )
    check_replaceable(out)
    (cell,) = grid.cells
    store = _working_store(out, cell)
    is_written = False
    with store.prepared(), locked(store.out):
        store.out.chmod(0o700)
        try:
            if not store.adapter(cell.name).is_dir():  # if the disk was full at the end
                store.forget(cell.name)
            (record,) = run_grid(
                grid,
                store.out,
                observer(console, quiet),
                shown=out,
                foresee=forecaster(grid, out, console),
            )
            if record.is_done:
                _write_adapter(store, record, out)
                is_written = True
        finally:
            if is_written or resumable_folder(grid, out) is None:
                shutil.rmtree(store.out, ignore_errors=True)
    return record


def resumable_folder(grid: Grid, out: Path) -> Path | None:
    """The folder from which `train_folder` would resume; None if nothing was kept."""
    (cell,) = grid.cells
    store = _working_store(out, cell)
    record = store.read(cell.name)
    is_done = record is not None and record.is_done
    return store.out if is_done or store.checkpoint(cell.name).exists() else None


def _working_store(out: Path, cell: Cell) -> Store:
    """The hidden folder beside `out` where the cell runs; the same for equal cells."""
    folder = out.resolve()
    # not derived from folder.name, which may be as long as names can be
    digest = hashlib.sha256(bytes(folder) + cell.identity.encode()).hexdigest()
    return Store(folder.parent / f"{WORKING_PREFIX}{digest[:16]}")


def _write_adapter(store: Store, record: Record, out: Path) -> None:
    try:
        if not store.adapter(record.cell).is_dir():
            raise RequestError("; ".join(record.method.notes))
        replace_folder(out, lambda new: _copy_files(store, record, new))
    except RequestError as error:
        raise RequestError(
            f"{error}; its record is kept in {store.out}, and the same command takes it up"
        ) from error


def _copy_files(store: Store, record: Record, folder: Path) -> None:
    copy_adapter(store, record, folder)
    shutil.copyfile(store.curve(record.cell), folder / CELL_FILES["curves"])
    shutil.copyfile(store.predictions(record.cell), folder / CELL_FILES["predictions"])
