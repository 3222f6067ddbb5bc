"""A user's own file as a task: CSV, TSV, JSONL or Parquet, a label column, one or two text columns.

Text, true/false and whole numbers of at most `MAX_CLASSES` different values are classes; other
numbers are a regression; `kind` overrides. 1.0 counts as whole, since pandas writes integers so if
a cell of the column is missing. Classes are named and ordered by their value: numbers by size, text
by its characters. In CSV and TSV, where all is text, a column is of numbers if every cell is one;
classes of which one is written with a leading zero, 007, are codes and keep their spelling. CSV is
quoted (RFC 4180); TSV is not: a `"` is a character there.
"""

from __future__ import annotations

import decimal
import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import RequestError
from peftlab.labels import AnyKind, Kind, LabelType, check_encodable
from peftlab.naming import named
from peftlab.tasks import split
from peftlab.tasks.base import Examples, Task
from peftlab.tasks.files import rows

MAX_CLASSES = 20
MAX_DIGITS = 4000  # Python converts no more than 4,300 to a whole number
MAX_LABEL = 1e37  # of a regression: the head answers in fp32, which ends at 3e38

_INT = re.compile(r"[+-]?\d+", re.ASCII)
_CODE = re.compile(r"0\d+", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_FLOAT = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.I)


def load(
    path: Path,
    text: Sequence[str],
    label: str,
    dev: Path | None = None,
    kind: AnyKind = "auto",
) -> Task:
    """Make a task of the file at `path`: its columns `text` (one, or a pair) and `label`.

    Without `dev`, a file with the same columns, a fifth is kept apart (see split.py). The task is
    named after the file, in lower case and with hyphens for anything but letters and digits.

    Raises:
        RequestError: a file, column or row is not as it must be, with its line; a label in `dev`
            that `path` lacks; fewer than two classes or, for a regression, values.
    """
    columns = columns_of(text, label)
    table = rows.read(path, columns)
    return task_of(
        table,
        rows.read(dev, columns) if dev else None,
        text,
        label,
        kind,
        stem=path.stem,
        source=f"file {path.name}" + (f", dev file {dev.name}" if dev else ""),
        remedy="Or give --dev FILE.",
    )


def task_of(
    table: rows.Table,
    dev: rows.Table | None,
    text: Sequence[str],
    label: str,
    kind: AnyKind,
    *,
    stem: str,
    source: str,
    licence: str | None = None,
    remedy: str = "",
) -> Task:
    """Make a task of rows that were read with `columns_of`; see `load`.

    `stem` gives the task's name; `remedy` ends the error if no fifth can be kept apart.
    """
    type_ = _column_type(table)
    if type_ == "int" and kind != "regression" and _has_codes(table):
        type_ = "str"
    task_kind = _choose_kind(table, type_, kind)
    names = _class_names(table, type_) if task_kind == "classes" else ()
    train = _examples(table, type_, names)
    if len(set(train.labels)) < 2:
        raise RequestError(
            f"{table.name}: every row has the same label in {label!r}: there is nothing to learn."
        )
    if dev is not None:
        dev_examples = _examples(dev, type_, names)
    else:
        try:
            train, dev_examples = split.divide(train, names)
        except RequestError as error:
            raise RequestError(f"{table.name}: {error} {remedy}".strip()) from None
    return Task(
        name=named(stem)[:40].strip("-"),
        kind=task_kind,
        metrics=("accuracy", "f1") if task_kind == "classes" else ("pearson", "spearman"),
        train=train,
        dev=dev_examples,
        labels=names,
        label_type=type_ if names else "str",
        source=source,
        columns=tuple(text),
        notes=(
            *(_notes_on_kind(table, label, names, type_) if kind == "auto" else ()),
            *_notes_on_alike_names(names),
        ),
        dev_notes=(
            *_notes_on_repeated_texts(dev_examples),
            *_notes_on_shared_texts(train, dev_examples),
        ),
        licence=licence,
    )


def _notes_on_kind(
    table: rows.Table, label: str, names: tuple[str, ...], type_: LabelType
) -> tuple[str, ...]:
    """How whole numbers were taken, which may be wrong: 1 to 5 may be stars, 1 to 40 intents."""
    if type_ == "str" and all(map(_INT.fullmatch, names)):
        if table.typed:
            return (f"{label} holds numbers as text, taken as names of classes",)
        codes = f"{label} holds numbers with zeros in front, taken as names of classes"
        return (f"{codes}; --kind regression asks for numbers",)
    if type_ != "int" or 0 < len(names) < 3:
        return ()
    values = sorted({int(_class_name(row.cells[-1], "int") or 0) for row in table.rows})
    meaning = "classes; --kind regression asks for numbers"
    if not names:
        meaning = "numbers; --kind classes asks for classes"
    first, last = (reprlib.repr(values[end]) for end in (0, -1))  # it may have 300 digits
    span = f"{len(values)} whole numbers from {first} to {last}"
    return (f"{label} holds {span}, taken as {meaning}",)


def _notes_on_alike_names(names: Sequence[str]) -> tuple[str, ...]:
    """One note for each name that several classes share but for case and blanks."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(" ".join(name.casefold().split()), []).append(name)
    return tuple(
        f"{', '.join(map(repr, alike))} are {len(alike)} classes: names differ in case or blanks "
        "only"
        for alike in spellings.values()
        if len(alike) > 1
    )


def _notes_on_repeated_texts(dev: Examples) -> tuple[str, ...]:
    n = len(set(split.group_indices(dev.texts)))
    if n == len(dev):
        return ()
    return (f"dev has {n:,} different texts in {len(dev):,} rows: intervals count each text once",)


def _notes_on_shared_texts(train: Examples, dev: Examples) -> tuple[str, ...]:
    n = split.n_in_both(train, dev)
    if not n:
        return ()
    return (
        f"{n:,} of {len(dev):,} texts of dev are in train too, but for case, blanks and the order "
        "of a pair: scores are too good by what that teaches",
    )


def columns_of(text: Sequence[str], label: str) -> list[str]:
    """The columns to read, the label last; RequestError for too many, or one named twice."""
    columns = [*text, label]
    if not 1 <= len(text) <= 2:
        raise RequestError(f"one or two text columns are needed, got {len(text)}: {list(text)}.")
    if len(set(columns)) < len(columns):
        raise RequestError(f"the text and label columns must differ, got {', '.join(columns)}.")
    return columns


def _has_codes(table: rows.Table) -> bool:
    """Whether the whole numbers of a file without types are codes, some with leading zeros.

    They are if most have leading zeros, or all have one width, or at most `MAX_CLASSES` differ.
    """
    cells = [str(row.cells[-1]).strip() for row in table.rows]
    n_codes = sum(_CODE.fullmatch(cell) is not None for cell in cells)
    if table.typed or not n_codes:
        return False
    are_few = len(set(cells)) <= MAX_CLASSES
    return are_few or 2 * n_codes > len(cells) or len(set(map(len, cells))) == 1


def _column_type(table: rows.Table) -> LabelType:
    """The one type of all labels; raises RequestError for an empty label or mixed types."""
    types: set[LabelType] = set()
    for row in table.rows:
        types.add(_label_type(table, row))
        if table.typed and len(types) > 1 and not types <= {"int", "float"}:
            first = table.rows[0]
            earlier = f"{_quote(first.cells[-1])} in {table.unit} {first.number}"
            problem = f"found {_quote(row.cells[-1])} after {earlier}"
            raise table.error(row, f"labels must be of one type, {problem}.")
    if types and types <= {"int", "float"}:
        return "int" if all(_is_whole(row.cells[-1]) for row in table.rows) else "float"
    return types.pop() if len(types) == 1 else "str"


def _label_type(table: rows.Table, row: rows.Row) -> LabelType:
    """The type of one row's label; raises RequestError for a label that no task can have."""
    cell = row.cells[-1]
    if isinstance(cell, bool):
        return "bool"
    if isinstance(cell, int):
        return "int"
    if isinstance(cell, float | decimal.Decimal):
        if not math.isfinite(cell):
            raise table.error(row, f"a label must be a finite number, got {cell}.")
        return "float"
    if not isinstance(cell, str | None):
        allowed = "text, a number or true/false"
        raise table.error(
            row, f"a label must be {allowed}, got {type(cell).__name__}: {_quote(cell)}."
        )
    if cell is None or not cell.strip():
        raise table.error(row, "the label is empty. Fill it in or leave the row out.")
    _check_encodable(table, row, cell)
    if not table.typed and len(cell) > MAX_DIGITS and _INT.fullmatch(cell.strip()):
        raise table.error(
            row, f"a label of more than {MAX_DIGITS} digits is no number to work with."
        )
    return "str" if table.typed else _guess_type(cell.strip())


def _guess_type(cell: str) -> LabelType:
    """The type of a cell of a file without types.

    >>> [_guess_type(cell) for cell in ("-3", "2.5", "1e-3", "True", "1_000", "n/a")]
    ['int', 'float', 'float', 'bool', 'str', 'str']
    """
    if _INT.fullmatch(cell):
        return "int"
    if _FLOAT.fullmatch(cell):
        return "float"
    return "bool" if cell.lower() in {"true", "false"} else "str"


def _choose_kind(table: rows.Table, type_: LabelType, kind: AnyKind) -> Kind:
    if type_ == "str" and kind != "classes":
        _check_mistyped_numbers(table, kind)
    if type_ in {"bool", "str"}:
        if kind == "regression":
            row = table.rows[0]
            raise table.error(
                row, f"a regression needs numbers, got the label {_quote(row.cells[-1])}."
            )
        return "classes"
    if kind != "auto":
        return kind
    if type_ != "int":
        return "regression"
    values = {_class_name(row.cells[-1], "int") for row in table.rows}
    return "classes" if len(values) <= MAX_CLASSES else "regression"


def _check_mistyped_numbers(table: rows.Table, kind: str) -> None:
    """Refuse a column of numbers of which a mistyped one would make all of them text."""
    commas = [row for row in table.rows if _COMMA.fullmatch(str(row.cells[-1]).strip())]
    numbers = [number for row in table.rows if (number := _number(row.cells[-1])) is not None]
    n_rows = len(table.rows)
    if commas and (2 * len(commas) > n_rows or len(commas) + len(numbers) == n_rows):
        problem = f"the label {_quote(commas[0].cells[-1])} has a comma"
        raise table.error(
            commas[0],
            f"{problem}. Write numbers with a point (3.5) and thousands without a sign (1100), or "
            "say --kind classes.",
        )
    non_numbers = [row for row in table.rows if _number(row.cells[-1]) is None]
    n_fractions = sum(_guess_type(str(row.cells[-1]).strip()) == "float" for row in table.rows)
    is_scale = 2 * len(numbers) > n_rows and len(set(numbers)) > MAX_CLASSES
    if non_numbers and (kind == "regression" or 2 * n_fractions > n_rows or is_scale):
        row = non_numbers[0]
        problem = f"the label {_quote(row.cells[-1])} is not a number"
        raise table.error(row, f"{problem}. Mend it, or say --kind classes.")


def _class_names(table: rows.Table, type_: LabelType) -> tuple[str, ...]:
    """The classes' names in the order of their indices."""
    names: list[str] = []
    for row in table.rows:
        name = _class_name(row.cells[-1], type_)
        if name is None:
            raise table.error(row, f"the label {_quote(row.cells[-1])} names no class.")
        names.append(name)
    names = list(dict.fromkeys(names))
    if type_ == "float" and len(names) > MAX_CLASSES:
        raise RequestError(
            f"{table.name}: {len(names)} different numbers, some not whole, can't be classes "
            f"(at most {MAX_CLASSES}). Say --kind regression, or round them."
        )
    by_size = {"int": int, "float": float}
    return tuple(sorted(names, key=by_size.get(type_)))


def _class_name(cell: Any, type_: LabelType) -> str | None:
    """The name of the class of a label `cell` of `type_`; None if it names no class."""
    text = _as_text(cell).strip()
    if type_ == "str":
        return text
    if type_ == "bool":
        return text.lower() if text.lower() in {"true", "false"} else None
    if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
        return str(int(text))  # not by way of a float, which would round an identifier
    number = _number(cell)
    if number is None:
        return None
    return str(int(number)) if number == int(number) else repr(number)


def _is_whole(cell: Any) -> bool:
    number = _number(cell)
    return _INT.fullmatch(str(cell).strip()) is not None or (
        number is not None and number.is_integer()
    )


def _number(cell: Any) -> float | None:
    text = str(cell).strip()
    if not _FLOAT.fullmatch(text) or isinstance(cell, bool):
        return None
    return float(text) if math.isfinite(float(text)) else None


def _examples(table: rows.Table, type_: LabelType, names: tuple[str, ...]) -> Examples:
    """Every row's texts and label; raises RequestError for a label that train does not have."""
    index = {name: i for i, name in enumerate(names)}
    texts = [tuple(_text(table, row, cell) for cell in row.cells[:-1]) for row in table.rows]
    if not names:
        return Examples(texts, [_regression_label(table, row) for row in table.rows])
    labels = []
    for row in table.rows:
        _label_type(table, row)  # raises for a cell that is no label
        name = _class_name(row.cells[-1], type_)
        if name not in index:
            allowed = ", ".join(names[:MAX_CLASSES]) + (", ..." if names[MAX_CLASSES:] else "")
            problem = f"the label {_quote(row.cells[-1])} is not one of the train file's: {allowed}"
            raise table.error(row, f"{problem}.")
        labels.append(index[name])
    return Examples(texts, labels)


def _regression_label(table: rows.Table, row: rows.Row) -> float:
    _label_type(table, row)  # raises for a cell that is no label
    value = _number(row.cells[-1])
    if value is None:
        raise table.error(row, f"a label must be a finite number, got {_quote(row.cells[-1])}.")
    if abs(value) > MAX_LABEL:
        problem = f"a label must lie within ±{MAX_LABEL:g}, got {value:g}"
        raise table.error(row, f"{problem}; scale them.")
    return value


def texts(table: rows.Table) -> list[tuple[str, ...]]:
    """The texts of every row of a table that has no other columns."""
    return [tuple(_text(table, row, cell) for cell in row.cells) for row in table.rows]


def _text(table: rows.Table, row: rows.Row, cell: Any) -> str:
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
        raise table.error(row, "a text is empty. Fill it in or leave the row out.")
    if not isinstance(cell, str | int | float | decimal.Decimal):
        problem = f"a text column must hold text, got {type(cell).__name__}: {_quote(cell)}"
        raise table.error(row, f"{problem}.")
    text = _as_text(cell)
    _check_encodable(table, row, text)
    return text


def _as_text(cell: Any) -> str:
    """The cell as text; a member of an enumeration of texts by its value, not by its name."""
    return str.__str__(cell) if isinstance(cell, str) else str(cell)


def _check_encodable(table: rows.Table, row: rows.Row, text: str) -> None:
    try:
        check_encodable(text)
    except ValueError as error:
        raise table.error(row, f"{error}.") from None


def _quote(cell: Any) -> str:
    """The cell as an error quotes it: shortened, since a wrong column may hold whole texts."""
    return reprlib.repr(cell)
