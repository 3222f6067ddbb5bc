"""From a cell to its record: load, inject, train, evaluate, write.

`run_cell` is what a cell's own process does; `train` is the same on a model that the caller
holds. Both end in a record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftlab.adapters import TaskCard, save
from peftlab.bench.cell import Cell
from peftlab.bench.doubts import doubts
from peftlab.bench.tokens import Tokens, tokens_of
from peftlab.machine.environment import environment
from peftlab.methods import ManyRanks, Method, Prepared, inject, injected, make
from peftlab.models import (
    agree_on_padding,
    head_parameters,
    last_layer,
    load_source,
    load_tokenizer,
    standard_unit,
    unit_of,
)
from peftlab.records.record import Best, Failure, Memory, Record, Speed, Trainable
from peftlab.records.stats import merit
from peftlab.records.store import Store
from peftlab.tasks import Task
from peftlab.tasks.metrics import score
from peftlab.training import (
    Encoded,
    Fitted,
    Loop,
    MemoryMeter,
    Plan,
    Rehearsal,
    fit,
    outputs,
    repeatable,
    try_one,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnRow = Callable[[dict[str, Any], int], None]
Score = Callable[..., dict[str, float]]  # as `peftlab.tasks.metrics.score`


@dataclass(frozen=True)
class Outcome:
    """A done cell: its record, and the rows of its curve and predictions."""

    record: Record
    curve: list[dict[str, Any]]
    predictions: list[dict[str, Any]]


def run_cell(
    cell: Cell, task_file: Path, store: Store, on_row: OnRow, keep: bool, score: Score = score
) -> Record:
    """Run one cell from nothing and write its files, the record last.

    A failure is a record too; an interruption is not. `keep` says whether to save the adapter.
    """
    started = time.perf_counter()
    try:
        torch.set_num_threads(cell.training["threads"])
        if cell.own is not None:
            cell.own.receive()
        task = Task.read(task_file)
        tokenizer = load_tokenizer(cell.model_folder)
        tokens = tokens_of(tokenizer, task, cell.training["max_length"], task_file.parent)
        memory = MemoryMeter(cell.training["device"])
        compute = cell.training["compute"]
        model = load_source(cell.source, task.num_labels, cell.precision, cell.seed, compute)
        agree_on_padding(model, tokenizer)
        torch.manual_seed(cell.seed)
        inject(model, make(cell.method.name, cell.method.settings))
        outcome = run(model, task, tokens, cell, on_row, memory, started, score)
        if keep:
            save(model, store.adapter(cell.name))
        write(store, outcome)
    except Exception as error:  # whatever went wrong, the suite goes on and says so
        record = failed(cell, type(error).__name__, str(error), time.perf_counter() - started)
        store.write_record(record)
        return record
    return outcome.record


def write(store: Store, outcome: Outcome) -> None:
    """Write the cell's files; its record last, since that is what makes it done."""
    cell = outcome.record.cell
    store.write_lines("curves", cell, outcome.curve)
    store.write_lines("predictions", cell, outcome.predictions)
    store.write_record(outcome.record)


def run(
    model: PreTrainedModel,
    task: Task,
    tokens: Tokens,
    cell: Cell,
    on_row: OnRow,
    memory: MemoryMeter,
    started: float,
    score: Score = score,
) -> Outcome:
    """Train an injected model on `task`, given as `tokens` too, as `cell` says."""
    method = injected(model)
    assert method is not None
    plan = make_plan(cell, task)
    train, dev = tokens
    model.to(plan.device)  # type: ignore[arg-type]
    _name_task(model, task, cell.training["max_length"])
    model.peftlab_compute = cell.training["compute"]
    if cell.training["checkpointing"]:
        # transformers renames it; what both take is not reentrant
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    with (
        _labels_unit(model, task, train) as (train, own),
        repeatable(plan.device, lambda: try_one(model, train, plan)) as notes,
    ):
        prepare_s = _prepare(model, method, Rehearsal(method, train, plan))
        loop = Loop(model, method, train, plan)
        fitted = fit(loop, dev, lambda out: dev_score(task, own(out), score), on_row, memory)
        assert fitted.outputs is not None
        fitted.outputs = own(fitted.outputs)
        evaluating = time.perf_counter()
        ranks = method.ranks(model) if isinstance(method, ManyRanks) else ()
        by_rank = {
            str(rank): dev_score(task, own(outputs(model, dev, plan)), score) for rank in ranks
        }
        fitted.eval_s += time.perf_counter() - evaluating
    fitted.notes += notes
    if isinstance(method, Prepared):
        fitted.notes += method.notes(model)
    if task.kind == "regression" and last_layer(model).bias is None:
        fitted.notes.append("the head has no bias: labels were scaled for training, not centred")
    record = _record(cell, task, model, fitted, train.n_truncated + dev.n_truncated, started)
    record = record.model_copy(
        update={
            "prepare_s": prepare_s,
            "score_by_rank": by_rank or None,
            "warnings": doubts(task, answers(task.kind, fitted.outputs), fitted.scores[-1], score),
        }
    )
    return Outcome(record, fitted.curve, _predictions(task, dev, fitted.outputs))


@contextmanager
def _labels_unit(
    model: PreTrainedModel, task: Task, train: Encoded
) -> Iterator[tuple[Encoded, Callable[[torch.Tensor], torch.Tensor]]]:
    """What to train on, and what gives an output its own unit: numbers are standardised for it."""
    if task.kind == "classes":
        yield train, lambda outputs: outputs
        return
    unit = unit_of(model, train.labels)
    with standard_unit(model, unit):
        yield replace(train, labels=unit.standardised(train.labels)), unit.restored


def _prepare(model: PreTrainedModel, method: Method, rehearsal: Rehearsal) -> float | None:
    """Let the method prepare itself; the seconds it took, or None if it has nothing to do."""
    if not isinstance(method, Prepared):
        return None
    started = time.perf_counter()
    method.prepare(model, rehearsal)
    return time.perf_counter() - started


def make_plan(cell: Cell, task: Task) -> Plan:
    """The loop's part of the cell: fp32 weights compute in bf16 by autocast where that is asked."""
    not_the_loops = ("max_length", "threads", "checkpointing", "compute", "class_weights")
    asked = {name: value for name, value in cell.training.items() if name not in not_the_loops}
    autocast = cell.training["compute"] == "bf16" and cell.precision == "fp32"
    balanced = cell.training["class_weights"] == "balanced"
    weights = task.balanced_weights if balanced else ()
    return Plan(kind=task.kind, seed=cell.seed, autocast=autocast, class_weights=weights, **asked)


def dev_score(task: Task, outputs: torch.Tensor, score: Score = score) -> dict[str, float]:
    """Every metric of the task, of dev outputs (n_dev, num_labels)."""
    n_classes = task.num_labels if task.kind == "classes" else None
    return score(task.every_metric, task.dev.labels, answers(task.kind, outputs), n_classes)


def answers(kind: str, outputs: torch.Tensor) -> list[int] | list[float]:
    """The class of the largest output, or the one output itself, never clipped."""
    if kind == "regression":
        values: list[float] = outputs.squeeze(-1).tolist()
        return values
    classes: list[int] = outputs.argmax(-1).tolist()
    return classes


def failed(cell: Cell, kind: str, message: str, total_s: float | None) -> Record:
    """The record of a cell that failed."""
    return Record(
        **_asked(cell),
        status="failed",
        total_s=total_s,
        environment=environment(cell.training["threads"], cell.precision),
        failure=Failure(kind=kind, message=message),
    )


def _asked(cell: Cell) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "suite": cell.suite,
        "model": cell.model,
        "task": cell.task,
        "method": cell.method,
        "training": cell.training,
        "precision": cell.precision,
        "seed": cell.seed,
    }


def _record(
    cell: Cell,
    task: Task,
    model: PreTrainedModel,
    fitted: Fitted,
    n_truncated: int,
    started: float,
) -> Record:
    epochs = range(len(fitted.scores))
    main = task.main_metric
    best = max(epochs, key=lambda epoch: merit(main, fitted.scores[epoch][main]))
    task_part = cell.task.model_copy(update={"n_truncated": n_truncated})
    method_part = cell.method.model_copy(update={"notes": [*cell.method.notes, *fitted.notes]})
    asked = _asked(cell) | {"task": task_part, "method": method_part}
    memory = fitted.memory
    return Record(
        **asked,
        status="done",
        score=fitted.scores[-1],
        best=Best(epoch=best + 1, score=fitted.scores[best]),
        n_trainable=count(model),
        speed=Speed(**fitted.speed.summary()),
        memory=Memory(**vars(memory)) if memory else None,
        parts=fitted.parts,
        train_s=fitted.train_s,
        eval_s=fitted.eval_s,
        total_s=time.perf_counter() - started,
        environment=environment(cell.training["threads"], cell.precision),
    )


def count(model: PreTrainedModel) -> Trainable:
    """Trained numbers, the head apart."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    return Trainable(adapter=total - head, head=head, total=total)


def _predictions(task: Task, dev: Encoded, outputs: torch.Tensor) -> list[dict[str, Any]]:
    rows = zip(dev.labels, answers(task.kind, outputs), outputs.tolist(), strict=True)
    return [
        {"index": index, "label": label, "prediction": answer, "logits": logits}
        for index, (label, answer, logits) in enumerate(rows)
    ]


def _name_task(model: PreTrainedModel, task: Task, max_length: int) -> None:
    """Tell the model what it answers: transformers in its config, an adapter's folder in a card."""
    model.peftlab_task = TaskCard(  # type: ignore[assignment]
        kind=task.kind,
        labels=list(task.labels),
        columns=list(task.columns),
        max_length=max_length,
    )
    if task.kind == "classes":
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: index for index, label in enumerate(task.labels)}
    model.config.problem_type = (
        "regression" if task.kind == "regression" else "single_label_classification"
    )
