"""What a cell's own process does: load, inject, train, answer. The caller listens and scores.

`run_cell` begins with loading; `train_model` trains a model that the caller has loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from peftlab.adapters import label_names, save
from peftlab.atomic import check_replaceable
from peftlab.bench.cell import Cell, Order
from peftlab.bench.outcome import Outputs, Trained
from peftlab.bench.tokens import Tokens, tokens_of
from peftlab.machine import own_code
from peftlab.methods import ManyRanks, Method, Prepared, inject, injected, make
from peftlab.models import (
    TaskCard,
    Unit,
    agree_on_padding,
    check_checkpointing,
    head_parameters,
    last_layer,
    load_source,
    load_tokenizer,
    standard_unit,
    state_of,
    unit_of,
    unread_modules,
)
from peftlab.records.record import Memory, Speed, Trainable
from peftlab.tasks import Task
from peftlab.training import (
    Checkpoint,
    Encoded,
    FitResult,
    Line,
    Loop,
    MemoryMeter,
    Rehearsal,
    TrainingPlan,
    can_pack,
    check_finite,
    compute_outputs,
    fit,
    kernels_of,
    repeatable,
    try_one_example,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# attributes that transformers sets in a module whose activations may be recomputed
CHECKPOINTING_FIELDS = ("gradient_checkpointing", "_gradient_checkpointing_func")


# a head is of the labels' unit if its median answer to so many examples lies so near to their mean
FEW_EXAMPLES, NEAR_SD = 16, 3.0


class Listener(Protocol):
    """Is told of a training as it goes; see `peftlab.bench.outcome.CellScorer`.

    The training waits while its answers are scored: no step is timed beside other work.
    """

    def step(self, row: Line, total: int) -> None: ...
    def epoch(self, epoch: int, outputs: Outputs) -> None: ...
    def rank(self, rank: int, outputs: Outputs) -> None: ...
    def note(self, line: str) -> None: ...


def run_cell(order: Order, listener: Listener) -> Trained:
    """Load and train the ordered cell, and save its adapter where that is to be kept.

    An adapter that can't be saved is a note and no error: the training is done, and its answers are
    reported.
    """
    started = time.perf_counter()
    cell, adapter = order.cell, order.adapter
    if adapter is not None:
        check_replaceable(adapter)
    torch.set_num_threads(cell.training.threads)
    if cell.own is not None:
        cell.own.receive()
    task = Task.read(order.task_file)
    tokenizer = load_tokenizer(cell.model_folder)
    tokens = tokens_of(tokenizer, task, cell.training.max_length, order.task_file.parent)
    memory = MemoryMeter(cell.training.device)
    model = load_source(cell.source, task.num_labels, cell.precision, cell.seed)
    agree_on_padding(model, tokenizer)
    torch.manual_seed(cell.seed)
    inject(model, make(cell.method.name, cell.method.settings))
    kept = None
    if order.checkpoint is not None:
        kept = Checkpoint(order.checkpoint, _made_by(cell, _kernels(model, cell)), listener.note)
    trained = train_model(model, task, tokens, cell, listener, memory, started, kept)
    if adapter is not None:
        try:
            save(model, adapter)
        except Exception as error:  # of any kind: hours of training must not be lost to it
            note = f"its adapter was not kept: {error}"
            return trained.model_copy(update={"notes": [*trained.notes, note]})
    return trained


def train_model(
    model: PreTrainedModel,
    task: Task,
    tokens: Tokens,
    cell: Cell,
    listener: Listener,
    memory: MemoryMeter,
    started: float,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train an injected model as `cell` says; `tokens` are those of `task`."""
    with activation_checkpointing(model, cell.training.checkpointing):
        method = injected(model)
        assert method is not None
        packed = cell.training.in_engine and can_pack(model)  # which may build a kernel
        plan = replace(make_plan(cell, task, packed), unread=tuple(unread_modules(model)))
        if model.device.type == plan.device_type:
            # the model stays on its device, which need not be the current one
            plan = replace(plan, index=model.device.index)
        train, dev = tokens
        model.to(plan.device)  # type: ignore[arg-type]  # transformers' own wrapper hides its type
        head_notes = [*_order_head(model, task), *_check_unit(model, task, train, plan)]
        _name_task(model, task, cell)

        def trial() -> None:
            try_one_example(model, train, plan)

        with (
            _standardised(model, task, train) as (train, to_outputs),
            repeatable(plan.device_type, trial) as device_notes,
        ):
            prepare_s = _prepare(model, method, Rehearsal(method, train, plan))
            last: Outputs = []

            def on_epoch(epoch: int, outputs: Tensor) -> None:
                nonlocal last
                last = to_outputs(outputs)
                listener.epoch(epoch, last)

            loop = Loop(model, method, train, plan)
            fitted = fit(loop, dev, listener.step, on_epoch, memory, checkpoint)
            fitted.eval_s += _answer_at_ranks(model, method, dev, plan, to_outputs, last, listener)
        fitted.notes += [*head_notes, *device_notes, *_notes(model, method, task)]
        return Trained(
            n_truncated=train.n_truncated + dev.n_truncated,
            prepare_s=prepare_s,
            total_s=fitted.earlier_s + time.perf_counter() - started,
            environment=cell.environment(plan.index, _kernels(model, cell)),
            **_loop_fields(model, fitted),
        )


def _loop_fields(model: PreTrainedModel, fitted: FitResult) -> dict[str, Any]:
    """The fields of `Trained` that come from the training loop."""
    return {
        "n_trainable": count(model),
        "speed": Speed(**fitted.speed.summary()),
        "memory": Memory(**vars(fitted.memory)) if fitted.memory else None,
        "parts": fitted.parts,
        "curve": fitted.curve,
        "notes": fitted.notes,
        "train_s": fitted.train_s,
        "eval_s": fitted.eval_s,
    }


def _made_by(cell: Cell, kernels: str) -> dict[str, Any]:
    """All that must be unchanged for a stopped training to go on with the same bits."""
    current = cell.environment(kernels=kernels)
    # the code's hash says more than a commit, and how long threads spin changes no bit
    fields = current.model_dump(exclude={"commit", "dirty", "spin_count"})
    vectors = torch.backends.cpu.get_cpu_capability()  # ATEN_CPU_CAPABILITY may have lowered it
    return {"cell": cell.identity, "code": own_code(), "vectors": vectors, **fields}


def _kernels(model: PreTrainedModel, cell: Cell) -> str:
    # asking builds them, for up to a minute each
    on_cpu = cell.training.device == "cpu"
    return kernels_of(model, cell.training.in_engine) if on_cpu else "torch"


def _answer_at_ranks(
    model: PreTrainedModel,
    method: Method,
    dev: Encoded,
    plan: TrainingPlan,
    to_outputs: Callable[[Tensor], Outputs],
    last: Outputs,
    listener: Listener,
) -> float:
    """Answer dev at each rank of a method that has many; returns the seconds that this took.

    At the method's full rank `last` are the answers already: computed again, they may be rounded
    otherwise.
    """
    if not isinstance(method, ManyRanks):
        return 0.0
    seconds = 0.0
    with closing(method.ranks(model)) as ranks:  # closing it restores the full rank
        for rank in ranks:
            if rank == method.settings["rank"]:
                listener.rank(rank, last)
                continue
            started = time.perf_counter()
            outputs = compute_outputs(model, dev, plan)
            seconds += time.perf_counter() - started
            check_finite(outputs, plan.settings.epochs)
            listener.rank(rank, to_outputs(outputs))
    return seconds


def _notes(model: PreTrainedModel, method: Method, task: Task) -> list[str]:
    """Notes for the record on the method with this model and task."""
    notes = method.notes(model) if isinstance(method, Prepared) else []
    if task.kind == "regression" and last_layer(model).bias is None:
        notes = [*notes, "the head has no bias: labels were scaled for training, not centred"]
    return notes


@contextmanager
def activation_checkpointing(model: PreTrainedModel, enabled: bool) -> Iterator[None]:
    """Inside, the backward pass recomputes activations or does not; restores the model after."""
    fields_before = {
        module: {name: vars(module)[name] for name in CHECKPOINTING_FIELDS if name in vars(module)}
        for module in model.modules()
        if hasattr(module, CHECKPOINTING_FIELDS[0])
    }
    try:
        for module in fields_before:
            setattr(module, CHECKPOINTING_FIELDS[0], False)
        if enabled:
            check_checkpointing(model)
            # transformers renames it; checkpointing that is not reentrant has both names
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        yield
    finally:
        for module, fields in fields_before.items():
            for name in CHECKPOINTING_FIELDS:
                vars(module).pop(name, None)
            vars(module).update(fields)


def _check_unit(
    model: PreTrainedModel, task: Task, train: Encoded, plan: TrainingPlan
) -> list[str]:
    """Do not take a head for one in the labels' unit that answers far from them; a note if so.

    A checkpoint's head may be of labels in another unit, or random. As one in the labels' own unit
    it would begin at -200 for labels around 2000, in standard units, and hardly come nearer.
    """
    state = state_of(model)
    if task.kind == "classes" or not state.own_unit:
        return []
    unit, few = Unit.of(train.labels), range(min(FEW_EXAMPLES, len(train)))
    autocasting = torch.autocast(plan.device_type, torch.bfloat16, enabled=plan.autocast)
    model.eval()
    with torch.no_grad(), autocasting:
        answer = model(**train.batch(few, model.device).inputs).logits.float().median().item()
    state.own_unit = abs(answer - unit.mean) <= NEAR_SD * unit.sd
    if state.own_unit:
        return []
    return [
        f"the model's own head answers {answer:.3g} where labels are {unit.mean:.3g} ± "
        f"{unit.sd:.3g}, so it was taken for one of another unit"
    ]


@contextmanager
def _standardised(
    model: PreTrainedModel, task: Task, train: Encoded
) -> Iterator[tuple[Encoded, Callable[[Tensor], Outputs]]]:
    """The examples with a regression's labels standardised; and the way back from outputs."""
    if task.kind == "classes":
        yield train, Tensor.tolist
        return
    unit = unit_of(model, train.labels)
    with standard_unit(model, unit):
        standardised = replace(train, labels=unit.standardise(train.labels))
        yield standardised, lambda outputs: unit.restore(outputs).tolist()


def _prepare(model: PreTrainedModel, method: Method, rehearsal: Rehearsal) -> float | None:
    """Let the method prepare itself; returns the seconds it took, or None if it needs none."""
    if not isinstance(method, Prepared):
        return None
    started = time.perf_counter()
    method.prepare(model, rehearsal)
    return time.perf_counter() - started


def make_plan(cell: Cell, task: Task, packed: bool) -> TrainingPlan:
    """The training loop's plan of a cell; `packed`: whether the engine can pack the batches."""
    training = cell.training
    balanced = training.class_weights == "balanced"
    return TrainingPlan(
        settings=training,
        kind=task.kind,
        seed=cell.seed,
        autocast=cell.precision.autocast,
        packed=packed and training.in_engine,
        weights=task.balanced_weights if balanced else (),
    )


def count(model: PreTrainedModel) -> Trainable:
    """The number of trained parameters, in the adapter, the head and in total."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in head_parameters(model).values() if p.requires_grad)
    return Trainable(adapter=total - head, head=head, total=total)


def _name_task(model: PreTrainedModel, task: Task, cell: Cell) -> None:
    """Note the task in the model: names of outputs in its config, and a card for `save`."""
    state = state_of(model)
    state.precision = cell.precision
    state.task_card = TaskCard(
        kind=task.kind,
        labels=list(task.labels),
        label_type=task.label_type,
        columns=list(task.columns),
        max_length=cell.training.max_length,
        n_texts=len(task.train.texts[0]),
    )
    state.task_card.name_outputs(model.config)


@torch.no_grad()
def _order_head(model: PreTrainedModel, task: Task) -> list[str]:
    """Put the outputs of a head that names the task's classes in the task's order, with a note.

    A checkpoint trained on the same classes in another order would at first mistake each of them.
    """
    head_names = [name.casefold() for name in label_names(model)]
    names = [name.casefold() for name in task.labels]
    is_other_order = head_names != names and sorted(head_names) == sorted(names)
    if not is_other_order or len(set(names)) < len(names):
        return []
    layer, rows = last_layer(model), [head_names.index(name) for name in names]
    layer.weight.copy_(layer.weight[rows])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[rows])
    return [f"the head's outputs were put in the order of the task's classes: {', '.join(names)}"]
