"""A table that a caller holds as a task: a DataFrame, a data set, or columns by name."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from peftlab.errors import RequestError, expect, unknown
from peftlab.tasks.base import Task
from peftlab.tasks.files import file, rows


def make_task(
    table: Any,
    text: str | Sequence[str] = "text",
    label: str = "label",
    dev: Any = None,
    kind: Literal["auto", "classes", "regression"] = "auto",
    name: str = "table",
) -> Task:
    """Make a task of a table in memory, as a file with the same rows would make it.

    Args:
        table: pandas' DataFrame, a `datasets.Dataset`, or columns by name: {"text": [...], ...}.
        text: its text column, or two.
        label: its label column: names of classes, or numbers.
        dev: a table with the same columns to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        name: of the task.

    Raises:
        RequestError: a table, a column or a row is not as it must be, with the row's number from 1;
            a label in `dev` that `table` has not; fewer than two classes, or values.

    >>> task = make_task({"text": ["a", "b", "c", "d"] * 5, "label": ["x", "y"] * 10})
    >>> task.labels, len(task.train) + len(task.dev)
    (('x', 'y'), 20)
    """
    expect("name", name, str, "a text")
    expect("kind", kind, str, "auto, classes or regression")
    if kind not in ("auto", "classes", "regression"):
        raise unknown("kind", kind, ("auto", "classes", "regression"))
    texts = [text] if isinstance(text, str) else list(text)
    columns = file.columns_of(texts, label)
    return file.task_of(
        _rows(table, "table", columns),
        None if dev is None else _rows(dev, "dev", columns),
        texts,
        label,
        kind,
        stem=name,
        source="python",
        otherwise="Or give dev=.",
    )


def _rows(table: Any, name: str, columns: Sequence[str]) -> rows.Table:
    header = list(map(str, _header(table, name)))
    for column in columns:
        if column not in header:
            raise unknown(f"column of {name}", column, header)
    cells = [_cells(table, column) for column in columns]
    if len({len(column) for column in cells}) > 1:
        told = ", ".join(f"{len(of)} {column}" for of, column in zip(cells, columns, strict=True))
        raise RequestError(f"{name} has columns of several lengths: {told}")
    if not cells[0]:
        raise RequestError(f"{name} holds no rows; it needs at least one")
    numbered = enumerate(zip(*cells, strict=True), start=1)
    return rows.Table(name, "row", True, [rows.Row(number, row) for number, row in numbered])


def _header(table: Any, name: str) -> Sequence[Any]:
    if isinstance(table, Mapping):
        return list(table)
    for names in ("column_names", "columns"):  # a Dataset's, a DataFrame's
        if hasattr(table, names):
            return list(getattr(table, names))
    raise RequestError(
        f"{name} must be a DataFrame, a datasets.Dataset or columns by name, "
        f"got {reprlib.repr(table)}"
    )


def _cells(table: Any, column: str) -> list[Any]:
    """The column's values as Python has them, a data set's classes by their names."""
    values = table[column]
    if hasattr(values, "notna"):  # pandas has several values that stand for none
        values = values.astype(object).where(values.notna(), None)
    cells = [value.item() if hasattr(value, "item") else value for value in values]
    feature = (getattr(table, "features", None) or {}).get(column)
    names = getattr(feature, "names", None)
    if names is None:
        return cells
    return [names[cell] if cell is not None and cell >= 0 else None for cell in cells]
