"""A user's own file: formats, what a label means, what is refused, and the fifth kept apart."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from peftlab import tasks
from peftlab.errors import RequestError
from peftlab.tasks import carve, split
from peftlab.tasks.base import Examples, Task

Rows = list[dict[str, Any]]


def reviews(n: int = 50, labels: tuple[Any, ...] = ("neg", "pos")) -> Rows:
    return [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(n)]


def write(path: Path, rows: Rows) -> Path:
    """The rows as a file of the kind that the suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if path.suffix in {".jsonl", ".json"}:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path
    separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
    records = [list(rows[0]), *(list(row.values()) for row in rows)]
    path.write_text("\n".join(separator.join(map(str, record)) for record in records) + "\n")
    return path


def load(path: Path, **options: Any) -> Task:
    return tasks.load_file(path, **{"text": ["text"], "label": "label", **options})


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load(path, **options)
    return str(caught.value)


def labels_of(task: Task) -> dict[str, Any]:
    """Text -> the label's name, or the number."""
    pairs = [*zip(task.train.texts, task.train.labels, strict=True)]
    pairs += zip(task.dev.texts, task.dev.labels, strict=True)
    return {texts[0]: task.labels[y] if task.labels else y for texts, y in pairs}  # type: ignore[index]


SUFFIXES = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("values", "names"),
    [
        (("pos", "neg"), ("neg", "pos")),
        ((True, False), ("false", "true")),
        ((10, 9, -1), ("-1", "9", "10")),
        ((2.5, 1.0, 0.25), ()),
    ],
)
def test_every_format_says_the_same(tmp_path, suffix, values, names):
    rows = reviews(60, values)
    task = load(write(tmp_path / f"data{suffix}", rows))
    assert task.labels == names
    assert task.kind == ("classes" if names else "regression")
    assert task.metrics == (("accuracy", "f1") if names else ("pearson", "spearman"))
    spelled = {row["text"]: str(row["label"]).lower() if names else row["label"] for row in rows}
    assert labels_of(task) == spelled
    assert task.source == f"file data{suffix}"


def test_twenty_integers_are_classes_and_twenty_one_a_regression(tmp_path):
    assert load(write(tmp_path / "a.csv", reviews(100, tuple(range(20))))).num_labels == 20
    task = load(write(tmp_path / "b.csv", reviews(105, tuple(range(21)))))
    assert task.kind == "regression"
    assert all(type(label) is float for label in task.train.labels)


@pytest.mark.parametrize(
    ("values", "kind", "notes"),
    [
        (
            [1, 2, 3, 4, 5] * 4,
            "auto",
            (
                "label holds 5 whole numbers from 1 to 5, taken as classes; "
                "--kind regression asks for numbers",
            ),
        ),
        ([1, 2, 3, 4, 5] * 4, "classes", ()),
        ([1, 2, 3, 4, 5] * 4, "regression", ()),
        (
            [1.0, 2.0, 3.0] * 6,
            "auto",
            (
                "label holds 3 whole numbers from 1 to 3, taken as classes; "
                "--kind regression asks for numbers",
            ),
        ),
        (
            list(range(40)),
            "auto",
            (
                "label holds 40 whole numbers from 0 to 39, taken as numbers; "
                "--kind classes asks for classes",
            ),
        ),
        (list(range(40)), "regression", ()),
        ([0, 1] * 10, "auto", ()),
        (list("abc") * 6, "auto", ()),
        ([0.5, 1.5, 2.5] * 6, "auto", ()),
    ],
)
def test_what_whole_numbers_were_taken_for_is_said_with_the_way_to_the_other(
    tmp_path, values, kind, notes
):
    rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]
    path = write(tmp_path / "stars.jsonl", rows)
    assert load(path, kind=kind).notes == notes


def test_large_integers_are_not_rounded_together(tmp_path):
    big = 2**53
    task = load(write(tmp_path / "a.csv", reviews(30, (big + 1, big, big + 2))))
    assert task.labels == (str(big), str(big + 1), str(big + 2))


def test_any_number_of_texts_are_classes(tmp_path):
    rows = reviews(300, tuple(f"intent {i}" for i in range(77)))
    assert load(write(tmp_path / "a.jsonl", rows)).num_labels == 77


def test_kind_overrides(tmp_path):
    few = write(tmp_path / "few.csv", reviews(50, (1, 2, 3)))
    assert load(few, kind="regression").kind == "regression"
    many = write(tmp_path / "many.csv", reviews(105, tuple(range(21))))
    assert load(many, kind="classes").labels == tuple(str(i) for i in range(21))
    whole = write(tmp_path / "whole.csv", reviews(50, (1.0, 0.0)))
    assert load(whole).labels == load(whole, kind="classes").labels == ("0", "1")
    assert load(whole, kind="regression").kind == "regression"
    halves = write(tmp_path / "halves.csv", reviews(50, (1.5, 10.5, 2.0)))
    assert load(halves, kind="classes").labels == ("1.5", "2", "10.5")


def test_a_pair_of_columns_and_numbers_as_text(tmp_path):
    rows = [{"n": i, "b": f"b{i}", "label": i % 2} for i in range(20)]
    task = tasks.load_file(write(tmp_path / "a.jsonl", rows), ["b", "n"], "label")
    assert ("b3", "3") in task.train.texts + task.dev.texts


def test_a_quoted_csv_keeps_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "a.csv"
    lines = "\r\n".join(f'"row {i}, ""said""\r\nover two lines",{i % 2}' for i in range(20))
    path.write_bytes(b"\xef\xbb\xbf" + f"text,label\r\n{lines}\r\n\r\n".encode())
    task = load(path)
    texts = {texts[0] for texts in task.train.texts + task.dev.texts}
    assert texts == {f'row {i}, "said"\r\nover two lines' for i in range(20)}


def test_a_tsv_is_not_quoted(tmp_path):
    path = tmp_path / "a.tsv"
    rows = "".join(f'a "{i}\u2028b\t{i % 2}\n' for i in range(20))
    path.write_text("text\tlabel\n" + rows, encoding="utf-8")
    assert 'a "7\u2028b' in labels_of(load(path))


def test_a_long_text_is_read(tmp_path):
    rows = [*reviews(), {"text": "x" * 200_000, "label": "pos"}]
    assert len(labels_of(load(write(tmp_path / "a.csv", rows)))) == 51


def test_parquets_own_numbers_are_numbers(tmp_path):
    rows = [{"text": f"t{i}", "label": Decimal(f"{i}.5")} for i in range(30)]
    assert load(write(tmp_path / "a.parquet", rows)).train.labels[0] in {0.5, 1.5, 2.5}


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("My Reviews (v2)", "my-reviews-v2"),
        ("\u00fcber", "uber"),
        ("..", "data-5ec1f7"),
        ("\u8bc4\u8bba", "data-6849b8"),
        ("a" * 90, "a" * 40),
        ("mrpc", "mrpc-file"),
    ],
)
def test_a_name_is_made_of_plain_letters_only(tmp_path, stem, name):
    assert load(write(tmp_path / f"{stem}.csv", reviews())).name == name


def test_a_dev_file_is_used_as_it_is(tmp_path):
    path = write(tmp_path / "a.csv", reviews(4, (0, 1, 2)))
    dev = write(tmp_path / "b.jsonl", reviews(3, (2, 1)))
    task = load(path, dev=dev)
    assert (len(task.train), task.dev.labels) == (4, [2, 1, 2])
    assert task.source == "file a.csv, dev file b.jsonl"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "stray"), [((0, 1), 2), (("x", "y"), "z"), ((True, False), "x"), ((0.5, 1.5), "x")]
)
def test_a_dev_label_that_train_has_not_is_named_with_its_line(tmp_path, suffix, values, stray):
    path = write(tmp_path / f"a{suffix}", reviews(20, values))
    dev = write(tmp_path / f"b{suffix}", [{"text": "x", "label": stray}])
    error = refused(path, dev=dev)
    where = {".csv": "line 2", ".jsonl": "line 1", ".parquet": "row 1"}[suffix]
    assert error.startswith(f"{dev}, {where}: ")
    assert str(stray) in error


def test_a_missing_file_and_an_unknown_suffix(tmp_path):
    assert refused(tmp_path / "a.csv") == f"no such file: {tmp_path / 'a.csv'}"
    allowed = "a data file ends in one of .csv, .tsv, .jsonl, .json, .parquet."
    assert refused(tmp_path / "a.xlsx") == f"{tmp_path / 'a.xlsx'} ends in '.xlsx'; {allowed}"
    assert refused(tmp_path / "a") == f"{tmp_path / 'a'} has no suffix; {allowed}"
    (tmp_path / "folder.csv").mkdir()
    assert "can't be read: Is a directory" in refused(tmp_path / "folder.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_column_is_named_with_those_there(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", reviews())
    error = refused(path, label="lable")
    assert "unknown column 'lable'; did you mean 'label'? Allowed: text, label." in error
    assert str(path) in error


def test_a_csv_of_old_macs_is_read(tmp_path):
    """Its lines end in CR: the header is the first of them, not all there is."""
    path = tmp_path / "mac.csv"
    path.write_bytes(
        b"text,label\r" + b"".join(b"t; %d; or so,%d\r" % (i, i % 2) for i in range(8))
    )
    task = load(path)
    assert len(task.train) + len(task.dev) == 8
    assert all(";" in text for (text,) in task.train.texts)


def test_a_csv_of_semicolons_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f'"{i}; a, b";{i % 2}\n' for i in range(20)))
    assert ("0; a, b",) in load(path).train.texts + load(path).dev.texts
    assert "unknown column 'lable'; did you mean 'label'? Allowed: text, label." in refused(
        path, label="lable"
    )


@pytest.mark.parametrize(
    ("name", "separator", "suffix"), [("a.csv", "\t", ".tsv"), ("a.tsv", ",", ".csv")]
)
def test_another_separator_is_recognised(tmp_path, name, separator, suffix):
    path = tmp_path / name
    path.write_text(f"text{separator}label\na{separator}1\n")
    assert f"let its name end in {suffix}" in refused(path)


def test_blank_lines_hold_no_example(tmp_path):
    path = tmp_path / "a.tsv"
    rows = "".join(f"text {i}\t{i % 2}\n\n" for i in range(20))
    path.write_text(f"text\tlabel\n{rows}\n\n")
    assert len(load(path).train.texts) + len(load(path).dev.texts) == 20


def test_a_column_name_that_stands_twice(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,text\na,1,b\n")
    assert "has 2 columns 'text'; rename all but one" in refused(path)


@pytest.mark.parametrize(
    ("text", "label", "problem"),
    [
        ([], "label", "one or two text columns are needed, got 0"),
        (["a", "b", "c"], "label", "one or two text columns are needed, got 3"),
        (["a", "a"], "label", "must differ, got a, a, label"),
        (["label"], "label", "must differ, got label, label"),
    ],
)
def test_columns_that_make_no_task(tmp_path, text, label, problem):
    assert problem in refused(tmp_path / "a.csv", text=text, label=label)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "text,label\na,1\nb\n", "line 3: malformed row, 1 field where 2"),
        ("a.csv", "text,label\n'a\nb,1,2\n", "line 2: malformed row, 1 field where 2"),
        ("a.csv", 'text,label\n"a\nb",1\n"c,0\nd,1\n', "line 4: malformed row starting here"),
        ("a.csv", 'text,label\n"a" b,1\n', "line 2: malformed row starting here"),
        ("a.tsv", "text\tlabel\na\t1\nb\tc\t1\n", "line 3: malformed row, 3 fields where 2"),
        ("a.tsv", "text\tlabel\na\t1\n\nb\n", "line 4: malformed row, 1 field where 2"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a"', "line 2: not JSON"),
        ("a.json", '[{"text": "a", "label": 1}]', "line 1: a JSON list, not an object"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "a"}', "line 3"),
        ("a.parquet", "text", "can't be read as Parquet"),
        ("a.csv", "", "is empty; its first line must name the columns"),
        ("a.tsv", "", "is empty; its first line must name the columns"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", "\n", "holds no rows"),
    ],
)
def test_what_is_not_the_format_is_named_with_its_line(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_text(content)
    error = refused(path)
    assert problem in error
    assert str(path) in error


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("text,label\nok,1\ncaf\u00e9,0\n".encode("latin-1"), "line 3: not UTF-8 (byte 0xe9)."),
        (
            "text,label\nok,1\n".encode("utf-16"),
            "line 1: not UTF-8 (byte 0xff); it looks like UTF-16",
        ),
    ],
)
def test_another_encoding_is_named(tmp_path, raw, problem):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    assert problem in refused(path)
    assert "Save the file as UTF-8" in refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_cell_is_named_with_its_line(tmp_path, suffix, column, empty):
    rows = reviews()
    rows[6][column] = empty
    error = refused(write(tmp_path / f"a{suffix}", rows))
    assert f"{'row' if suffix == '.parquet' else 'line'} " in error
    assert f" {7 if suffix in {'.jsonl', '.json', '.parquet'} else 8}: " in error
    assert "is empty. Fill it in or leave the row out." in error


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_null_is_an_empty_cell(tmp_path, suffix, column):
    rows = reviews()
    rows[6][column] = None
    assert "is empty" in refused(write(tmp_path / f"a{suffix}", rows))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_label_that_is_no_finite_number_is_named_with_its_line(tmp_path, suffix, bad):
    rows = reviews(50, (0.5, 1.5))
    rows[6]["label"] = bad
    assert "must be a finite number" in refused(write(tmp_path / f"a{suffix}", rows))


@pytest.mark.parametrize("bad", [[1], {"a": 1}])
def test_a_label_or_text_of_another_type_is_named(tmp_path, bad):
    rows = [{"text": "a", "label": bad}]
    assert "text, a number or true/false, got" in refused(write(tmp_path / "a.jsonl", rows))
    rows = [{"text": bad, "label": 1}]
    assert "must hold text, got" in refused(write(tmp_path / "a.jsonl", rows))


def test_labels_of_mixed_types_are_refused(tmp_path):
    rows = [*reviews(10, (0, 1)), {"text": "x", "label": "two"}]
    error = refused(write(tmp_path / "a.jsonl", rows))
    assert "line 11: labels must be of one type, found 'two' after 0 in line 1." in error


def test_a_regression_needs_numbers(tmp_path):
    path = write(tmp_path / "a.csv", [*reviews(10, (0.5, 1.5)), {"text": "x", "label": "n/a"}])
    for kind in ("regression", "auto"):
        assert "line 12: the label 'n/a' is not a number" in refused(path, kind=kind)
    texts = write(tmp_path / "b.csv", reviews())
    assert "line 2: the label 'neg' is not a number" in refused(texts, kind="regression")
    booleans = write(tmp_path / "c.csv", reviews(10, (True, False)))
    assert "a regression needs numbers" in refused(booleans, kind="regression")


def test_many_fractions_are_no_classes(tmp_path):
    path = write(tmp_path / "a.csv", reviews(105, tuple(i + 0.5 for i in range(21))))
    assert "21 different numbers, some not whole, can't be classes" in refused(path, kind="classes")


@pytest.mark.parametrize("label", ["pos", 1, 0.5])
def test_a_single_label_is_nothing_to_learn(tmp_path, label):
    assert "there is nothing to learn" in refused(write(tmp_path / "a.csv", reviews(20, (label,))))


def test_a_class_needs_two_texts(tmp_path):
    path = write(tmp_path / "a.csv", [*reviews(), {"text": "only", "label": "rare"}])
    error = refused(path)
    assert f"{path}: class 'rare' has 1 different text of its own; it needs at least 2" in error
    assert "--dev FILE" in error
    same = write(tmp_path / "b.csv", [{"text": "same", "label": i / 2} for i in range(9)])
    assert "all rows have the same text" in refused(same)


@pytest.mark.parametrize("column", ["text", "label"])
def test_half_a_surrogate_pair_is_refused(tmp_path, column):
    rows = [*reviews(), {"text": "x", "label": "pos", column: "\ud83d"}]
    assert "holds half a surrogate pair" in refused(write(tmp_path / "a.jsonl", rows))


def test_the_task_passes_to_another_process(tmp_path):
    task = load(write(tmp_path / "a.csv", reviews(50, (0.0, 1.0, 2.0))))
    task.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == task


TEXTS = st.tuples(st.text("abc", min_size=1, max_size=3))


def both_sides(texts: list[tuple[str, ...]], dev: set[tuple[str, ...]]) -> bool:
    return bool(dev) and bool(set(texts) - dev)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), min_size=1, max_size=60), st.randoms())
def test_the_fifth_of_classes_does_not_depend_on_the_order(pairs, order):
    def kept(rows):
        texts, labels = zip(*rows, strict=True)
        try:
            return split.by_class(texts, labels, "abc")
        except RequestError as error:
            return str(error)

    first = kept(pairs)
    shuffled = order.sample(pairs, len(pairs))
    assert kept(shuffled) == first
    assert isinstance(first, str) or both_sides([text for text, _ in pairs], first)


@given(st.lists(st.tuples(TEXTS, st.floats(-9, 9)), min_size=1, max_size=60), st.randoms())
def test_the_fifth_of_numbers_does_not_depend_on_the_order(pairs, order):
    def kept(rows):
        texts, labels = zip(*rows, strict=True)
        return split.by_quantile(texts, labels)

    if len({text for text, _ in pairs}) < 2:
        with pytest.raises(RequestError):
            kept(pairs)
        return
    first = kept(pairs)
    assert kept(order.sample(pairs, len(pairs))) == first
    assert both_sides([text for text, _ in pairs], first)


@given(st.lists(st.integers(2, 40), min_size=2, max_size=5))
def test_dev_has_a_fifth_of_every_class_rounded(sizes):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    texts = [(f"text {i}",) for i in range(len(labels))]
    dev = split.by_class(texts, labels, [str(label) for label in range(len(sizes))])
    counts = Counter(label for text, label in zip(texts, labels, strict=True) if text in dev)
    assert counts == {label: max(1, round(size / 5)) for label, size in enumerate(sizes)}


@pytest.mark.parametrize("numbers", [False, True])
def test_one_text_in_several_spellings_is_on_one_side(numbers: bool) -> None:
    """Of 30 texts in three spellings 114 of 120 in dev were in train too."""
    ways = (str, str.upper, lambda text: f"  {text.replace(' ', '   ')}")
    pairs = [(f"text {i}", f"and {i}") for i in range(40)]
    texts = [tuple(map(way, pair)) for pair in pairs for way in ways]
    texts += [(second, first) for first, second in pairs]
    labels = [i // 3 % 2 for i in range(120)] + [i % 2 for i in range(40)]
    data = Examples(texts, [float(i) for i in labels] if numbers else labels)
    train, dev = split.divide(data, () if numbers else ("no", "yes"))
    assert split.n_in_both(train, dev) == 0
    assert 16 <= len(dev) <= 36


@pytest.mark.parametrize("zeros", [0.5, 0.7, 0.85, 0.95])
def test_dev_has_a_fifth_of_equal_labels_too(zeros):
    """Where a quintile ended among equal labels dev had the others: 40 of 50 that were not 0."""
    values = [0.0 if i < zeros * 2000 else 1 + i / 1000 for i in range(2000)]
    texts = [(f"text {i}",) for i in range(2000)]
    label_of = dict(zip(texts, values, strict=True))
    chosen = [label_of[text] for text in split.by_quantile(texts, values)]
    assert len(chosen) == 400
    share = sum(value > 0 for value in chosen) / 400
    assert share == pytest.approx(1 - zeros, abs=0.03)


def test_dev_has_a_fifth_of_every_star():
    values = [float(i % 6) for i in range(3000)]
    texts = [(f"text {i}",) for i in range(3000)]
    label_of = dict(zip(texts, values, strict=True))
    counts = Counter(label_of[text] for text in split.by_quantile(texts, values))
    assert all(abs(count - 100) < 25 for count in counts.values()), counts


def test_dev_has_a_fifth_of_every_quintile():
    values = random.Random(0).sample(range(1000), 500)
    texts = [(f"text {value}",) for value in values]
    dev = split.by_quantile(texts, [float(value) for value in values])
    rank = {value: i for i, value in enumerate(sorted(values))}
    counts = Counter(rank[int(text.split()[1])] // 100 for (text,) in dev)
    assert counts == dict.fromkeys(range(5), 20)


def test_other_rows_move_no_text_of_another_class():
    texts = [(f"text {i}",) for i in range(40)]
    alone = split.by_class(texts, [0] * 20 + [1] * 20, "ab")
    more = split.by_class([*texts, ("new",)], [0] * 20 + [1] * 21, "ab")
    assert alone & set(texts[:20]) == more & set(texts[:20])


def test_equal_texts_stay_together_and_dev_keeps_its_size(tmp_path):
    rows = [{"text": f"text {i % 37}", "label": i % 37 % 2} for i in range(400)]
    rows += [{"text": "very common", "label": 0} for _ in range(150)]
    task = load(write(tmp_path / "a.csv", rows))
    assert not set(task.train.texts) & set(task.dev.texts)
    shares: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for side, examples in enumerate((task.train, task.dev)):
        for label in examples.labels:
            shares[int(label)][side] += 1
    for train, dev in shares.values():
        assert dev / (train + dev) == pytest.approx(0.2, abs=0.05)


def test_the_rows_keep_the_order_of_the_file(tmp_path):
    task = load(write(tmp_path / "a.csv", reviews()))
    for examples in (task.train, task.dev):
        numbers = [int(text.split()[1]) for (text,) in examples.texts]
        assert numbers == sorted(numbers)


def test_the_fifth_is_the_same_on_every_machine():
    texts = [(f"text {i}",) for i in range(10)]
    assert split.by_class(texts, [0, 1] * 5, "ab") == {("text 1",), ("text 6",)}


def test_texts_of_dev_that_train_has_too_are_counted(tmp_path):
    rows = reviews(20)
    held = [
        {"text": " Text  3 ", "label": "neg"},
        {"text": "text 4", "label": "pos"},
        {"text": "another", "label": "pos"},
    ]
    path, dev = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", held)
    task = load(path, dev=dev)
    (note,) = task.dev_notes
    assert note.startswith("2 of 3 texts of dev are in train too")
    assert carve(task).dev_notes == ()  # of another dev
    assert task.notes == load(path).notes == load(path).dev_notes == ()
    pairs = [
        {"text": f"a {i}", "other": f"b {i}", "label": "pos" if i % 2 else "neg"} for i in range(9)
    ]
    turned = [{"text": "b 3", "other": "a 3", "label": "pos"}]
    path, dev = write(tmp_path / "c.csv", pairs), write(tmp_path / "d.csv", turned)
    (note,) = load(path, dev=dev, text=["text", "other"]).dev_notes
    assert note.startswith("1 of 1 texts")


def test_numbers_with_decimal_commas_are_no_classes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f"text {i};{i % 7},5\n" for i in range(40)))
    for kind in ("auto", "regression"):
        assert "line 2: the label '0,5' has a comma. Write numbers" in refused(path, kind=kind)
    assert load(path, kind="classes").labels == tuple(f"{i},5" for i in range(7))


def test_a_few_numbers_that_are_badly_written_do_not_make_classes_of_all(tmp_path):
    """Stars of German Excel where whole ones have no comma; a scale with some cells n/a."""
    stars = [f"{i % 5},5" if i % 5 < 2 else str(i % 5) for i in range(60)]
    scale = [str(i) for i in range(60)]
    thousands = ["1,000", *(str(500 + i) for i in range(59))]
    for labels, problem in (
        (stars, "has a comma"),
        (thousands, "has a comma"),
        ([*scale[:58], "n/a", "n/a"], "line 60: the label 'n/a' is not a number"),
    ):
        path = tmp_path / "a.csv"
        rows = (f"text {i};{label}\n" for i, label in enumerate(labels))
        path.write_text("text;label\n" + "".join(rows))
        assert problem in refused(path)
    marked = [*(str(i % 4) for i in range(58)), "?", "?"]  # a few codes and a word are classes
    assert load(
        write(
            tmp_path / "b.csv",
            [{"text": f"text {i}", "label": label} for i, label in enumerate(marked)],
        )
    ).labels == ("0", "1", "2", "3", "?")


def test_a_code_that_parquet_has_no_name_for_is_no_class(tmp_path):
    """`datasets` writes -1 for a hidden answer."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = {"text": [f"text {i}" for i in range(40)], "label": [0, 1] * 19 + [-1, -1]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert "row 39: the label is empty" in refused(tmp_path / "a.parquet")


def test_numbers_as_text_in_a_file_with_types_are_names_and_it_is_said(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i}", "label": str(i % 5)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(path).notes[0] == "label holds numbers as text, taken as names of classes"


def test_a_label_beyond_what_a_head_can_answer_is_refused_and_none_is_told_in_full(tmp_path):
    path = write(tmp_path / "a.csv", reviews(60, [i * 1e36 for i in range(30)]))
    assert "a label must lie within ±1e+37" in refused(path)
    path = write(tmp_path / "b.csv", reviews(60, [10**300 + i for i in range(5)]))
    assert len(load(path).notes[0]) < 200


def test_codes_keep_their_zeros(tmp_path):
    rows = reviews(40, ("007", "7", "10", "08"))
    assert load(write(tmp_path / "a.csv", rows)).labels == ("007", "08", "10", "7")
    wide = load(write(tmp_path / "c.csv", reviews(200, tuple(f"{i:03}" for i in range(30)))))
    assert wide.labels[:2] == ("000", "001") and "zeros in front" in wide.notes[0]
    stray = reviews(400, ("07", *range(95, 150)))  # one among numbers is a number
    assert load(write(tmp_path / "e.csv", stray)).kind == "regression"
    floats = reviews(60, ("00", *(i + 0.5 for i in range(30))))
    assert load(write(tmp_path / "d.csv", floats)).kind == "regression"
    numbers = load(write(tmp_path / "b.csv", rows), kind="regression")
    assert numbers.kind == "regression" and 8.0 in numbers.train.labels


def test_a_label_that_names_no_class_is_named_with_its_line(tmp_path):
    rows = [*reviews(20, (1, 2)), {"text": "x", "label": "nan"}]
    assert "line 22: the label 'nan' names no class" in refused(
        write(tmp_path / "a.csv", rows), kind="classes"
    )


def test_excels_own_first_line_names_the_separator(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\r\ntext;label\r\n" + "".join(f"t {i};{i % 2}\r\n" for i in range(8)))
    assert len(load(path).train) + len(load(path).dev) == 8
    path.write_text("sep=;\ntext;label\na\n")
    assert "line 3: malformed row" in refused(path)
    path.write_text('text;label;"price, EUR"\n' + "".join(f"t {i};{i % 2};1\n" for i in range(8)))
    assert load(path).kind == "classes"


def test_a_column_of_identifiers_is_no_column_of_labels(tmp_path):
    path = write(tmp_path / "a.csv", reviews(50, tuple(f"user {i}" for i in range(40))))
    assert "of 40 classes have fewer than two different texts; is this the column" in refused(path)


def test_names_that_are_not_latin_differ(tmp_path):
    names = {load(write(tmp_path / f"{stem}.csv", reviews())).name for stem in ("отзывы", "客户")}
    assert len(names) == 2 and all(name.startswith("data-") for name in names)


def test_blanks_around_a_column_s_name_are_no_part_of_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id, text, label\n" + "".join(f"{i},t {i},{i % 2}\n" for i in range(10)))
    assert load(path, text=["text"], label="label").train.texts
    assert load(path, text=[" text"], label=" label").train.texts
    path.write_text("id, text, label,,\n" + "".join(f"{i},t {i},{i % 2},,\n" for i in range(10)))
    assert load(path, text=["text"], label="label").train.texts
    path.write_text("text, text,label\n" + "".join(f"a {i},b {i},{i % 2}\n" for i in range(10)))
    assert load(path, text=[" text"], label="label").train.texts[0][0].startswith("b")


def test_rows_with_one_text_are_told_of(tmp_path):
    rows = [{"text": f"text {i % 5}", "label": "pos" if i % 5 < 2 else "neg"} for i in range(40)]
    task = load(write(tmp_path / "a.csv", rows))
    (note,) = task.dev_notes
    n, rest = len(set(task.dev.texts)), "rows: intervals count each text once"
    assert note == f"dev has {n} different texts in {len(task.dev)} {rest}"


def test_classes_whose_names_differ_in_case_alone_are_named(tmp_path):
    path = tmp_path / "mood.csv"
    moods = ["good", "Good ", "bad", "GOOD"]
    path.write_text("text,label\n" + "".join(f"text {i},{moods[i % 4]}\n" for i in range(40)))
    task = load(path)
    assert task.labels == ("GOOD", "Good", "bad", "good")
    told = "'GOOD', 'Good', 'good' are 3 classes: names differ in case or blanks only"
    assert told in task.notes


@pytest.mark.parametrize("names", [("no", "yes"), ()])
def test_of_several_spellings_the_part_is_the_same_whatever_the_rows_order(
    names: tuple[str, ...],
) -> None:
    """The first row's spelling would decide: a file sorted anew would have another dev."""
    ways = (str, str.upper, str.title)
    texts = [(way(f"text {i}"),) for i in range(60) for way in ways]
    labels = [i // 3 % 2 for i in range(180)]
    rows = Examples(texts, labels if names else [float(label) for label in labels])
    turned = Examples(rows.texts[::-1], rows.labels[::-1])
    parts = [split.divide(one, names)[1].texts for one in (rows, turned)]
    assert sorted(parts[0]) == sorted(parts[1])


def test_the_csv_module_s_limit_is_the_caller_s_again(tmp_path):
    """It is the process's: a caller who relies on it would read on without one."""
    before = csv.field_size_limit()
    load(write(tmp_path / "a.csv", reviews()))
    assert csv.field_size_limit() == before
    (tmp_path / "b.csv").write_text('text,label\n"a" b,x\n')
    refused(tmp_path / "b.csv")
    assert csv.field_size_limit() == before


def test_semicolons_inside_a_quoted_name_do_not_separate(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"a; b; c",label\n' + "".join(f"text {i},{i % 2}\n" for i in range(20)))
    assert len(labels_of(load(path, text=["a; b; c"]))) == 20


def test_codes_of_one_width_keep_their_zeros_though_most_have_none(tmp_path):
    """Postal codes, say: 01067 is Dresden, and not the number 1067."""
    codes = [f"{1000 + 2500 * i:05}" for i in range(30)]  # four of thirty begin with a zero
    task = load(write(tmp_path / "a.csv", reviews(120, tuple(codes))))
    assert task.kind == "classes" and task.labels[0] == "01000"
