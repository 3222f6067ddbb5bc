"""The table of GLUE's tasks: what each asks, and the layout of its files and of its hub copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftlab.tasks.base import Kind

QQP_SHORT_ROWS = 10


@dataclass(frozen=True)
class Glue:
    """One task of the benchmark, and how its files and its copy on the hub are laid out.

    Attributes:
        labels: the classes in the hub's order, which the files' tasks follow too.
        text: the columns of the texts: names in the header, or positions where there is none.
        label: the column of the label, likewise.
        spelled: whether the files write a label as its index or by its name.
        hub_text: the columns of the texts on the hub.
        dev: the name of the dev file, and of the split on the hub.
        short_rows: how many rows with fields missing are left out before that is an error.
    """

    name: str
    folder: str
    summary: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    text: tuple[str, ...] | tuple[int, ...]
    label: str | int
    hub_text: tuple[str, ...]
    spelled: Literal["index", "name"] = "index"
    dev: tuple[str, str] = ("dev.tsv", "validation")
    max_length: int = 128
    n_fields: int | None = None
    short_rows: int = 0

    @property
    def kind(self) -> Kind:
        return "classes" if self.labels else "regression"


_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

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
            hub_text=_PAIR,
        ),
        Glue(
            name="rte",
            folder="RTE",
            summary="Does the first text entail the second?",
            metrics=("accuracy",),
            labels=_ENTAILMENT,
            text=_PAIR,
            label="label",
            hub_text=_PAIR,
            spelled="name",
            max_length=256,
        ),
        Glue(
            name="stsb",
            folder="STS-B",
            summary="How similar are two sentences, from 0 to 5?",
            metrics=("pearson", "spearman"),
            labels=(),
            text=_PAIR,
            label="score",
            hub_text=_PAIR,
        ),
        Glue(
            name="sst2",
            folder="SST-2",
            summary="Is a phrase from a film review positive?",
            metrics=("accuracy",),
            labels=("negative", "positive"),
            text=("sentence",),
            label="label",
            hub_text=("sentence",),
        ),
        Glue(
            name="qnli",
            folder="QNLI",
            summary="Does the sentence answer the question?",
            metrics=("accuracy",),
            labels=_ENTAILMENT,
            text=("question", "sentence"),
            label="label",
            hub_text=("question", "sentence"),
            spelled="name",
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
            short_rows=QQP_SHORT_ROWS,
        ),
        Glue(
            name="mnli",
            folder="MNLI",
            summary="Does the first sentence entail the second, contradict it, or neither?",
            metrics=("accuracy",),
            labels=("entailment", "neutral", "contradiction"),
            text=_PAIR,
            label="gold_label",
            hub_text=("premise", "hypothesis"),
            spelled="name",
            dev=("dev_matched.tsv", "validation_matched"),
        ),
        Glue(
            name="wnli",
            folder="WNLI",
            summary="Does the second sentence resolve the first one's pronoun rightly?",
            metrics=("accuracy",),
            labels=("not_entailment", "entailment"),
            text=_PAIR,
            label="label",
            hub_text=_PAIR,
        ),
    )
}
