"""Read rows from CSV, TSV, JSONL and Parquet, each with its line number for the errors.

Every reader raises RequestError for a file that is not what its name says, and names the line.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.errors import JSON_ERRORS, RequestError, unknown

_SEPARATOR = re.compile(r"sep=(.)(\r\n|\r|\n)", re.I)  # Excel's own first line


class NoColumn(RequestError):
    """A column that is asked for is not there."""


class Row(NamedTuple):
    number: int  # of the line it starts on (Parquet: of the row), counted from 1
    cells: tuple[Any, ...]  # in the order of the columns asked for


@dataclass(frozen=True)
class Table:
    """The columns asked for of one file, or of the files of one split.

    Attributes:
        name: what errors call it: the file's path.
        unit: what `Row.number` counts: "line", or "row" for Parquet.
        typed: True where cells keep the file's types, False where all are text (CSV, TSV).
        rows: in the order of the file.
    """

    name: str
    unit: str
    typed: bool
    rows: list[Row]

    def error(self, row: Row, problem: str) -> RequestError:
        """An error about one row, with its place: "reviews.csv, line 7: ..."."""
        return RequestError(f"{self.name}, {self.unit} {row.number}: {problem}")


def read(path: Path, columns: Sequence[str]) -> Table:
    """Read `columns` of the file at `path`, whose suffix says its format.

    Raises:
        RequestError: no such file, another suffix, not UTF-8, a column that is not there, a
            malformed row, or no row at all.
    """
    return _table(path, _content(path), columns)


def read_split(name: str, paths: Sequence[Path], columns: Sequence[str]) -> Table:
    """Read `columns` of Parquet files that are one split of a data set, `name` in errors.

    Integers that stand for names, as the files say themselves, become these names.

    Raises:
        RequestError: a file is not Parquet or has no such column; or no row at all.
    """
    cells = [row.cells for path in paths for row in _parquet(path, read_bytes(path), columns, True)]
    numbered = [Row(number, row) for number, row in enumerate(cells, start=1)]
    return _filled(Table(name, "row", True, numbered))


def read_whole(path: Path, columns: Sequence[str]) -> tuple[Table, list[dict[str, Any]]]:
    """As `read`, and each of its rows with all columns by name. The file is read once."""
    content = _content(path)
    table = _table(path, content, columns)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        cells = _arrow(path, content, None)
        return table, [
            dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)
        ]
    text = decoded(path, content)
    if suffix in {".jsonl", ".json"}:
        return table, [json.loads(line) for line in lines(text) if line.strip()]
    (_, header), *rest = _csv_records(path, text) if suffix == ".csv" else _tsv_records(text)
    positions(path, header, header)
    return table, [dict(zip(header, cells, strict=True)) for _, cells in rest]


def _content(path: Path) -> bytes:
    if path.suffix.lower() not in READERS:
        allowed = ", ".join(READERS)
        given = f"ends in {path.suffix.lower()!r}" if path.suffix else "has no suffix"
        raise RequestError(f"{path} {given}; a data file ends in one of {allowed}.")
    return read_bytes(path)


def _table(path: Path, content: bytes, columns: Sequence[str]) -> Table:
    reader, unit = READERS[path.suffix.lower()]
    typed = reader in (_jsonl, _parquet)
    return _filled(Table(str(path), unit, typed, list(reader(path, content, columns))))


def _filled(table: Table) -> Table:
    if not table.rows:
        raise RequestError(f"{table.name} holds no rows; a data file needs at least one.")
    return table


def read_bytes(path: Path) -> bytes:
    """The file's bytes; RequestError if there is no such file or it can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # a path may hold a character that none can
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{path} can't be read: {reason}") from None


def read_text(path: Path) -> str:
    """The file's text, UTF-8 with or without a byte-order mark; RequestError if it is neither."""
    return decoded(path, read_bytes(path))


def decoded(path: Path, content: bytes) -> str:
    """As `read_text`, of a file that was read."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        looks = "; it looks like UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        problem = f"not UTF-8 (byte 0x{content[error.start]:02x}){looks}"
        raise RequestError(f"{path}, line {line}: {problem}. Save the file as UTF-8.") from None


def lines(text: str) -> list[str]:
    r"""Split at line feeds only, so that a sentence may hold any other of Unicode's line breaks.

    >>> lines("one\u2028still one\r\ntwo\n")
    ['one\u2028still one', 'two']
    """
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if found[-1] == "" else found


def tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields. Nothing is quoted: a `"` is a character like any other."""
    for number, line in enumerate(lines(text), start=1):
        yield number, line.split("\t")


def positions(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where `columns` stand in `header`; RequestError for one that is missing or there twice.

    A name that is not there stands for the one that differs from it in blanks around it alone.
    """
    asked, columns = columns, [_near(name, header) for name in columns]
    for name in columns:
        if name not in header:
            raise _no_column(path, name, header)
        if header.count(name) > 1:
            raise RequestError(
                f"{path} has {header.count(name)} columns {name!r}; rename all but one."
            )
        if len(set(columns)) < len(set(asked)) and columns.count(name) > 1:
            raise RequestError(f"{path}: {name!r} is asked for twice, but for blanks around it.")
    return [header.index(name) for name in columns]


def _near(name: str, header: Sequence[str]) -> str:
    alike = [one for one in header if one.strip() == name.strip()]
    return alike[0] if name not in header and len(alike) == 1 else name


def malformed(path: Path, number: int, found: int, wanted: int) -> RequestError:
    """The error for a row with too few or too many fields."""
    fields = "1 field" if found == 1 else f"{found} fields"
    return RequestError(
        f"{path}, line {number}: malformed row, {fields} where {wanted} are expected."
    )


def _no_column(path: Path, name: str, header: Sequence[str]) -> NoColumn:
    hint = f"({path})"
    if len(header) == 1:
        for separator, called, suffix in (
            (";", "semicolons", ".csv"),
            ("\t", "tabs", ".tsv"),
            (",", "commas", ".csv"),
        ):
            if separator in header[0]:
                hint = f"({path} seems to be separated by {called}: let its name end in {suffix})"
    return NoColumn(unknown("column", name, header, hint))


def _picked(
    path: Path, records: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[Row]:
    _, header = next(records, (1, []))
    if not header:
        raise RequestError(f"{path} is empty; its first line must name the columns.")
    picked = positions(path, header, columns)
    for number, fields in records:
        if len(fields) != len(header):
            raise malformed(path, number, len(fields), len(header))
        yield Row(number, tuple(fields[i] for i in picked))


def _tsv(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    return _picked(path, _tsv_records(decoded(path, content)), columns)


def _tsv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """A blank line holds no example, as in the other formats."""
    return (record for record in tab_separated(text) if record[1] != [""])


def _csv(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    return _picked(path, _csv_records(path, decoded(path, content)), columns)


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    said = _SEPARATOR.match(text)
    delimiter = said[1] if said else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if said:
        next(reader)
    number = reader.line_num + 1
    with _long_fields():
        try:
            for fields in reader:
                if fields:  # a blank line holds no example
                    yield number, fields
                number = reader.line_num + 1
        except csv.Error as error:
            problem = f"malformed row starting here: {error}"
            hint = 'Quote a field that holds a comma or a line break, and write " inside it as "".'
            raise RequestError(f"{path}, line {number}: {problem}. {hint}") from None


def _delimiter(text: str) -> str:
    """A comma; a semicolon where the header has more of them, as Excel writes in many countries."""
    header = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return ";" if header.count(";") > header.count(",") else ","


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module refuses fields over 128 KiB, and keeps the limit for the whole process."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _jsonl(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines(decoded(path, content)), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except JSON_ERRORS as error:
            raise _not_jsonl(path, number, f"not JSON ({_why(error)})") from None
        if not isinstance(record, dict):
            raise _not_jsonl(path, number, f"a JSON {type(record).__name__}, not an object")
        found = [name if name in record else _near(name, list(record)) for name in columns]
        for name in found:
            if name not in record:
                raise _no_column(Path(f"{path}, line {number}"), name, list(record))
        yield Row(number, tuple(record[name] for name in found))


def _why(error: Exception) -> str:
    """What is wrong and where in the line: JSON's own words count lines within it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def _not_jsonl(path: Path, number: int, problem: str) -> RequestError:
    example = '{"text": "...", "label": "..."}'
    text = f"{path}, line {number}: {problem}. Each line must be one JSON object: {example}"
    return RequestError(text)


def _parquet(
    path: Path, content: bytes, columns: Sequence[str], named: bool = False
) -> Iterator[Row]:
    cells = _arrow(path, content, columns, named)
    for number, row in enumerate(zip(*cells.values(), strict=True), start=1):
        yield Row(number, row)


def _arrow(
    path: Path, content: bytes, columns: Sequence[str] | None, named: bool = False
) -> dict[str, list[Any]]:
    """The cells of the columns asked for, in their order, or of all; `named`: see `read_split`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            header = file.schema_arrow.names
            found = positions(path, header, header if columns is None else columns)
            names = [header[position] for position in found]
            # a thread that Arrow has just started aborts a process that ends at once
            table = file.read(columns=names, use_threads=False)
            cells = {name: table.column(name).to_pylist() for name in names}
            return _with_names(cells, file.schema_arrow.metadata) if named else cells
    except RequestError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # or a cell that Python can't hold
        raise RequestError(f"{path} can't be read as Parquet: {error}") from None


def _with_names(
    cells: dict[str, list[Any]], metadata: dict[bytes, bytes] | None
) -> dict[str, list[Any]]:
    """The cells with names in place of a ClassLabel's integers; None where it has no such name.

    The library `datasets` writes such columns, and -1 for an answer that is hidden.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = {name: features[name].get("names") for name in cells if name in features}
    except (*JSON_ERRORS, LookupError, TypeError, AttributeError):
        return cells
    return {
        column: [_class_name(cell, names[column]) for cell in found]
        if isinstance(names.get(column), list)
        else found
        for column, found in cells.items()
    }


def _class_name(cell: Any, names: list[Any]) -> str | None:
    known = isinstance(cell, int) and 0 <= cell < len(names)
    return str(names[cell]) if known else None


Reader = Callable[[Path, bytes, Sequence[str]], Iterator[Row]]

READERS: dict[str, tuple[Reader, str]] = {
    ".csv": (_csv, "line"),
    ".tsv": (_tsv, "line"),
    ".jsonl": (_jsonl, "line"),
    ".json": (_jsonl, "line"),
    ".parquet": (_parquet, "row"),
}
