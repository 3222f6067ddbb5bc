"""A user's file comes back with its own columns, in the format asked for, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.errors import RequestError
from peftlab.tasks import Sheet, answer_file, check_out, load_file, read_sheet

ROWS = [{"id": "1", "text": 'a "quoted", cat'}, {"id": "2", "text": "two\nlines"}]
EXTRA = [{"prediction": "cat", "score_cat": 0.75}, {"prediction": "dog", "score_cat": 0.25}]


@pytest.fixture(params=[".csv", ".jsonl", ".parquet"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"given{request.param}"
    if request.param == ".csv":
        path.write_text('id,text\n1,"a ""quoted"", cat"\n2,"two\nlines"\n')
    elif request.param == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def sheet(path: Path) -> Sheet:
    return read_sheet(path, ["text"])


def test_every_format_goes_into_every_other(given: Path, tmp_path: Path) -> None:
    assert sheet(given).texts == [(row["text"],) for row in ROWS]
    wanted = [row | extra for row, extra in zip(ROWS, EXTRA, strict=True)]
    answer_file(sheet(given), tmp_path / "out.jsonl", EXTRA)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == wanted
    answer_file(sheet(given), tmp_path / "out.parquet", EXTRA)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == wanted
    answer_file(sheet(given), tmp_path / "out.csv", EXTRA)
    assert read_sheet(tmp_path / "out.csv", ["text", "score_cat"]).texts == [
        (row["text"], str(row["score_cat"])) for row in wanted
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_of_json_may_have_other_columns(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "left": 1}, {"text": "b", "right": 2}]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"out{suffix}"
    answer_file(sheet(tmp_path / "given.jsonl"), out, EXTRA)
    found = sheet(out).records
    assert list(found[0]) == ["text", "left", "right", "prediction", "score_cat"]
    assert [str(row["right"] or "") for row in found] == ["", "2"]


def test_tsv_refuses_what_it_can_not_hold_and_leaves_the_old_file(
    given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("old")
    with pytest.raises(RequestError, match="can't hold a tab or a line break"):
        answer_file(sheet(given), out, EXTRA)
    assert out.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {given.name, "out.tsv"}


def test_a_column_that_is_there_already_is_not_overwritten(given: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has a column 'text' already"):
        answer_file(sheet(given), tmp_path / "out.csv", [{"text": "a"}, {"text": "b"}])


def test_the_file_itself_is_not_written_over(given: Path) -> None:
    before = given.read_bytes()
    for same in (given, given.parent / ".." / given.parent.name / given.name):
        with pytest.raises(RequestError, match="is the file to answer; give --out another name"):
            check_out(same, given)
    assert given.read_bytes() == before
    check_out(given, given.with_name("missing.csv"))


@pytest.mark.parametrize(
    ("name", "message"), [("a.xls", "must end in one of"), ("no/a.csv", "no is no folder")]
)
def test_where_nothing_can_be_written_is_said_first(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        check_out(Path(name), Path("given.csv"))


def test_three_text_columns_are_too_many(given: Path) -> None:
    with pytest.raises(RequestError, match="one or two text columns are needed, got 3"):
        read_sheet(given, ["id", "text", "id"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_is_read_once_so_it_may_be_a_pipe(suffix: str, tmp_path: Path) -> None:
    plain, pipe = tmp_path / f"plain{suffix}", tmp_path / f"pipe{suffix}"
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    answer_file(sheet(tmp_path / "rows.parquet"), plain, [{"more": 1}, {"more": 2}])
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(plain.read_bytes()), daemon=True)
    writer.start()
    answer_file(sheet(pipe), tmp_path / "out.jsonl", EXTRA)
    writer.join(timeout=5)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["text"], row["prediction"]) for row in written] == [
        (row["text"], extra["prediction"]) for row, extra in zip(ROWS, EXTRA, strict=True)
    ]


def test_the_rows_answered_are_the_rows_written(given: Path, tmp_path: Path) -> None:
    seen = sheet(given)
    given.write_text("another file altogether")
    answer_file(seen, tmp_path / "out.jsonl", EXTRA)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in written] == [text for (text,) in seen.texts]


def test_numbers_too_large_for_the_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "given.jsonl").write_text('{"text": "a", "n": 1' + "0" * 40 + "}\n")
    with pytest.raises(RequestError, match=r"has cells that \.parquet can't hold"):
        answer_file(sheet(tmp_path / "given.jsonl"), tmp_path / "out.parquet", EXTRA[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["given.jsonl"]


def test_a_cell_that_the_format_can_t_hold_is_found_before_anything_is_answered(
    tmp_path: Path,
) -> None:
    (tmp_path / "given.csv").write_text('id,text\n1,"two\nlines"\n')
    found = sheet(tmp_path / "given.csv")
    found.check_fits(tmp_path / "out.csv")
    message = r"given\.csv, row 1: a TSV cell can't hold a tab or a line break, as in 'two\\nlines'"
    with pytest.raises(RequestError, match=message):
        found.check_fits(tmp_path / "out.tsv")


def test_a_long_cell_is_not_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text(f'id,text\n1,"{500 * "word "}\n"\n')
    with pytest.raises(RequestError, match=r"write \.csv, \.jsonl or \.parquet") as refused:
        sheet(tmp_path / "given.csv").check_fits(tmp_path / "out.tsv")
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("cells", [[1, "one"], [{}, {}]])  # the second is known only in writing
def test_what_parquet_can_not_hold_is_told_before_all_is_answered(
    cells: list[object], tmp_path: Path
) -> None:
    rows = [{"text": "a", "n": cells[0]}, {"text": "b", "n": cells[1]}]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match=r"cells that \.parquet can't hold"):
        sheet(tmp_path / "given.jsonl").check_fits(tmp_path / "out.parquet")


def test_a_class_that_a_tsv_can_not_hold_is_told_before_all_is_answered(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("id,text\n1,two\n")
    with pytest.raises(RequestError, match=r"the header: a TSV cell can't .*'a\\tb'"):
        sheet(tmp_path / "given.csv").check_fits(tmp_path / "out.tsv", ["a\tb"])


def test_cells_that_another_format_has_not_are_json_in_text_and_null_for_no_number(
    tmp_path: Path,
) -> None:
    given = tmp_path / "given.parquet"
    of = {"b": [1.0, math.nan]}
    rows = [{"text": "a", "of": of, "n": math.nan}, {"text": "c", "of": None, "n": 2.0}]
    pairs = pa.array([[("k", math.nan)], []], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows).append_column("map", pairs), given)
    answer_file(sheet(given), tmp_path / "out.csv", EXTRA)
    assert [row["of"] for row in sheet(tmp_path / "out.csv").records] == ['{"b": [1.0, null]}', ""]
    assert [row["map"] for row in sheet(tmp_path / "out.csv").records] == ['[["k", null]]', "[]"]
    assert [row["n"] for row in sheet(tmp_path / "out.csv").records] == ["", "2.0"]
    answer_file(sheet(given), tmp_path / "out.jsonl", EXTRA)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["n"] for line in lines] == [None, 2]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_s_name_may_have_blanks_around_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"given{suffix}"
    rows = [{"text ": "a", " label": "x"}, {"text ": "b", " label": "y"}] * 3
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("text , label\n" + "".join("{text },{ label}\n".format(**r) for r in rows))
    assert sheet(path).texts[:2] == [("a",), ("b",)]
    assert load_file(path, ["text"], "label", dev=path).labels == ("x", "y")


def test_parquet_s_columns_keep_their_types_in_parquet(tmp_path: Path) -> None:
    """Nanoseconds were cut to microseconds, and an unsigned hash was refused."""
    columns = {
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "at": pa.array([1577836800000000123, 1], pa.timestamp("ns")),
        "id": pa.array([2**63 + 5, 1], pa.uint64()),
        "small": pa.array([1, 2], pa.int8()),
        "pairs": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "given.parquet")
    given = sheet(tmp_path / "given.parquet")
    given.check_fits(tmp_path / "out.parquet")
    answer_file(given, tmp_path / "out.parquet", EXTRA)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == [*columns, *EXTRA[0]]
    assert found.select(list(columns)).cast(pa.table(columns).schema).equals(pa.table(columns))
    assert found.schema.field("id").type == pa.uint64()
    assert found["at"].cast(pa.int64()).to_pylist() == [1577836800000000123, 1]


def test_a_date_that_python_can_not_hold_is_a_text(tmp_path: Path) -> None:
    """In a column that nobody asked for it ended `predict`."""
    far = pa.array([2**63 - 1, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "at": far}), tmp_path / "far.parquet")
    given = sheet(tmp_path / "far.parquet")
    assert [row["at"] for row in given.records][1].startswith("1970-01-01")
    answer_file(given, tmp_path / "out.parquet", EXTRA)
    assert pq.read_table(tmp_path / "out.parquet")["at"].type == pa.timestamp("us")
    with pytest.raises(RequestError, match=r"far\.parquet can't be read as Parquet"):
        load_file(tmp_path / "far.parquet", ["text"], "at")  # a label is never made a text


def test_what_no_format_can_hold_is_said_before_a_model_answers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "raw": "\\ud83d"}\n')
    with pytest.raises(RequestError, match=r"a\.jsonl, row 2: .*half a surrogate pair"):
        sheet(tmp_path / "a.jsonl").check_fits(tmp_path / "out.jsonl")
    (tmp_path / "b.csv").write_text('text\n"a\rb"\n')
    with pytest.raises(RequestError, match="a TSV cell can't hold a tab or a line break"):
        sheet(tmp_path / "b.csv").check_fits(tmp_path / "out.tsv")


def test_a_data_set_s_notes_on_its_old_columns_are_left_out(tmp_path: Path) -> None:
    """With them `datasets` refuses to read the file: they lack the columns that were added."""
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "given.parquet")
    answer_file(sheet(tmp_path / "given.parquet"), tmp_path / "out.parquet", EXTRA)
    again = Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again.column_names == ["text", *EXTRA[0]]
