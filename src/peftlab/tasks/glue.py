"""GLUE: nine of the benchmark's tasks, from its own files or from the hub, the same either way.

The files lie as the benchmark lays them out, FOLDER/MRPC/train.tsv and so on; the test labels are
hidden, so dev judges. Their fields are not quoted. A row with too few or too many fields is an
error that names its line, with one exception: QQP's official train file itself holds a few rows
that lost fields. Other loaders leave them out, and so does this one (at most `QQP_SHORT_ROWS`; with
more the file is broken).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from peftlab.errors import RequestError, contents, expanded
from peftlab.labels import Kind
from peftlab.tasks import hub
from peftlab.tasks.base import Examples, Task
from peftlab.tasks.files import rows

QQP_SHORT_ROWS = 10
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
REPO = "nyu-mll/glue"
COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class Glue:
    """One task of the benchmark, and how its files and its copy on the hub are laid out.

    Attributes:
        labels: the classes in the hub's order, used for the files too.
        metrics: the main one first.
        text: the columns of the texts: names in the header, or positions where there is none.
        label: the column of the label, likewise.
        label_format: whether the files write a label as its index or by its name.
        hub_text: the columns of the texts on the hub.
        dev: the name of the dev file, and of the split on the hub.
        max_short_rows: how many rows with missing fields may be left out; more are an error.
    """

    name: str
    folder: str
    summary: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    text: tuple[str, ...] | tuple[int, ...] = _PAIR
    label: str | int = "label"
    hub_text: tuple[str, ...] = _PAIR
    label_format: Literal["index", "name"] = "index"
    dev: tuple[str, str] = ("dev.tsv", "validation")
    max_length: int = 128
    n_fields: int | None = None
    max_short_rows: int = 0
    source: ClassVar[str] = "GLUE"

    @property
    def kind(self) -> Kind:
        return "classes" if self.labels else "regression"

    def is_here(self, data_dir: Path | None = None) -> bool:
        """Whether the task can be loaded without a network: its files, or the hub's cache."""
        if data_dir is None:
            return bool(hub.cached(REPO, COMMIT, _hub_files(self)))
        folder = expanded(data_dir) / self.folder
        return all((folder / file).is_file() for file in ("train.tsv", self.dev[0]))


GLUE: dict[str, Glue] = {
    row.name: row
    for row in (
        Glue(
            name="cola",
            folder="CoLA",
            summary="Is the sentence acceptable English?",
            metrics=("matthews", "accuracy"),
            labels=("unacceptable", "acceptable"),
            text=(3,),
            label=1,
            n_fields=4,
            hub_text=("sentence",),
        ),
        Glue(
            name="mrpc",
            folder="MRPC",
            summary="Do two sentences from the news mean the same?",
            metrics=("f1", "accuracy"),
            labels=("not_equivalent", "equivalent"),
            text=("#1 String", "#2 String"),
            label="Quality",
        ),
        Glue(
            name="rte",
            folder="RTE",
            summary="Does the first text entail the second?",
            labels=_ENTAILMENT,
            label_format="name",
            max_length=256,
        ),
        Glue(
            name="stsb",
            folder="STS-B",
            summary="How similar are two sentences, from 0 to 5?",
            metrics=("pearson", "spearman"),
            labels=(),
            label="score",
        ),
        Glue(
            name="sst2",
            folder="SST-2",
            summary="Is a phrase from a film review positive?",
            labels=("negative", "positive"),
            text=("sentence",),
            hub_text=("sentence",),
        ),
        Glue(
            name="qnli",
            folder="QNLI",
            summary="Does the sentence answer the question?",
            labels=_ENTAILMENT,
            text=("question", "sentence"),
            hub_text=("question", "sentence"),
            label_format="name",
        ),
        Glue(
            name="qqp",
            folder="QQP",
            summary="Do two questions ask the same?",
            metrics=("f1", "accuracy"),
            labels=("not_duplicate", "duplicate"),
            text=("question1", "question2"),
            label="is_duplicate",
            hub_text=("question1", "question2"),
            max_short_rows=QQP_SHORT_ROWS,
        ),
        Glue(
            name="mnli",
            folder="MNLI",
            summary="Does the first sentence entail the second, contradict it, or neither?",
            labels=("entailment", "neutral", "contradiction"),
            label="gold_label",
            hub_text=("premise", "hypothesis"),
            label_format="name",
            dev=("dev_matched.tsv", "validation_matched"),
        ),
        Glue(
            name="wnli",
            folder="WNLI",
            summary="Does the second sentence resolve the first one's pronoun rightly?",
            labels=("not_entailment", "entailment"),
        ),
    )
}


def load(name: str, data_dir: Path | None = None) -> Task:
    """Load the GLUE task `name` from the benchmark's files in `data_dir`, or else from the hub.

    Raises:
        RequestError: a file, a column, a row or a label is missing or not as the benchmark has it;
            or, without `data_dir`, the hub can't be reached and its cache lacks the task.
    """
    row = GLUE[name]
    return from_hub(row) if data_dir is None else from_folder(row, data_dir)


def from_folder(row: Glue, data_dir: Path) -> Task:
    """The task from the benchmark's own files; raises RequestError, see `load`."""
    data_dir = expanded(data_dir)
    train, dev = (
        _read_examples(row, _find_file(row, data_dir, name)) for name in ("train.tsv", row.dev[0])
    )
    return _task(row, train, dev, f"folder {data_dir.resolve().name}/{row.folder}")


def from_hub(row: Glue) -> Task:
    """The task from the hub or its cache; raises RequestError, see `load`."""
    paths = hub.fetch(REPO, COMMIT, _hub_files(row), remedy=_remedies(row))
    train, dev = (_read_hub_examples(row, path) for path in paths)
    return _task(row, train, dev, f"hub {REPO}@{COMMIT}", hub.licence(REPO, COMMIT))


def _hub_files(row: Glue) -> list[str]:
    """The files of train and dev in the hub's repository."""
    return [f"{row.name}/{split}-00000-of-00001.parquet" for split in ("train", row.dev[1])]


def _task(
    row: Glue, train: Examples, dev: Examples, source: str, licence: str | None = None
) -> Task:
    return Task(
        name=row.name,
        kind=row.kind,
        metrics=row.metrics,
        train=train,
        dev=dev,
        labels=row.labels,
        max_length=row.max_length,
        source=source,
        columns=row.hub_text,
        licence=licence,
    )


def _remedies(row: Glue) -> str:
    return (
        "Either give the benchmark's own files with --data-dir FOLDER or PEFTLAB_DATA_DIR "
        f"({_layout(row)}); "
        "or load the task once on a machine with a network and copy its cache (HF_HOME) here; "
        "or take a built-in task, which needs no data (`peftlab tasks` lists them)."
    )


def _layout(row: Glue) -> str:
    return f"FOLDER/{row.folder}/train.tsv and {row.dev[0]}"


def _find_file(row: Glue, data_dir: Path, name: str) -> Path:
    path = data_dir / row.folder / name
    if path.is_file():
        return path
    need = f"task {row.name!r} is read from {path}"
    remedy = (
        f"--data-dir FOLDER (or PEFTLAB_DATA_DIR) must hold {_layout(row)}; without it the hub is "
        "asked."
    )
    if not data_dir.is_dir():
        raise RequestError(f"{need}, but there is no folder {data_dir}. {remedy}")
    if not path.parent.is_dir():
        raise RequestError(f"{need}, but {_explain_missing_folder(row, data_dir)} {remedy}")
    raise RequestError(f"{need}, but {path.parent} has no {name}; {contents(path.parent)}.")


def _explain_missing_folder(row: Glue, data_dir: Path) -> str:
    if (data_dir / "train.tsv").is_file():
        parent = data_dir.absolute().parent
        return f"{data_dir} is a task's own folder: give the one above it, --data-dir {parent}."
    for entry in data_dir.iterdir():
        if _normalise(entry.name) == _normalise(row.folder):
            return f"the folder there is called {entry.name}: rename it to {row.folder}."
        if entry.is_dir() and (entry / row.folder).is_dir():
            return f"there is one in {entry}: give --data-dir {entry}."
    return f"{data_dir} has no folder {row.folder}; {contents(data_dir)}."


def _normalise(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _read_examples(row: Glue, path: Path) -> Examples:
    records = rows.tab_separated(rows.read_text(path))
    if row.n_fields is not None:  # CoLA: no header
        n_fields, indices = row.n_fields, cast(list[int], [*row.text, row.label])
    else:
        _, header = next(records, (1, []))
        if not header:
            raise RequestError(f"{path} is empty; is the download complete?")
        n_fields = len(header)
        indices = rows.positions(path, header, cast(list[str], [*row.text, row.label]))
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    n_short = 0
    for number, fields in records:
        if len(fields) != n_fields:
            n_short += 1
            if len(fields) > n_fields or n_short > row.max_short_rows:
                raise rows.malformed(path, number, len(fields), n_fields)
            continue
        *text, label = (fields[i] for i in indices)
        texts.append(tuple(text))
        labels.append(_parse_label(row, path, number, label))
    if not labels:
        raise RequestError(f"{path} holds no examples; is the download complete?")
    return Examples(texts, labels)


def _parse_label(row: Glue, path: Path, number: int, field: str) -> int | float:
    if row.kind == "regression":
        return _parse_similarity(path, number, field)
    by_name = row.label_format == "name"
    allowed = row.labels if by_name else [str(i) for i in range(len(row.labels))]
    if field not in allowed:
        raise RequestError(
            f"{path}, line {number}: unknown label {field!r}; allowed: {', '.join(allowed)}."
        )
    return allowed.index(field)


def _parse_similarity(path: Path, number: int, field: str) -> float:
    try:
        score = float(field)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise RequestError(f"{path}, line {number}: the score must be from 0 to 5, got {field!r}.")
    return score


def _read_hub_examples(row: Glue, path: Path) -> Examples:
    table = rows.read_split(str(path), [path], [*row.hub_text, "label"])
    labels: list[Any] = [_hub_label(row, table, record) for record in table.rows]
    return Examples([record.cells[:-1] for record in table.rows], labels)


def _hub_label(row: Glue, table: rows.Table, record: rows.Row) -> int | float:
    """A regression's number or a class's index, which the cell holds itself or by its name."""
    cell = record.cells[-1]
    if row.kind == "regression":
        return _decimal(cell)
    if cell not in (*row.labels, *range(len(row.labels))):
        allowed = ", ".join(row.labels)
        raise table.error(record, f"unknown label {cell!r}; allowed: {allowed}.")
    return cell if isinstance(cell, int) else row.labels.index(cell)


def _decimal(score: float) -> float:
    """The score as the files write it: the hub holds 3.8 in fp32, which is 3.799999952316284."""
    import numpy as np

    return float(str(np.float32(score)))
