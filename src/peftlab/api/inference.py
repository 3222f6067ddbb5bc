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
from peftlab.labels import Label, check_encodable, typed_label
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
from peftlab.tasks import NoColumn, Task, answer_file, check_out, read_sheet
from peftlab.tasks import load as load_task
from peftlab.training import Encoded, encode, outputs

TEXTS = "a list of texts, or of pairs of texts"
TEXTS_PER_ROW = {1: "single texts", 2: "pairs of texts"}


def evaluate(
    model: PreTrainedModel, tokenizer: Any, task: Task | str, fast: bool = True
) -> dict[str, float]:
    """The task's metrics of `model` on its dev split, as fractions.

    Classes are matched by their names where the model has any, else by their order.

    With `fast`, `peftlab.engine` computes; without it, the model's own code. Beside other work
    fewer threads are used, as in `train`.

    Raises:
        RequestError: if an argument is of a wrong type, if the task's number of outputs or its
            classes are not the model's, or if an output is NaN or infinite.
    """
    _check_arguments(model, tokenizer, fast)
    task = task_of(task)
    logits = dev_outputs(model, tokenizer, task, fast)
    return task.score(predictions_of(task.kind, logits.tolist()))


def dev_outputs(model: PreTrainedModel, tokenizer: Any, task: Task, fast: bool = True) -> Tensor:
    """The outputs for the task's dev split, (n_dev, num_labels), in the labels' order and unit.

    Raises:
        RequestError: if dev is empty, if the task's number of outputs or its classes are not the
            model's, or if an output is NaN or infinite.
    """
    check_num_labels(model, task)
    if len(task.dev) == 0:
        raise RequestError(f"task {task.name}: its dev split is empty")
    order = _output_order(model, task)
    agree_on_padding(model, tokenizer)
    max_length = _max_length(model, tokenizer, task.max_length)
    dev = encode(tokenizer, task.dev.texts, task.dev.labels, max_length)
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
    values; for a model that was not trained here it is the class's name.

    `fast` as in `evaluate`. Texts are cut at the length of the training, or at the model's limit if
    it was not trained here.

    Raises:
        RequestError: if an argument is of a wrong type, or some texts are single and some pairs.
    """
    _check_arguments(model, tokenizer, fast)
    rows = _rows_of(texts)
    answers = predictions(model, tokenizer, rows, lambda n: None, fast).answers
    return [answer.prediction for answer in answers]  # type: ignore[return-value]


class Prediction(NamedTuple):
    """The answer to one row.

    Attributes:
        prediction: the class as the training data had it; for a regression a number.
        name: the class's name; empty for a regression.
        scores: the probability of each class by its name; empty for a regression.
    """

    prediction: Label
    name: str
    scores: dict[str, float]


class Predictions(NamedTuple):
    """The answers to all rows.

    Attributes:
        answers: one for each row.
        n_cut: how many rows lost their end.
        max_length: the number of tokens at which a row is cut.
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

    Raises:
        RequestError: if single texts and pairs are mixed or not as in training, if an output is NaN
            or infinite, or if two classes have one name.
    """
    max_length = _max_length(model, tokenizer, None)
    if not rows:
        return Predictions([], 0, max_length)
    if len({len(row) for row in rows}) > 1:
        raise RequestError("texts must be all single texts or all pairs, got some of each")
    card, n_texts = state_of(model).task_card, len(rows[0])
    if card and card.n_texts and card.n_texts != n_texts:
        raise RequestError(
            f"the model was trained on {TEXTS_PER_ROW[card.n_texts]} and is given "
            f"{TEXTS_PER_ROW[n_texts]}"
        )
    agree_on_padding(model, tokenizer)
    kind = "regression" if model.config.num_labels == 1 else "classes"
    data = encode(tokenizer, rows, [0] * len(rows), max_length)
    with threads_for(model.device.type, lately=True):
        logits = _outputs(model, data, fast, on_batch)
    predicted = predictions_of(kind, logits.tolist())
    if kind == "regression":
        answers = [Prediction(float(value), "", {}) for value in predicted]
        return Predictions(answers, data.n_truncated, max_length)
    names = label_names(model)
    if len(set(names)) < len(names):
        raise RequestError(f"the model has two classes of one name: {', '.join(names)}")
    classes = _classes(model, names)
    answers = [
        Prediction(classes[index], names[index], dict(zip(names, probabilities, strict=True)))
        for index, probabilities in zip(
            map(int, predicted), logits.softmax(-1).tolist(), strict=True
        )
    ]
    return Predictions(answers, data.n_truncated, max_length)


def _classes(model: PreTrainedModel, names: list[str]) -> list[Label]:
    """The outputs' classes as the training data had them; the names if they were renamed since."""
    card = state_of(model).task_card
    if card is None or card.labels != names:
        return [*names]
    return [typed_label(name, card.label_type) for name in names]


def task_of(task: Task | str) -> Task:
    """The task of this name, or `task` itself if it is one; RequestError for anything else."""
    expect("task", task, (str, Task), "a name or a Task")
    return load_task(task) if isinstance(task, str) else task


def check_num_labels(model: PreTrainedModel, task: Task) -> None:
    """Raise `RequestError` unless the model has as many outputs as the task needs."""
    if model.config.num_labels != task.num_labels:
        raise RequestError(
            f"task {task.name} needs a model with {task.num_labels} outputs and this one has "
            f"{model.config.num_labels}; load it with num_labels={task.num_labels}"
        )


def _output_order(model: PreTrainedModel, task: Task) -> list[int]:
    """The index of the model's output for each of the task's classes, matched by name.

    Without names, or where the task's differ in case alone, it is the order of the classes.
    """
    names = [name.casefold() for name in label_names(model)]
    classes = [name.casefold() for name in task.labels]
    default_names = [f"label_{index}" for index in range(len(names))]
    if names == default_names or not classes or len(set(classes)) < len(classes):
        return list(range(task.num_labels))
    if set(names) != set(classes):
        raise RequestError(
            f"task {task.name} has the classes {', '.join(task.labels)}, and the model answers "
            f"{', '.join(label_names(model))}; if these are the same in this order, say so with "
            "model.config.id2label = dict(enumerate(...))"
        )
    return [names.index(name) for name in classes]


def _check_arguments(model: Any, tokenizer: Any, fast: Any) -> None:
    check_model(model)
    check_tokenizer(tokenizer)
    expect("fast", fast, bool, "True or False")


def _rows_of(texts: Any) -> list[tuple[str, ...]]:
    """The texts as rows of one or two each; RequestError for anything else."""
    if not isinstance(texts, Iterable) or isinstance(texts, str | bytes | Mapping):
        raise RequestError(f"texts must be {TEXTS}, got {reprlib.repr(texts)}")
    if hasattr(texts, "columns"):  # a pandas table, which iterates over the names of its columns
        raise RequestError(f"texts must be {TEXTS}, got a table; give one of its columns")
    rows = [tuple(text) if isinstance(text, list | tuple) else (text,) for text in texts]
    for row in rows:
        if not 1 <= len(row) <= 2 or not all(isinstance(text, str) for text in row):
            raise RequestError(f"texts must be {TEXTS}, got {reprlib.repr(row)} among them")
        try:
            for text in row:
                check_encodable(text)
        except ValueError as error:
            raise RequestError(str(error)) from None
    return rows


def _max_length(model: PreTrainedModel, tokenizer: Any, default: int | None) -> int:
    """The number of tokens at which inputs are cut, at most the model's limit.

    It is that of the training; for a model that was not trained here `default`, or the limit.
    """
    limit = token_limit(tokenizer, model.config)
    card = state_of(model).task_card
    max_length = card.max_length if card else default
    return min(max_length or limit, limit)


def _outputs(
    model: PreTrainedModel,
    data: Encoded,
    fast: bool,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """The outputs for `data`, (n, num_labels), with the autocast of the training.

    One thread after the other. Modules in training mode are put back into it afterwards.

    Raises:
        RequestError: if an output is NaN or infinite: the first class, say, is not the answer then.
    """
    with state_of(model).turn:
        in_training = [module for module in model.modules() if module.training]
        autocast = precision_of(model).autocast
        try:
            logits = outputs(model, data, autocast=autocast, fast=fast, on_batch=on_batch)
        finally:
            for module in in_training:
                module.training = True
    if not logits.isfinite().all():
        raise RequestError("the model's outputs are not all numbers: its weights hold NaN or inf")
    return logits


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
        text: the columns of the texts; those of the training if not given.
        base: where the base lies now, if not where it lay in training.
        device: where to compute.
        on_batch: called with the number of rows of each batch that is done, and of all rows.
        fast: as in `peftlab.evaluate`.

    Raises:
        RequestError: if the adapter or the file can't be read, their columns or texts don't fit
            each other, or `out` can't be written.
    """
    check_out(out, file)
    check_adapter(adapter)
    if out.resolve().is_relative_to(Path(adapter).resolve()):
        raise RequestError(
            f"{out} lies in the adapter's folder, among its own files; give --out another place"
        )
    card = read_card(adapter)
    trained_columns = card.task.columns if card and card.task else []
    columns = list(text or trained_columns)
    if not columns:
        raise RequestError(
            f"{adapter} does not say which columns hold the texts; name them with --text"
        )
    try:
        sheet = read_sheet(file, columns)
    except NoColumn as error:
        if text:
            raise
        trained_on = f"The adapter was trained on {' and '.join(trained_columns)}"
        raise RequestError(f"{error}. {trained_on}; name this file's columns with --text") from None
    rows = sheet.texts
    model, tokenizer = load(adapter, base=base, device=device)
    classes = [] if model.config.num_labels == 1 else label_names(model)
    sheet.check_fits(out, classes)
    sheet.check_new(["prediction", *(f"score_{name}" for name in classes)])
    predicted = predictions(model, tokenizer, rows, lambda n: on_batch(n, len(rows)), fast)
    new_columns = [
        # beside labels that are text, as in CSV, a class is text too
        {"prediction": answer.prediction if sheet.typed or not classes else answer.name}
        | {f"score_{name}": score for name, score in answer.scores.items()}
        for answer in predicted.answers
    ]
    answer_file(sheet, out, new_columns)
    return predicted
