"""A user's file comes back with its own columns, in the format asked for, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.errors import RequestError
from peftlab.tasks import answer_file, check_out, texts_of
from peftlab.tasks.rows import records

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


def test_every_format_goes_into_every_other(given: Path, tmp_path: Path) -> None:
    assert texts_of(given, ["text"]) == [(row["text"],) for row in ROWS]
    wanted = [row | extra for row, extra in zip(ROWS, EXTRA, strict=True)]
    answer_file(given, tmp_path / "out.jsonl", EXTRA)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == wanted
    answer_file(given, tmp_path / "out.parquet", EXTRA)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == wanted
    answer_file(given, tmp_path / "out.csv", EXTRA)
    assert texts_of(tmp_path / "out.csv", ["text", "score_cat"]) == [
        (row["text"], str(row["score_cat"])) for row in wanted
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_of_json_may_have_other_columns(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "left": 1}, {"text": "b", "right": 2}]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"out{suffix}"
    answer_file(tmp_path / "given.jsonl", out, EXTRA)
    found = records(out)
    assert list(found[0]) == ["text", "left", "prediction", "score_cat", "right"]
    assert [str(row["right"] or "") for row in found] == ["", "2"]


def test_tsv_refuses_what_it_can_not_hold_and_leaves_the_old_file(
    given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("old")
    with pytest.raises(RequestError, match="can't hold a tab or a line break"):
        answer_file(given, out, EXTRA)
    assert out.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {given.name, "out.tsv"}


def test_a_column_that_is_there_already_is_not_overwritten(given: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has a column 'text' already"):
        answer_file(given, tmp_path / "out.csv", [{"text": "a"}, {"text": "b"}])


@pytest.mark.parametrize(
    ("name", "message"), [("a.xls", "must end in one of"), ("no/a.csv", "no is no folder")]
)
def test_where_nothing_can_be_written_is_said_first(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        check_out(Path(name))


def test_three_text_columns_are_too_many(given: Path) -> None:
    with pytest.raises(RequestError, match="one or two text columns are needed, got 3"):
        texts_of(given, ["id", "text", "id"])
