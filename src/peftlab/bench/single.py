"""One model in one's own hands: train it, evaluate it, predict with it.

model, tokenizer = peftlab.load_model("minilm", num_labels=2)
record = peftlab.train(model, tokenizer, "paraphrase", peftlab.LoRA(rank=8))
peftlab.predict(model, tokenizer, [("a sentence", "another one")])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import ValidationError
from rich.console import Console

from peftlab.adapters import TaskCard, is_merged, save
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Sizes, method_part, resolve_training, task_part
from peftlab.bench.progress import observer
from peftlab.bench.record import ModelPart, Record
from peftlab.bench.runner import answers, dev_score, run, write
from peftlab.bench.store import Store
from peftlab.bench.suite import Training, Variant
from peftlab.bench.tokens import tokens_of
from peftlab.errors import RequestError, explain
from peftlab.layers import held_precision, resolve_compute, resolve_precision
from peftlab.methods import Method, inject, injected, make
from peftlab.models import Source, agree_on_padding, check_batches, token_limit
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
    epochs: int | None = None,
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
        epochs: passes over the train split; by default as many as make 300 updates, 3 to 30.
        batch_size: examples a step.
        lr: the highest learning rate of the adapter; the method's default if not given.
        seed: of data order, dropout and, if they are drawn here, the adapters.
        out: a folder for the record, curve, predictions and adapter, as `compare` writes them;
            nothing is written if not given.
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
    if is_merged(model):
        raise RequestError(
            "this model is merged, so no adapter is left in it to train; unmerge it first"
        )
    agree_on_padding(model, tokenizer)
    check_batches(model, tokenizer)
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
            task,
            tokens_of(tokenizer, task, cell.training["max_length"]),
            cell,
            lambda row, total: progress.row(cell, row, total),
            memory,
            started,
        )
        progress.end(outcome.record)
    if store is not None:
        if getattr(model, "peftlab_source", None) is not None:  # else its base has no name
            save(model, store.adapter(outcome.record.cell))
        write(store, outcome)
    return outcome.record


def evaluate(
    model: PreTrainedModel, tokenizer: Any, task: Task | str, fast: bool = True
) -> dict[str, float]:
    """The task's metrics of `model` on its dev split, as fractions.

    `fast` computes as `peftlab.layers.engine` does, else the model's own code as it is.
    """
    task = load(task) if isinstance(task, str) else task
    _check_outputs(model, task)
    agree_on_padding(model, tokenizer)
    longest = _longest(model, tokenizer, task.max_length)
    dev = encode(tokenizer, task.dev.texts, task.dev.labels, longest)
    return dev_score(task, outputs(model, dev, _plan_for_inference(model, task.kind, fast)))


def predict(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str | tuple[str, ...]],
    fast: bool = True,
) -> list[str] | list[float]:
    """The answer to each text, or pair of texts: a class's name, or a number for a regression.

    `fast` as in `evaluate`.
    """
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    found = predictions(model, tokenizer, rows, lambda n: None, fast)
    return [answer.prediction for answer in found]  # type: ignore[return-value]


class Prediction(NamedTuple):
    """The answer to one text, and the probability of each class; none for a regression."""

    prediction: str | float
    scores: dict[str, float]


def predictions(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[tuple[str, ...]],
    on_batch: Callable[[int], None],
    fast: bool = True,
) -> list[Prediction]:
    """The answer to each row of one or two texts.

    Args:
        model: loaded and trained.
        tokenizer: the model's own.
        rows: one or two texts each.
        on_batch: called with the number of rows of each batch that is done.
        fast: as in `evaluate`.
    """
    if not rows:
        return []
    if len({len(row) for row in rows}) > 1:
        raise RequestError("texts must be all single texts or all pairs, got some of each")
    agree_on_padding(model, tokenizer)
    kind = "regression" if model.config.num_labels == 1 else "classes"
    data = encode(tokenizer, rows, [0] * len(rows), _longest(model, tokenizer, None))
    logits = outputs(model, data, _plan_for_inference(model, kind, fast), on_batch)
    found = answers(kind, logits)
    if kind == "regression":
        return [Prediction(float(value), {}) for value in found]
    given: dict[Any, str] = model.config.id2label or {}
    names = [given.get(index, str(index)) for index in range(logits.shape[1])]
    shares = logits.softmax(-1).tolist()
    return [
        Prediction(names[int(index)], dict(zip(names, row, strict=True)))
        for index, row in zip(found, shares, strict=True)
    ]


def _longest(model: PreTrainedModel, tokenizer: Any, otherwise: int | None) -> int:
    """The longest input: as in training where the model knows it, else the task's or its own."""
    limit = token_limit(tokenizer, model.config)
    card: TaskCard | None = getattr(model, "peftlab_task", None)
    wanted = card.max_length if card else otherwise
    return min(wanted or limit, limit)


def _check(training: dict[str, Any], method: Method) -> Training:
    ways = {
        "device": "move the model with model.to(device)",
        "threads": "call torch.set_num_threads",
        "precision": "load the model with load_model(..., precision=...)",
    }
    if method.base_precision == "fp32":
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
    sizes = Sizes(longest, model.config.hidden_size)
    training = resolve_training(asked, variant, method, task, sizes, device)
    held = _held(model)
    compute = getattr(model, "peftlab_compute", held)
    if method.base_precision == "fp32":
        compute = resolve_compute(resolve_precision(asked.precision, device).value, device)
    source: Source | None = getattr(model, "peftlab_source", None)
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
        method=method_part(model, method, asked, variant),
        training=training | {"compute": compute},
        precision=held,
        seed=seed,
    )


def _held(model: PreTrainedModel) -> str:
    return held_precision(model.get_submodule(model.base_model_prefix))


def _plan_for_inference(model: PreTrainedModel, kind: str, fast: bool) -> Plan:
    return Plan(
        fast=fast,
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
        # as it was trained
        autocast=_held(model) == "fp32" and getattr(model, "peftlab_compute", None) == "bf16",
    )
