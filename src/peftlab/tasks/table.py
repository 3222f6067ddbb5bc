"""A task from a table in memory: a DataFrame, a data set, or columns by name."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from peftlab.errors import RequestError, expect, one_line, unknown
from peftlab.tasks.base import Task, is_column
from peftlab.tasks.files import file, rows


def make_task(
    table: Any,
    text: str | Sequence[str] = "text",
    label: str = "label",
    dev: Any = None,
    kind: Literal["auto", "classes", "regression"] = "auto",
    name: str = "table",
) -> Task:
    """Make a task of a table in memory: the same task as from a file with the same rows.

    Args:
        table: pandas' DataFrame, a `datasets.Dataset`, or columns by name: {"text": [...], ...}.
        text: its text column, or two.
        label: its label column: names of classes, or numbers.
        dev: a table with the same columns to evaluate on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        name: of the task.

    Raises:
        RequestError: a table, a column or a row is not as it must be, with the row's number from 1;
            a label in `dev` that `table` lacks; fewer than two classes, or values.

    >>> task = make_task({"text": ["a", "b", "c", "d"] * 5, "label": ["x", "y"] * 10})
    >>> task.labels, len(task.train) + len(task.dev)
    (('x', 'y'), 20)
    """
    expect("name", name, str, "a text")
    expect("kind", kind, str, "auto, classes or regression")
    if kind not in ("auto", "classes", "regression"):
        raise unknown("kind", kind, ("auto", "classes", "regression"))
    texts: list[Any] = list(text) if isinstance(text, list | tuple) else [text]
    for column in (*texts, label):
        expect("a column", column, str, "a name")
    columns = file.columns_of(texts, label)
    return file.task_of(
        _read_rows(table, "table", columns),
        None if dev is None else _read_rows(dev, "dev", columns),
        texts,
        label,
        kind,
        stem=name,
        source="python",
        remedy="Or give dev=.",
    )


def _read_rows(table: Any, name: str, columns: Sequence[str]) -> rows.Table:
    header = _header(table, name)
    keys = {str(key): key for key in header}  # pandas' columns may be numbers
    for column in columns:
        if column not in keys:
            raise unknown(f"column of {name}", column, keys)
        if (n := [str(key) for key in header].count(column)) > 1:
            raise RequestError(f"{name} has {n} columns {column!r}; rename all but one")
    cells = [_cells(table, keys[column], f"column {column!r} of {name}") for column in columns]
    lengths = [len(column) for column in cells]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{n} {column}" for n, column in zip(lengths, columns, strict=True))
        raise RequestError(f"{name} has columns of several lengths: {counts}")
    if not cells[0]:
        raise RequestError(f"{name} holds no rows; it needs at least one")
    numbered = enumerate(zip(*cells, strict=True), start=1)
    return rows.Table(name, "row", True, [rows.Row(number, row) for number, row in numbered])


def _header(table: Any, name: str) -> Sequence[Any]:
    if isinstance(table, Mapping):
        return list(table)
    for attribute in ("column_names", "columns"):  # a Dataset's, a DataFrame's
        if getattr(table, attribute, None) is not None and hasattr(table, "__getitem__"):
            return list(getattr(table, attribute))
    raise RequestError(
        f"{name} must be a DataFrame, a datasets.Dataset or columns by name, "
        f"got {reprlib.repr(table)}"
    )


def _cells(table: Any, key: Any, name: str) -> list[Any]:
    """The column as Python's own values, with the names of a data set's classes."""
    try:
        values: Any = table[key]
    except TypeError as error:  # as of a polars LazyFrame
        raise RequestError(f"{name} can't be read: {one_line(error)}") from error
    if not is_column(values):
        raise RequestError(f"{name} must hold a value a row, got {reprlib.repr(values)}")
    if hasattr(values, "where") and hasattr(values, "notna"):
        values = values.astype(object).where(values.notna(), None)  # pandas has several for it
    cells = [_unwrap(value, name) for value in values]
    feature = (getattr(table, "features", None) or {}).get(key)
    names = getattr(feature, "names", None)
    if names is None:
        return cells
    return [names[cell] if isinstance(cell, int) and cell >= 0 else None for cell in cells]


def _unwrap(value: Any, name: str) -> Any:
    """Python's own value of a cell of numpy, torch, pandas or Arrow."""
    if type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return None
    if hasattr(value, "as_py"):
        return value.as_py()
    is_scalar = not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0
    if hasattr(value, "item") and not is_scalar:  # an array, a Series
        raise RequestError(f"{name} must hold one value a row, got {reprlib.repr(value)}")
    is_date = getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")
    # the item of a date would be its nanoseconds
    return value.item() if hasattr(value, "item") and not is_date else value
