"""One model in one's own hands: train it, evaluate it, predict with it.

model, tokenizer = peftlab.load_model("minilm", num_labels=2)
record = peftlab.train(model, tokenizer, "paraphrase", peftlab.LoRA(rank=8))
peftlab.predict(model, tokenizer, [("a sentence", "another one")])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from rich.console import Console

from peftlab.bench.cell import Cell
from peftlab.bench.grid import method_part, resolve_training, task_part
from peftlab.bench.progress import observer
from peftlab.bench.record import ModelPart, Record
from peftlab.bench.runner import answers, dev_score, run, write
from peftlab.bench.store import Store
from peftlab.bench.suite import Training, Variant
from peftlab.errors import RequestError, explain
from peftlab.layers import resolve_precision
from peftlab.methods import Method, inject, injected, make
from peftlab.models import token_limit
from peftlab.tasks import Task, load
from peftlab.training import MemoryMeter, Plan, encode, outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUITE = "train"


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task | str,
    method: Method | str,
    *,
    epochs: int = 3,
    batch_size: int = 32,
    lr: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **training: Any,
) -> Record:
    """Train `model` in place on `task` by `method`, evaluating after every epoch.

    The model is injected with the method first, unless it has been already.

    Args:
        model: from `load_model`.
        tokenizer: the model's own.
        task: a name, or a `Task`.
        method: a name, or a `Method`.
        epochs: passes over the train split.
        batch_size: examples a step.
        lr: the highest learning rate of the adapter; the method's default if not given.
        seed: of data order, dropout and, if they are drawn here, the adapters.
        out: a folder for the record, curve and predictions; nothing is written if not given.
        training: further fields of `peftlab.bench.suite.Training`, such as head_lr or warmup;
            device, threads and a frozen base's precision are the model's and torch's own.

    Raises:
        RequestError: if the request is wrong.
        Diverged: if the loss is no number any more.
    """
    started = time.perf_counter()
    task = load(task) if isinstance(task, str) else task
    method = make(method) if isinstance(method, str) else method
    asked = _check({"epochs": epochs, "batch_size": batch_size, "lr": lr, **training}, method)
    _check_outputs(model, task)
    store = Store(Path(out)) if out is not None else None
    if store is not None:
        store.prepare()
    device = model.device.type
    memory = MemoryMeter(device)
    torch.manual_seed(seed)
    if injected(model) != method:
        inject(model, method)
    cell = _cell(model, tokenizer, task, method, asked, seed, device)
    with observer(Console(stderr=True)) as progress:
        progress.cell(cell)
        outcome = run(
            model,
            tokenizer,
            task,
            cell,
            lambda row, total: progress.row(cell, row, total),
            memory,
            started,
        )
        progress.end(outcome.record)
    if store is not None:
        write(store, outcome)
    return outcome.record


def evaluate(model: PreTrainedModel, tokenizer: Any, task: Task | str) -> dict[str, float]:
    """The task's metrics of `model` on its dev split, as fractions."""
    task = load(task) if isinstance(task, str) else task
    _check_outputs(model, task)
    longest = min(task.max_length, token_limit(tokenizer, model.config))
    dev = encode(tokenizer, task.dev.texts, task.dev.labels, longest)
    return dev_score(task, outputs(model, dev, _plan_for_inference(model, task.kind)))


def predict(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str | tuple[str, ...]]
) -> list[str] | list[float]:
    """The answer to each text, or pair of texts: a class's name, or a number for a regression."""
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not rows:
        return []
    if len({len(row) for row in rows}) > 1:
        raise RequestError("texts must be all single texts or all pairs, got some of each")
    kind = "regression" if model.config.num_labels == 1 else "classes"
    longest = token_limit(tokenizer, model.config)
    data = encode(tokenizer, rows, [0] * len(rows), longest)
    found = answers(kind, outputs(model, data, _plan_for_inference(model, kind)))
    if kind == "regression":
        return [float(value) for value in found]
    names: dict[Any, str] = model.config.id2label or {}
    return [names.get(index, str(index)) for index in found]


def _check(training: dict[str, Any], method: Method) -> Training:
    ways = {
        "device": "move the model with model.to(device)",
        "threads": "call torch.set_num_threads",
        "precision": "load the model with load_model(..., precision=...)",
    }
    if method.base_precision is not None:
        del ways["precision"]  # an fp32 base computes in what is asked
    for name in sorted(ways.keys() & training.keys()):
        raise RequestError(f"train() takes the model as it is; for {name}, {ways[name]}")
    try:
        return Training.model_validate(training)
    except ValidationError as error:
        raise explain(error, "training", Training.model_fields) from None


def _check_outputs(model: PreTrainedModel, task: Task) -> None:
    if model.config.num_labels != task.num_labels:
        raise RequestError(
            f"task {task.name} needs a model with {task.num_labels} outputs and this one has "
            f"{model.config.num_labels}; load it with num_labels={task.num_labels}"
        )


def _cell(
    model: PreTrainedModel,
    tokenizer: Any,
    task: Task,
    method: Method,
    asked: Training,
    seed: int,
    device: str,
) -> Cell:
    variant = Variant.model_validate(method)
    longest = token_limit(tokenizer, model.config)
    training = resolve_training(asked, variant, method, task, longest, device)
    held = "bf16" if _base_dtype(model) == torch.bfloat16 else "fp32"
    compute = resolve_precision(asked.precision, device).value if method.base_precision else held
    folder = Path(model.name_or_path or "model")
    return Cell(
        suite=SUITE,
        model=ModelPart(name=folder.name, revision=None, sha256=None),
        model_folder=folder,
        model_type=model.config.model_type,
        task=task_part(task),
        method=method_part(model, method, method.name),
        training=training | {"compute": compute},
        precision=held,
        seed=seed,
    )


def _base_dtype(model: PreTrainedModel) -> torch.dtype:
    backbone = model.get_submodule(model.base_model_prefix)
    return next(backbone.parameters()).dtype


def _plan_for_inference(model: PreTrainedModel, kind: str) -> Plan:
    return Plan(
        kind=kind,
        epochs=0,
        batch_size=32,
        lr=0.0,
        head_lr=0.0,
        weight_decay=0.0,
        warmup=0.0,
        clip=1.0,
        seed=0,
        device=model.device.type,
        autocast=getattr(model, "peftlab_autocast", False),  # as it was trained
    )
