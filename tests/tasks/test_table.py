"""A table that a caller holds becomes the task that a file with its rows would."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import peftlab
from peftlab.tasks import load_file

TEXTS = [f"text {i}" for i in range(40)]
NAMES = ["bad", "good"] * 20
HIDDEN = np.ma.masked_array([1, 2] * 20, mask=[True] * 3 + [False] * 37)  # type: ignore[no-untyped-call]


class Lazy:
    """As a LazyFrame of polars: it has columns and gives none."""

    columns = ("text", "label")

    def __getitem__(self, name: str) -> Any:
        raise TypeError("Lazy is not subscriptable")


@pytest.mark.parametrize(
    "table",
    [
        {"text": TEXTS, "label": NAMES},
        pd.DataFrame({"text": TEXTS, "label": NAMES}, index=range(100, 140)),
        pd.DataFrame({"text": TEXTS, "label": pd.Categorical(NAMES)}),
        {"text": TEXTS, "label": pd.Categorical(NAMES)},
        Dataset.from_dict({"text": TEXTS, "label": NAMES}),
        Dataset.from_dict(
            {"text": TEXTS, "label": [0, 1] * 20},
            features=Features(
                {"text": Value("string"), "label": ClassLabel(names=["bad", "good"])}
            ),
        ),
    ],
    ids=["columns", "frame", "categories", "a column of categories", "dataset", "class labels"],
)
def test_it_is_the_task_of_a_file_with_its_rows(table: Any, tmp_path: Path) -> None:
    file = tmp_path / "file.csv"
    pd.DataFrame({"text": TEXTS, "label": NAMES}).to_csv(file, index=False)
    assert peftlab.make_task(table).sha256() == load_file(file, ["text"], "label").sha256()


def test_numbers_are_those_of_python_and_dev_is_what_is_given() -> None:
    frame = pd.DataFrame({"a": TEXTS, "b": TEXTS, "y": [i / 7 for i in range(40)]})
    task = peftlab.make_task(frame, ["a", "b"], "y", dev=frame[:5], name="My Table")
    assert (task.name, task.kind, len(task.train), len(task.dev)) == (
        "my-table",
        "regression",
        40,
        5,
    )
    assert task.train.texts[1] == ("text 1", "text 1")
    assert {type(label) for label in task.train.labels} == {float}
    whole = pd.DataFrame({"text": TEXTS, "label": [1.0, 0.0] * 20})  # as pandas has them with a gap
    assert peftlab.make_task(whole).labels == ("0", "1")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1, 2], "table must be a DataFrame"),
        ("tickets.csv", "table must be a DataFrame"),
        ({"texts": TEXTS, "label": NAMES}, "unknown column of table 'text'; did you mean 'texts'"),
        ({"text": TEXTS[1:], "label": NAMES}, "several lengths: 39 text, 40 label"),
        ({"text": [], "label": []}, "no rows"),
        ({"text": TEXTS, "label": np.array(NAMES, dtype=object).reshape(40, 1)}, "one value a row"),
        ({"text": "a b", "label": NAMES}, "must hold a value a row, got 'a b'"),
        ({"text": [*TEXTS[1:], pd.NA], "label": NAMES}, "row 40: a text is empty"),
        ({"text": TEXTS, "label": np.arange(40).astype("datetime64[ns]")}, "got datetime64"),
        (
            pd.DataFrame([["a", "b", "x"]] * 4, columns=["text", "text", "label"]),
            "2 columns 'text'",
        ),
        (iter(TEXTS), "table must be a DataFrame"),
        ({"text": dict(enumerate(TEXTS)), "label": NAMES}, "must hold a value a row"),
        ({"text": pd.DataFrame({"text": TEXTS}), "label": NAMES}, "must hold a value a row"),
        ({"text": TEXTS, "label": HIDDEN}, "row 1: the label is empty"),
        ({"text": TEXTS, "label": [pd.Series(["x"])] * 40}, "must hold one value a row"),
        (Lazy(), "column 'text' of table can't be read: Lazy is not subscriptable"),
        (pd.DataFrame({"text": [*TEXTS[1:], pd.NA], "label": NAMES}), "row 40: a text is empty"),
        (pd.DataFrame({"text": TEXTS, "label": [*NAMES[1:], None]}), "row 40: the label is empty"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_row(table: Any, message: str) -> None:
    with pytest.raises(peftlab.RequestError, match=message):
        peftlab.make_task(table)


def test_columns_may_have_numbers_for_names_and_numpy_s_or_arrow_s_values() -> None:
    frame = pd.DataFrame({0: TEXTS, 1: NAMES})
    expected = peftlab.make_task({"text": TEXTS, "label": NAMES}).sha256()
    assert peftlab.make_task(frame, "0", "1").sha256() == expected
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    table = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 20}, features=features)
    assert peftlab.make_task(table.with_format("arrow")).sha256() == expected
    with pytest.raises(peftlab.RequestError, match="a column must be a name, got 0"):
        peftlab.make_task(frame, 0, 1)  # type: ignore[arg-type]


def test_a_label_or_a_kind_that_is_unknown_is_refused() -> None:
    table = {"text": TEXTS, "label": NAMES}
    with pytest.raises(peftlab.RequestError, match="dev, row 1: the label 'fair' is not one of"):
        peftlab.make_task(table, dev={"text": ["a"], "label": ["fair"]})
    with pytest.raises(peftlab.RequestError, match="unknown kind 'classs'; did you mean 'classes'"):
        peftlab.make_task(table, kind="classs")  # type: ignore[arg-type]


def test_examples_take_single_texts_and_say_in_few_words_what_is_wrong() -> None:
    """Wrong data of a task was printed whole: 85,000 characters of 400 rows."""
    examples = peftlab.Examples(TEXTS, [0, 1] * 20)
    assert examples.texts[0] == ("text 0",)
    assert len(repr(peftlab.Examples(["word " * 10_000], [0]))) < 100
    numbers = peftlab.Examples(TEXTS, np.array([0, 1] * 20))  # type: ignore[arg-type]
    assert numbers == examples and {type(label) for label in numbers.labels} == {int}
    frame = pd.DataFrame({"text": TEXTS, "label": NAMES})
    for texts, labels in ((frame, [0, 1]), ({"a": 1}, [0]), (["a"], {0: 1}), (["a"], b"a")):
        with pytest.raises(peftlab.RequestError, match="must be a valid"):
            peftlab.Examples(texts, labels)  # type: ignore[arg-type]
    with pytest.raises(peftlab.RequestError, match=r"label 'bad' is a text.*make_task takes"):
        peftlab.Examples(TEXTS, NAMES)  # type: ignore[arg-type]
    with pytest.raises(peftlab.RequestError, match="and 395 more like these") as wrong:
        peftlab.Examples([[5]] * 400, [0] * 400)  # type: ignore[list-item]
    assert len(str(wrong.value)) < 1000
    for labels, message in (((), "labels is missing"), (("a", "b"), "label 0.0.*whole numbers")):
        split = peftlab.Examples(["a", "b"], [0.0, 1.0])
        with pytest.raises(peftlab.RequestError, match=message):
            peftlab.Task("t", "classes", ("accuracy",), split, split, labels=labels)


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([("a", "b", "c")] * 2, ["a"], "one text, or a pair in all rows; rows have 3"),
        (["a", ("b", "c")], ["a"], "rows have 1 and 2"),
        (["a", "b"], [("a", "b")], "train has 1 texts a row and dev 2"),
        (["a", "\ud83d"], ["a"], "half a surrogate pair"),
    ],
)
def test_examples_that_no_model_can_read_are_refused(train: Any, dev: Any, message: str) -> None:
    """A third text was left out without a word, and texts beside pairs ended in a traceback."""
    with pytest.raises(peftlab.RequestError, match=message):
        splits = peftlab.Examples(train, [0, 1][: len(train)]), peftlab.Examples(dev, [0])
        peftlab.Task("t", "classes", ("accuracy",), *splits, labels=("a", "b"))


def test_two_classes_of_one_name_are_refused() -> None:
    """`predict` alone said so, when the model was trained."""
    split = peftlab.Examples(["a", "b"], [0, 1])
    with pytest.raises(peftlab.RequestError, match="'a' twice"):
        peftlab.Task("t", "classes", ("accuracy",), split, split, labels=("a", "a"))


def test_a_member_of_an_enumeration_of_texts_is_its_value():
    class Answer(str, enum.Enum):  # noqa: UP042 - its str() is its name
        YES = "yes"
        NO = "no"

    texts = [f"text {i}" for i in range(10)]
    task = peftlab.make_task({"text": texts, "label": [Answer.YES, Answer.NO] * 5})
    assert task.labels == ("no", "yes")


def test_a_hidden_answer_of_a_data_set_is_no_class() -> None:
    """-1 stands for it in GLUE's test splits, and would be the last class."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    labels = [*([0, 1] * 19), 0, -1]
    table = Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)
    with pytest.raises(peftlab.RequestError, match="row 40: the label is empty"):
        peftlab.make_task(table)
