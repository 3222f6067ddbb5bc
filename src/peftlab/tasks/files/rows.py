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
    """A requested column is missing."""


class Row(NamedTuple):
    number: int  # of the line it starts on (Parquet: of the row), counted from 1
    cells: tuple[Any, ...]  # in the order of the requested columns


@dataclass(frozen=True)
class Table:
    """The requested columns of one file, or of the files of one split.

    Attributes:
        name: the table's name in errors: the file's path.
        unit: what `Row.number` counts: "line", or "row" for Parquet.
        typed: whether cells keep the file's types; in CSV and TSV all are text.
        rows: in the order of the file.
    """

    name: str
    unit: str
    typed: bool
    rows: list[Row]

    def error(self, row: Row, problem: str) -> RequestError:
        """An error that names the row's place: "reviews.csv, line 7: ..."."""
        return RequestError(f"{self.name}, {self.unit} {row.number}: {problem}")


def read(path: Path, columns: Sequence[str]) -> Table:
    """Read `columns` of the file at `path`, whose suffix tells its format.

    Raises:
        RequestError: no such file, another suffix, not UTF-8, a missing column, a malformed row, or
            no row at all.
    """
    return _read_table(path, _read_content(path), columns)


def read_split(name: str, paths: Sequence[Path], columns: Sequence[str]) -> Table:
    """Read `columns` of Parquet files that are one split of a data set, `name` in errors.

    Integers that stand for names of classes by the files' own metadata become these names.

    Raises:
        RequestError: a file is not Parquet or has no such column; or no row at all.
    """
    cells = [row.cells for path in paths for row in _parquet(path, read_bytes(path), columns, True)]
    numbered = [Row(number, row) for number, row in enumerate(cells, start=1)]
    return _check_rows(Table(name, "row", True, numbered))


class Whole(NamedTuple):
    """A file's requested columns, each row's cells of all columns by name, and Parquet's table."""

    table: Table
    records: list[dict[str, Any]]
    arrow: Any = None


def read_whole(path: Path, columns: Sequence[str]) -> Whole:
    """As `read`, with all columns. The file is read once."""
    content = _read_content(path)
    table = _read_table(path, content, columns)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        arrow = _arrow(path, content, None)
        cells = {name: _values_or_texts(arrow.column(name)) for name in arrow.column_names}
        records = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        return Whole(table, records, arrow)
    text = decode(path, content)
    if suffix in {".jsonl", ".json"}:
        return Whole(table, [json.loads(line) for line in lines(text) if line.strip()])
    (_, header), *rest = _csv_records(path, text) if suffix == ".csv" else _tsv_records(text)
    positions(path, header, header)
    return Whole(table, [dict(zip(header, cells, strict=True)) for _, cells in rest])


def _read_content(path: Path) -> bytes:
    if path.suffix.lower() not in READERS:
        allowed = ", ".join(READERS)
        problem = f"ends in {path.suffix.lower()!r}" if path.suffix else "has no suffix"
        raise RequestError(f"{path} {problem}; a data file ends in one of {allowed}.")
    return read_bytes(path)


def _read_table(path: Path, content: bytes, columns: Sequence[str]) -> Table:
    reader, unit = READERS[path.suffix.lower()]
    typed = reader in (_jsonl, _parquet)
    return _check_rows(Table(str(path), unit, typed, list(reader(path, content, columns))))


def _check_rows(table: Table) -> Table:
    """The table; raises RequestError if it has no row."""
    if not table.rows:
        raise RequestError(f"{table.name} holds no rows; a data file needs at least one.")
    return table


def read_bytes(path: Path) -> bytes:
    """The file's bytes; raises RequestError if it does not exist or can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a character that no path can hold
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{path} can't be read: {reason}") from None


def read_text(path: Path) -> str:
    """The file's text, UTF-8 with or without a byte-order mark; RequestError if it is not."""
    return decode(path, read_bytes(path))


def decode(path: Path, content: bytes) -> str:
    """As `read_text`, for the content of a file that was read already."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "; it looks like UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        problem = f"not UTF-8 (byte 0x{content[error.start]:02x}){guess}"
        raise RequestError(f"{path}, line {line}: {problem}. Save the file as UTF-8.") from None


def lines(text: str) -> list[str]:
    r"""The lines, split at line feeds only: a sentence may hold Unicode's other line breaks.

    >>> lines("one\u2028still one\r\ntwo\n")
    ['one\u2028still one', 'two']
    """
    parts = [line.removesuffix("\r") for line in text.split("\n")]
    return parts[:-1] if parts[-1] == "" else parts


def tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields. Nothing is quoted: a `"` is a character like any other."""
    for number, line in enumerate(lines(text), start=1):
        yield number, line.split("\t")


def positions(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The indices of `columns` in `header`; raises RequestError for a missing or repeated one.

    A missing name stands for the one of `header` that differs only in blanks around it.
    """
    names = [_match_blanks(column, header) for column in columns]
    for name in names:
        if name not in header:
            raise _no_column(path, name, header)
        if header.count(name) > 1:
            raise RequestError(
                f"{path} has {header.count(name)} columns {name!r}; rename all but one."
            )
        if len(set(names)) < len(set(columns)) and names.count(name) > 1:
            raise RequestError(f"{path}: {name!r} is asked for twice, but for blanks around it.")
    return [header.index(name) for name in names]


def _match_blanks(name: str, header: Sequence[str]) -> str:
    """`name`, or the only column of `header` that differs from it in blanks around it alone."""
    alike = [column for column in header if column.strip() == name.strip()]
    return alike[0] if name not in header and len(alike) == 1 else name


def malformed(path: Path, number: int, n_fields: int, n_expected: int) -> RequestError:
    """The error for a row with too few or too many fields."""
    fields = "1 field" if n_fields == 1 else f"{n_fields} fields"
    return RequestError(
        f"{path}, line {number}: malformed row, {fields} where {n_expected} are expected."
    )


def _no_column(path: Path, name: str, header: Sequence[str]) -> NoColumn:
    hint = f"({path})"
    if any("," in column for column in header):
        hint = f"({path}; in --text, a name with a comma stands in double quotes)"
    if len(header) == 1:
        for separator, separators, suffix in (
            (";", "semicolons", ".csv"),
            ("\t", "tabs", ".tsv"),
            (",", "commas", ".csv"),
        ):
            if separator in header[0]:
                hint = (
                    f"({path} seems to be separated by {separators}: let its name end in {suffix})"
                )
    return NoColumn(unknown("column", name, header, hint))


def _select(
    path: Path, records: Iterator[tuple[int, list[str]]], columns: Sequence[str]
) -> Iterator[Row]:
    _, header = next(records, (1, []))
    if not header:
        raise RequestError(f"{path} is empty; its first line must name the columns.")
    indices = positions(path, header, columns)
    for number, fields in records:
        if len(fields) != len(header):
            raise malformed(path, number, len(fields), len(header))
        yield Row(number, tuple(fields[i] for i in indices))


def _tsv(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    return _select(path, _tsv_records(decode(path, content)), columns)


def _tsv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The number and fields of each line that is not blank, as in the other formats."""
    return (record for record in tab_separated(text) if record[1] != [""])


def _csv(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    return _select(path, _csv_records(path, decode(path, content)), columns)


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    declaration = _SEPARATOR.match(text)
    delimiter = declaration[1] if declaration else _guess_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if declaration:
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


def _guess_delimiter(text: str) -> str:
    """A comma; a semicolon if the header has more of them, as Excel writes in many countries."""
    header = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return ";" if header.count(";") > header.count(",") else ","


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB per field, which it keeps for the whole process."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _jsonl(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines(decode(path, content)), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except JSON_ERRORS as error:
            raise _not_jsonl(path, number, f"not JSON ({_json_problem(error)})") from None
        if not isinstance(record, dict):
            raise _not_jsonl(path, number, f"a JSON {type(record).__name__}, not an object")
        keys = [name if name in record else _match_blanks(name, list(record)) for name in columns]
        for name in keys:
            if name not in record:
                raise _no_column(Path(f"{path}, line {number}"), name, list(record))
        yield Row(number, tuple(record[name] for name in keys))


def _json_problem(error: Exception) -> str:
    """What is wrong and where in the line; the error's own text would count lines within it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def _not_jsonl(path: Path, number: int, problem: str) -> RequestError:
    example = '{"text": "...", "label": "..."}'
    text = f"{path}, line {number}: {problem}. Each line must be one JSON object: {example}"
    return RequestError(text)


def _parquet(
    path: Path, content: bytes, columns: Sequence[str], name_classes: bool = False
) -> Iterator[Row]:
    table = _arrow(path, content, columns)
    with _parquet_refusals(path):
        cells = {name: table.column(name).to_pylist() for name in table.column_names}
    cells = _classes(cells, table.schema.metadata, name_classes)
    for number, row in enumerate(zip(*cells.values(), strict=True), start=1):
        yield Row(number, row)


def _arrow(path: Path, content: bytes, columns: Sequence[str] | None) -> Any:
    """The Arrow table of `columns`, or of all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _parquet_refusals(path), pq.ParquetFile(pa.BufferReader(content)) as file:
        header = file.schema_arrow.names
        indices = positions(path, header, header if columns is None else columns)
        # a thread that Arrow has just started aborts a process that ends at once
        return file.read(columns=[header[index] for index in indices], use_threads=False)


def _values_or_texts(column: Any) -> list[Any]:
    """The cells; as texts if Python has no such date, or without pandas no nanoseconds."""
    import pyarrow as pa

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError):
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


@contextmanager
def _parquet_refusals(path: Path) -> Iterator[None]:
    """Turn Arrow's errors into a `RequestError`; OverflowError: a cell that Python can't hold."""
    import pyarrow as pa

    try:
        yield
    except RequestError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise RequestError(f"{path} can't be read as Parquet: {error}") from None


def _classes(
    cells: dict[str, list[Any]], metadata: dict[bytes, bytes] | None, as_names: bool
) -> dict[str, list[Any]]:
    """The cells with None for a ClassLabel's integer without a name; `as_names`: the names.

    The library `datasets` writes such columns, and -1 for a hidden answer.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = {name: features[name].get("names") for name in cells if name in features}
    except (*JSON_ERRORS, LookupError, TypeError, AttributeError):
        return cells
    return {
        column: [_class(cell, names[column], as_names) for cell in values]
        if isinstance(names.get(column), list)
        else values
        for column, values in cells.items()
    }


def _class(code: Any, names: list[Any], as_name: bool) -> Any:
    has_name = isinstance(code, int) and 0 <= code < len(names)
    if not has_name:
        return None
    return str(names[code]) if as_name else code


Reader = Callable[[Path, bytes, Sequence[str]], Iterator[Row]]

READERS: dict[str, tuple[Reader, str]] = {
    ".csv": (_csv, "line"),
    ".tsv": (_tsv, "line"),
    ".jsonl": (_jsonl, "line"),
    ".json": (_jsonl, "line"),
    ".parquet": (_parquet, "row"),
}
