"""Write a user's file again with columns added, as `peftlab predict` does."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.atomic import replace_file
from peftlab.errors import SHORT_REPR, RequestError, system_refusals
from peftlab.labels import check_encodable
from peftlab.tasks.files import file, rows


@dataclass(frozen=True)
class Sheet:
    """The content of a file, which is read only once: it may be a pipe, or change meanwhile.

    Attributes:
        path: the file.
        texts: the one or two texts of each row.
        records: each row with all of its columns by name.
        typed: whether cells have types; in CSV and TSV all is text.
        arrow: of Parquet its Arrow table, whose types Python has not all.
    """

    path: Path
    texts: list[tuple[str, ...]]
    records: list[dict[str, Any]]
    typed: bool
    arrow: Any = None

    def check_fits(self, out: Path, classes: Sequence[str] = ()) -> None:
        """Raise `RequestError` if a cell, or a class's name, can't be written in `out`'s format."""
        header, suffix = _header(self.records), out.suffix.lower()
        self._check_encodable()
        if suffix == ".tsv":
            _tsv_lines(self.path, [*header, *classes], self.records)
        if suffix == ".parquet":
            with _format_refusals(self.path, suffix):  # some are known only in writing
                _parquet(io.BytesIO(), self, [])

    def _check_encodable(self) -> None:
        if self.arrow is not None or not self.typed:  # only JSON can spell half a character
            return
        for number, record in enumerate(self.records, start=1):
            try:
                check_encodable(_json(record))
            except ValueError as error:
                raise RequestError(f"{self.path}, row {number}: {error}") from None

    def check_new(self, columns: Sequence[str]) -> None:
        """Raise `RequestError` if the file has one of `columns`, which are to be added, already."""
        taken = [name for name in _header(self.records) if name in columns]
        if taken:
            raise RequestError(f"{self.path} has a column {taken[0]!r} already; rename it first")


def read_sheet(path: Path, columns: Sequence[str]) -> Sheet:
    """Read a file whose texts are in `columns`.

    Raises:
        RequestError: the file, a column or a row is not as it must be, with its line.
    """
    if not 1 <= len(columns) <= 2:
        raise RequestError(f"one or two text columns are needed, got {len(columns)}")
    table, records, arrow = rows.read_whole(path, columns)
    return Sheet(path, file.texts(table), records, table.typed, arrow)


def check_out(out: Path, given: Path) -> None:
    """Raise `RequestError` unless `out` has a known suffix, can be written and is not `given`."""
    with system_refusals(f"{out} can't be written"):
        if out.exists() and given.exists() and out.samefile(given):
            raise RequestError(f"{out} is the file to answer; give --out another name")
    if out.suffix.lower() not in WRITERS:
        raise RequestError(f"{out} must end in one of {', '.join(WRITERS)}")
    parent = out.absolute().parent
    with system_refusals(f"{out} can't be written"):
        is_folder, has_folder = out.is_dir(), parent.is_dir()
    if not has_folder:
        raise RequestError(f"{out} can't be written: {out.parent} is no folder")
    if is_folder:
        raise RequestError(f"{out} can't be written: it is a folder")
    # permissions alone don't tell whether the folder can be written to: try it
    with system_refusals(f"{out} can't be written"), tempfile.TemporaryFile(dir=parent):
        pass


def answer_file(sheet: Sheet, out: Path, extra: Sequence[dict[str, Any]]) -> None:
    """Write the sheet's rows to `out`, each with its columns of `extra`; whole or not at all.

    Raises:
        RequestError: the file has one of the columns already, or `out` can't be written.
    """
    sheet.check_new(list(extra[0]))
    write = WRITERS[out.suffix.lower()]
    with (
        system_refusals(f"{out} can't be written"),
        _format_refusals(sheet.path, out.suffix),
    ):
        replace_file(out, lambda path: write(path, sheet, extra))


@contextmanager
def _format_refusals(path: Path, suffix: str) -> Iterator[None]:
    """Turn Arrow's errors, such as on mixed types or too large numbers, into a `RequestError`."""
    import pyarrow as pa

    try:
        yield
    except RequestError:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"{path} has cells that {suffix} can't hold ({error}); write another format"
        ) from error


Extra = Sequence[dict[str, Any]]  # the columns that are added, by row


def _csv(path: Path, sheet: Sheet, extra: Extra) -> None:
    header, records = _joined(sheet, extra)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([_cell(record.get(name)) for name in header] for record in records)


def _tsv(path: Path, sheet: Sheet, extra: Extra) -> None:
    lines = _tsv_lines(sheet.path, *_joined(sheet, extra))
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def _tsv_lines(path: Path, header: list[str], records: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of a TSV file, line by line, the header first; `path` is the file given."""
    lines = [header, *([_cell(record.get(name)) for name in header] for record in records)]
    for number, line in enumerate(lines):
        where = f"row {number}" if number else "the header"
        for cell in line:
            if set("\t\n\r") & set(cell):
                raise RequestError(
                    f"{path}, {where}: a TSV cell can't hold a tab or a line break, as in "
                    f"{SHORT_REPR.repr(cell)}; write .csv, .jsonl or .parquet"
                )
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return _json(value)
    if isinstance(value, bool):
        return str(value).lower()  # as JSON and class names have it
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else str(value)


def _jsonl(path: Path, sheet: Sheet, extra: Extra) -> None:
    lines = [_json(record) + "\n" for record in _joined(sheet, extra)[1]]
    path.write_text("".join(lines), encoding="utf-8")


def _json(value: Any) -> str:
    """`value` as JSON, in which dates and other types of Parquet that JSON lacks are texts."""
    return json.dumps(_finite(value), ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with None in the place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(cell) for name, cell in value.items()}
    if isinstance(value, list | tuple):  # Arrow's maps are pairs
        return [_finite(cell) for cell in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(path: Path | io.BytesIO, sheet: Sheet, extra: Extra) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_table(sheet, extra), path)


def _table(sheet: Sheet, extra: Extra) -> Any:
    """As Arrow's table; the columns of a Parquet file keep their types."""
    import pyarrow as pa

    if sheet.arrow is None:
        header, records = _joined(sheet, extra)
        return pa.table({name: [record.get(name) for record in records] for name in header})
    table = sheet.arrow.replace_schema_metadata(None)  # libraries' notes on the old columns
    for name in extra[0] if extra else ():
        table = table.append_column(name, pa.array([columns[name] for columns in extra]))
    return table


def _joined(sheet: Sheet, extra: Extra) -> tuple[list[str], list[dict[str, Any]]]:
    """All columns, and the rows with those that are added."""
    if not extra:
        return _header(sheet.records), sheet.records
    records = [record | columns for record, columns in zip(sheet.records, extra, strict=True)]
    return [*_header(sheet.records), *extra[0]], records


def _header(records: list[dict[str, Any]]) -> list[str]:
    """The columns of all rows: in JSON Lines they may differ from row to row."""
    return list(dict.fromkeys(name for record in records for name in record))


WRITERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _jsonl, ".parquet": _parquet}
