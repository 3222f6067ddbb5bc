"""Answers of a trained model: the scores on a task, or predictions for texts or for a file."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from peftlab.adapters import check_adapter, label_names, load, read_card
from peftlab.bench.outcome import predictions_of
from peftlab.errors import RequestError, expect
from peftlab.layers import PreTrainedModel
from peftlab.machine import threads_for
from peftlab.models import (
    agree_on_padding,
    check_model,
    check_tokenizer,
    precision_of,
    state_of,
    token_limit,
)
from peftlab.tasks import Label, NoColumn, Task, answer_file, check_out, read_sheet, typed_label
from peftlab.tasks import load as load_task
from peftlab.training import Encoded, encode, outputs

TEXTS = "a list of texts, or of pairs of texts"
WORDS = {1: "single texts", 2: "pairs of texts"}


def evaluate(
    model: PreTrainedModel, tokenizer: Any, task: Task | str, fast: bool = True
) -> dict[str, float]:
    """The task's metrics of `model` on its dev split, as fractions.

    Classes are matched by their names where the model has any, else by their order.

    `fast` computes as `peftlab.engine` does, else the model's own code as it is. Beside
    other work it takes fewer threads, as `train` does.

    Raises:
        RequestError: if an argument is of a wrong type, or the task has other outputs or classes.
    """
    _check(model, tokenizer, fast)
    task = task_of(task)
    found = dev_outputs(model, tokenizer, task, fast)
    return task.score(predictions_of(task.kind, found.tolist()))


def dev_outputs(model: PreTrainedModel, tokenizer: Any, task: Task, fast: bool = True) -> Tensor:
    """The outputs for the task's dev split, (n_dev, num_labels), in the labels' order and unit.

    Raises:
        RequestError: if the task has other outputs or classes.
    """
    check_num_labels(model, task)
    if len(task.dev) == 0:
        raise RequestError(f"task {task.name}: its dev split is empty")
    order = _order(model, task)
    agree_on_padding(model, tokenizer)
    longest = _longest(model, tokenizer, task.max_length)
    dev = encode(tokenizer, task.dev.texts, task.dev.labels, longest)
    with threads_for(model.device.type, lately=True):
        return _outputs(model, dev, fast)[:, order]


def predict(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str | tuple[str, ...]],
    fast: bool = True,
) -> list[str] | list[int] | list[float]:
    """The answer to each text, or pair of texts: its class, or a number for a regression.

    A class is the label as the training data had it, 1 or True where that held numbers or truth
    values; of a model that was not trained here it is the class's name.

    `fast` as in `evaluate`. A text is read as far as in training, of a model that was not trained
    here as far as it can read.

    Raises:
        RequestError: if an argument is of a wrong type, or some texts are single and some pairs.
    """
    _check(model, tokenizer, fast)
    rows = _rows(texts)
    found = predictions(model, tokenizer, rows, lambda n: None, fast).answers
    return [answer.prediction for answer in found]  # type: ignore[return-value]


class Prediction(NamedTuple):
    """The answer to one text, and each class's probability by name; none for a regression."""

    prediction: Label
    scores: dict[str, float]


class Predictions(NamedTuple):
    """Of all texts.

    Attributes:
        answers: one a text.
        n_cut: how many texts lost their end.
        max_length: tokens that were read of each at most.
    """

    answers: list[Prediction]
    n_cut: int
    max_length: int


def predictions(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[tuple[str, ...]],
    on_batch: Callable[[int], None],
    fast: bool = True,
) -> Predictions:
    """The answer to each row of one or two texts.

    Args:
        model: loaded and trained.
        tokenizer: the model's own.
        rows: one or two texts each.
        on_batch: called with the number of rows of each batch that is done.
        fast: as in `evaluate`.
    """
    longest = _longest(model, tokenizer, None)
    if not rows:
        return Predictions([], 0, longest)
    if len({len(row) for row in rows}) > 1:
        raise RequestError("texts must be all single texts or all pairs, got some of each")
    known, given = state_of(model).task_card, len(rows[0])
    if known and known.n_texts not in (None, given):
        raise RequestError(
            f"the model was trained on {WORDS[known.n_texts or 1]} and is given {WORDS[given]}"
        )
    agree_on_padding(model, tokenizer)
    kind = "regression" if model.config.num_labels == 1 else "classes"
    data = encode(tokenizer, rows, [0] * len(rows), longest)
    with threads_for(model.device.type, lately=True):
        logits = _outputs(model, data, fast, on_batch)
    if not logits.isfinite().all():
        raise RequestError("the model's outputs are not all numbers: its weights hold NaN or inf")
    found = predictions_of(kind, logits.tolist())
    if kind == "regression":
        each = [Prediction(float(value), {}) for value in found]
        return Predictions(each, data.n_truncated, longest)
    names = label_names(model)
    if len(set(names)) < len(names):
        raise RequestError(f"the model has two classes of one name: {', '.join(names)}")
    classes = _classes(model, names)
    shares = logits.softmax(-1).tolist()
    each = [
        Prediction(classes[int(index)], dict(zip(names, row, strict=True)))
        for index, row in zip(found, shares, strict=True)
    ]
    return Predictions(each, data.n_truncated, longest)


def _classes(model: PreTrainedModel, names: list[str]) -> list[Label]:
    """The outputs' classes as the training data had them, or their names if they were renamed."""
    card = state_of(model).task_card
    if card is None or card.labels != names:
        return [*names]
    return [typed_label(name, card.label_type) for name in names]


def task_of(task: Task | str) -> Task:
    """A task, by its name or as it is; RequestError for anything else."""
    expect("task", task, (str, Task), "a name or a Task")
    return load_task(task) if isinstance(task, str) else task


def check_num_labels(model: PreTrainedModel, task: Task) -> None:
    """Raise `RequestError` unless the model has as many outputs as the task asks for."""
    if model.config.num_labels != task.num_labels:
        raise RequestError(
            f"task {task.name} needs a model with {task.num_labels} outputs and this one has "
            f"{model.config.num_labels}; load it with num_labels={task.num_labels}"
        )


def _order(model: PreTrainedModel, task: Task) -> list[int]:
    """Which output of the model stands for each of the task's, by the classes' names."""
    given = [name.casefold() for name in label_names(model)]
    asked = [name.casefold() for name in task.labels]
    unnamed = [f"label_{index}" for index in range(len(given))]
    if given == unnamed or not asked or len(set(asked)) < len(asked):
        return list(range(task.num_labels))
    if set(given) != set(asked):
        raise RequestError(
            f"task {task.name} has the classes {', '.join(task.labels)}, and the model answers "
            f"{', '.join(label_names(model))}; if these are the same in this order, say so with "
            "model.config.id2label = dict(enumerate(...))"
        )
    return [given.index(name) for name in asked]


def _check(model: Any, tokenizer: Any, fast: Any) -> None:
    check_model(model)
    check_tokenizer(tokenizer)
    expect("fast", fast, bool, "True or False")


def _rows(texts: Any) -> list[tuple[str, ...]]:
    """Rows of one or two texts each."""
    if not isinstance(texts, Iterable) or isinstance(texts, str | bytes | Mapping):
        raise RequestError(f"texts must be {TEXTS}, got {reprlib.repr(texts)}")
    if hasattr(texts, "columns"):  # pandas', whose items are the names of its columns
        raise RequestError(f"texts must be {TEXTS}, got a table; give one of its columns")
    rows = [tuple(text) if isinstance(text, list | tuple) else (text,) for text in texts]
    for row in rows:
        if not 1 <= len(row) <= 2 or not all(isinstance(text, str) for text in row):
            raise RequestError(f"texts must be {TEXTS}, got {reprlib.repr(row)} among them")
    return rows


def _longest(model: PreTrainedModel, tokenizer: Any, otherwise: int | None) -> int:
    """The longest input: as in training where the model knows it, else the task's or its own."""
    limit = token_limit(tokenizer, model.config)
    card = state_of(model).task_card
    wanted = card.max_length if card else otherwise
    return min(wanted or limit, limit)


def _outputs(
    model: PreTrainedModel,
    data: Encoded,
    fast: bool,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """The outputs for `data`, (n, num_labels), computed as the model was trained.

    Modules that were in training mode are so again afterwards.
    """
    training = [module for module in model.modules() if module.training]
    autocast = precision_of(model).autocast
    try:
        return outputs(model, data, autocast=autocast, fast=fast, on_batch=on_batch)
    finally:
        for module in training:
            module.training = True


def predict_file(
    adapter: Path,
    file: Path,
    out: Path,
    text: Sequence[str] | None = None,
    base: str | None = None,
    device: str = "auto",
    on_batch: Callable[[int, int], None] = lambda n, total: None,
    fast: bool = True,
) -> Predictions:
    """Write the rows of `file` to `out` with the columns `prediction` and, for classes, scores.

    Args:
        adapter: a folder that `peftlab.save` or HF PEFT wrote.
        file: CSV, TSV, JSONL or Parquet.
        out: the file to write, its suffix one of the same.
        text: the columns of the texts; those of training if not given.
        base: where the base lies now, if not where it lay in training.
        device: where to compute.
        on_batch: called with the rows of each batch that is done, and all there are.
        fast: as in `peftlab.evaluate`.

    Returns:
        The answers, and how many texts were cut.

    Raises:
        RequestError: for an adapter or a file that is not as it must be.
    """
    check_out(out, file)
    check_adapter(adapter)
    card = read_card(adapter)
    known = card.task.columns if card and card.task else []
    columns = list(text or known)
    if not columns:
        raise RequestError(
            f"{adapter} does not say which columns hold the texts; name them with --text"
        )
    try:
        sheet = read_sheet(file, columns)
    except NoColumn as error:
        if text:
            raise
        trained = f"The adapter was trained on {' and '.join(known)}"
        raise RequestError(f"{error}. {trained}; name this file's columns with --text") from None
    rows = sheet.texts
    model, tokenizer = load(adapter, base=base, device=device)
    classes = [] if model.config.num_labels == 1 else label_names(model)
    sheet.check_fits(out, classes)
    sheet.check_new(["prediction", *(f"score_{name}" for name in classes)])
    found = predictions(model, tokenizer, rows, lambda n: on_batch(n, len(rows)), fast)
    extra = [
        {"prediction": answer.prediction}
        | {f"score_{name}": score for name, score in answer.scores.items()}
        for answer in found.answers
    ]
    answer_file(sheet, out, extra)
    return found
