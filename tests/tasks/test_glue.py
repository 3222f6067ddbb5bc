"""GLUE from files: tiny made-up ones with the benchmark's traps, and, if there, the real ones."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from peftlab import tasks
from peftlab.errors import RequestError
from peftlab.tasks import glue
from peftlab.tasks.base import Task
from peftlab.tasks.glue import GLUE, QQP_SHORT_ROWS

BOM = "\ufeff"
TRAPS = ['a "lone quote', "next\x85line\u2028here\x0b\x1d", " blanks kept ", '"quoted"', "", "r\rr"]

# task -> its folder, the header of its train file, a row's fields for (number, text, label)
LAYOUTS = {
    "cola": ("CoLA", "", "src\t{label}\t*\t{text}"),
    "mrpc": (
        "MRPC",
        f"{BOM}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
        "{label}\t{i}\t{i}\t{text}\tb{i}",
    ),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel\n", "{i}\t{text}\tb{i}\t{label}"),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n",
        "{i}\tg\tf\ty\t{i}\ts\ts\t{text}\tb{i}\t{label}",
    ),
    "sst2": ("SST-2", "sentence\tlabel\n", "{text}\t{label}"),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel\n", "{i}\t{text}\tb{i}\t{label}"),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n",
        "{i}\t{i}\t{i}\t{text}\tb{i}\t{label}",
    ),
    "mnli": (
        "MNLI",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n",
        "{i}\t{text}\tb{i}\tneutral\t{label}",
    ),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel\n", "{i}\t{text}\tb{i}\t{label}"),
}
ANSWERS = {
    "stsb": ["0.000", "5.000", "3.8", "4.333", "0", "5"],
    "rte": ["entailment", "not_entailment"] * 3,
    "qnli": ["entailment", "not_entailment"] * 3,
    "mnli": ["entailment", "neutral", "contradiction"] * 2,
}


def rows_of(name: str) -> list[str]:
    answers = ANSWERS.get(name, ["0", "1"] * 3)
    pairs = enumerate(zip(TRAPS, answers, strict=True))
    return [LAYOUTS[name][2].format(i=i, text=text, label=label) for i, (text, label) in pairs]


def write(data_dir: Path, name: str, train: list[str] | None = None, header: str | None = None):
    """The task's folder with `train` as its rows, and a dev file that is well-formed."""
    folder, usual, _ = LAYOUTS[name]
    (data_dir / folder).mkdir(parents=True, exist_ok=True)
    dev = "dev_matched.tsv" if name == "mnli" else "dev.tsv"
    content = (usual if header is None else header) + "\n".join(
        rows_of(name) if train is None else train
    )
    (data_dir / folder / "train.tsv").write_bytes(content.encode())
    (data_dir / folder / dev).write_bytes((usual + "\n".join(rows_of(name))).encode())
    return data_dir / folder / "train.tsv"


def refused(data_dir: Path, name: str) -> str:
    with pytest.raises(RequestError) as caught:
        tasks.load(name, data_dir)
    return str(caught.value)


@pytest.mark.parametrize("name", GLUE)
def test_every_character_of_a_text_is_kept(tmp_path, name):
    write(tmp_path, name)
    task = tasks.load(name, tmp_path)
    assert [texts[0] for texts in task.train.texts] == TRAPS
    assert task.train.texts == task.dev.texts
    assert {len(texts) for texts in task.train.texts} == {1 if name in {"cola", "sst2"} else 2}
    assert task.source == f"folder {tmp_path.name}/{LAYOUTS[name][0]}"


@pytest.mark.parametrize("name", GLUE)
def test_labels_are_indices_in_the_order_of_the_names(tmp_path, name):
    write(tmp_path, name)
    task = tasks.load(name, tmp_path)
    if name == "stsb":
        assert task.train.labels == [0.0, 5.0, 3.8, 4.333, 0.0, 5.0]
        assert (task.kind, task.labels, task.num_labels) == ("regression", (), 1)
    else:
        assert task.train.labels == ([0, 1, 2] * 2 if name == "mnli" else [0, 1] * 3)
        assert (task.kind, task.num_labels) == ("classes", 3 if name == "mnli" else 2)


@pytest.mark.parametrize("name", GLUE)
def test_windows_line_ends_and_a_last_newline_change_nothing(tmp_path, name):
    path = write(tmp_path / "unix", name)
    other = write(tmp_path / "windows", name)
    other.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert tasks.load(name, tmp_path / "unix").sha256() == (
        tasks.load(name, tmp_path / "windows").sha256()
    )


def test_the_main_metrics_and_lengths_are_those_of_the_design():
    main = {name: row.metrics[0] for name, row in GLUE.items()}
    assert main == {
        "cola": "matthews",
        "mrpc": "f1",
        "rte": "accuracy",
        "stsb": "pearson",
        "sst2": "accuracy",
        "qnli": "accuracy",
        "qqp": "f1",
        "mnli": "accuracy",
        "wnli": "accuracy",
    }
    assert {name for name, row in GLUE.items() if row.max_length == 256} == {"rte"}
    assert GLUE["rte"].labels == ("entailment", "not_entailment")
    assert GLUE["wnli"].labels == ("not_entailment", "entailment")


def test_columns_are_found_by_name_not_by_place(tmp_path):
    header = "label\tsentence2\tsentence1\tindex\n"
    write(tmp_path, "rte", ["entailment\tb\ta\t0"], header)
    task = tasks.load("rte", tmp_path)
    assert (task.train.texts, task.train.labels) == ([("a", "b")], [0])


def test_a_missing_folder_is_named(tmp_path):
    error = refused(tmp_path / "nowhere", "rte")
    assert f"no folder {tmp_path / 'nowhere'}" in error
    assert "--data-dir FOLDER (or PEFTLAB_DATA_DIR) must hold FOLDER/RTE/train.tsv" in error


def test_a_folder_without_the_task_says_what_it_holds(tmp_path):
    write(tmp_path, "mrpc")
    assert f"{tmp_path} has no folder RTE; it holds MRPC." in refused(tmp_path, "rte")


def test_pointing_at_the_tasks_own_folder_names_the_one_above(tmp_path):
    write(tmp_path, "mrpc")
    assert f"give the one above it, --data-dir {tmp_path}." in refused(tmp_path / "MRPC", "mrpc")


def test_pointing_above_the_benchmark_names_the_one_below(tmp_path):
    write(tmp_path / "glue", "mrpc")
    assert f"give --data-dir {tmp_path / 'glue'}." in refused(tmp_path, "mrpc")


def test_a_folder_spelled_otherwise_is_recognised(tmp_path):
    (tmp_path / "stsb").mkdir()
    assert "is called stsb: rename it to STS-B" in refused(tmp_path, "stsb")


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    write(tmp_path, "mnli")
    (tmp_path / "MNLI/dev_matched.tsv").rename(tmp_path / "MNLI/dev.tsv")
    error = refused(tmp_path, "mnli")
    assert "has no dev_matched.tsv; it holds dev.tsv, train.tsv." in error


def test_a_missing_column_is_named_with_those_there(tmp_path):
    write(tmp_path, "rte", ["0\ta\tb\t1"], "index\tsentence\tsentence2\tlabel\n")
    error = refused(tmp_path, "rte")
    assert "unknown column 'sentence1'; did you mean 'sentence" in error
    assert "Allowed: index, sentence, sentence2, label." in error
    assert "RTE/train.tsv" in error


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("damage", [lambda row: row + "\tmore", lambda row: row.split("\t", 1)[0]])
def test_a_malformed_row_is_named_with_its_line(tmp_path, name, damage):
    rows = rows_of(name)
    path = write(tmp_path, name, [*rows, damage(rows[0])] * (1 + QQP_SHORT_ROWS))
    line = len(rows) + (1 if name == "cola" else 2)
    if name == "qqp" and "\tmore" not in damage(""):
        line += QQP_SHORT_ROWS * (len(rows) + 1)
    assert f"{path}, line {line}: malformed row" in refused(tmp_path, name)


def test_a_blank_line_is_a_malformed_row(tmp_path):
    path = write(tmp_path, "rte", ["0\ta\tb\tentailment", "", "1\ta\tb\tentailment"])
    assert f"{path}, line 3: malformed row, 1 field where 4 are expected." in refused(
        tmp_path, "rte"
    )


def test_the_few_broken_rows_of_qqp_are_left_out(tmp_path):
    rows = rows_of("qqp")
    write(tmp_path, "qqp", [*rows[:3], *["7\t8\t9\ta question cut"] * QQP_SHORT_ROWS, *rows[3:]])
    task = tasks.load("qqp", tmp_path)
    assert task.train == task.dev


@pytest.mark.parametrize("name", [name for name in GLUE if name != "stsb"])
def test_a_label_outside_the_set_is_named_with_its_line(tmp_path, name):
    row = LAYOUTS[name][2].format(i=0, text="x", label="maybe")
    path = write(tmp_path, name, [*rows_of(name), row])
    line = len(TRAPS) + (1 if name == "cola" else 2)
    error = refused(tmp_path, name)
    assert f"{path}, line {line}: unknown label 'maybe'; allowed: " in error
    assert error.endswith(
        {
            "rte": "entailment, not_entailment.",
            "qnli": "entailment, not_entailment.",
            "mnli": "entailment, neutral, contradiction.",
        }.get(name, "0, 1.")
    )


@pytest.mark.parametrize("score", ["5.001", "-0.1", "nan", "inf", "", "high"])
def test_a_score_outside_zero_to_five_is_named_with_its_line(tmp_path, score):
    row = LAYOUTS["stsb"][2].format(i=0, text="x", label=score)
    path = write(tmp_path, "stsb", [*rows_of("stsb"), row])
    error = refused(tmp_path, "stsb")
    assert error == f"{path}, line 8: the score must be from 0 to 5, got {score!r}."


@pytest.mark.parametrize("name", ["cola", "rte"])
def test_a_split_without_examples_is_refused(tmp_path, name):
    path = write(tmp_path, name, [])
    assert f"{path} holds no examples" in refused(tmp_path, name)


def test_an_empty_file_is_refused(tmp_path):
    for name in ("rte", "cola"):
        write(tmp_path, name).write_bytes(b"")
        assert "is the download complete?" in refused(tmp_path, name)


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    path = write(tmp_path, "cola")
    path.write_bytes("s\t1\t\tok\ns\t1\t\tcaf\u00e9".encode("latin-1"))
    assert f"{path}, line 2: not UTF-8 (byte 0xe9)" in refused(tmp_path, "cola")


def test_the_hubs_single_precision_gives_back_every_score_of_the_files():
    for thousandths in range(5001):
        score = thousandths / 1000
        assert glue._decimal(float(np.float32(score))) == score


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("PEFTLAB_DATA_DIR")
    if not folder:
        pytest.skip("the real GLUE files: PEFTLAB_DATA_DIR is not set")
    return Path(folder)


def names_here() -> list[str]:
    """The founding report's four tasks, and whatever else the folder has: none is skipped there."""
    folder = Path(os.environ.get("PEFTLAB_DATA_DIR", "."))
    four = ["cola", "mrpc", "rte", "stsb"]
    return [name for name in GLUE if name in four or GLUE[name].is_here(folder)]


def loaded(real: Path, name: str) -> Task:
    return tasks.load(name, real)


REAL = {  # train, dev, dev's counts by label where they were counted
    "cola": (8551, 1043, {0: 322, 1: 721}),
    "mrpc": (3668, 408, {0: 129, 1: 279}),
    "rte": (2490, 277, {0: 146, 1: 131}),
    "stsb": (5749, 1500, None),
    "sst2": (67349, 872, None),
    "qnli": (104743, 5463, None),
    "qqp": (None, 40430, None),  # train: the hub has 363846, other loaders 363849
    "mnli": (392702, 9815, None),
    "wnli": (635, 71, None),
}


@pytest.mark.glue
@pytest.mark.parametrize("name", names_here())
def test_the_real_files_have_all_their_rows(real, name):
    task = loaded(real, name)
    n_train, n_dev, counts = REAL[name]
    assert n_train in {None, len(task.train)}
    assert len(task.dev) == n_dev
    assert counts is None or Counter(task.dev.labels) == counts


@pytest.mark.glue
@pytest.mark.parametrize("name", names_here())
def test_no_real_quote_is_lost(real, name):
    task = loaded(real, name)
    row = GLUE[name]
    content = (real / row.folder / "train.tsv").read_bytes()
    header, *lines = content.decode("utf-8-sig").split("\n")
    picked = row.text if row.n_fields else [header.split("\t").index(str(c)) for c in row.text]
    lines = [header, *lines] if row.n_fields else lines
    fields = [line.split("\t") for line in lines if line]
    quotes = sum(parts[int(i)].count('"') for parts in fields for i in picked)
    assert sum(text.count('"') for texts in task.train.texts for text in texts) == quotes
    assert all(text for texts in task.dev.texts for text in texts)


@pytest.mark.glue
def test_real_scores_reach_from_zero_to_five(real):
    labels = loaded(real, "stsb").train.labels
    assert (min(labels), max(labels)) == (0.0, 5.0)


def test_the_home_folder_of_nobody_is_explained() -> None:
    with pytest.raises(RequestError, match=r"~nobody99/glue can't be found"):
        tasks.load("rte", Path("~nobody99/glue"))
