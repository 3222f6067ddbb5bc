"""A wrong input ends in one short message and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab import network
from peftlab.adapters import save
from peftlab.cli import main
from peftlab.methods import inject, make
from peftlab.models import load_model

LONG = "x" * 5000
DIGITS = "9" * 4400
DEEP = "[" * 100_000
LABELS = "".join(f"the cat {i},{i % 2}\n" for i in range(20))
OURS = ("--text", "a", "--label", "b")
Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Run the command line in a folder of its own; its message, if it refuses as it should."""
    room, scratch = tmp_path / "room", tmp_path / "scratch"
    room.mkdir(exist_ok=True)
    scratch.mkdir()
    monkeypatch.chdir(room)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(network, "hub_problem", lambda path="": "no network in tests")
    monkeypatch.delenv("PEFTLAB_DATA_DIR", raising=False)

    def run(*words: object) -> str:
        before = sorted(room.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["peftlab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert stop.value.code == 2, shown.err
        assert "Traceback" not in shown.err
        assert "inside peftlab" not in shown.err
        assert 0 < len(shown.err.strip()) < 1000
        assert shown.out == ""
        assert sorted(room.rglob("*")) == before
        # torch makes one of its own and keeps it
        assert [p for p in scratch.iterdir() if not p.name.startswith("torchinductor")] == []
        return shown.err

    return run


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir(exist_ok=True)
    return tmp_path / "room"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", f"a,b\n{LABELS}z,{DIGITS}\n", "d.csv, line 22: a label of more than 4000 digits"),
        ("d.tsv", f"a\tb\nx\t1\ny\t-{DIGITS}\n", "d.tsv, line 3: a label of more than 4000 digits"),
        ("d.jsonl", f'{{"a": "x", "b": {DIGITS}}}\n', "d.jsonl, line 1: not JSON (Exceeds"),
        ("d.csv", f"a,b\n{LABELS}z,{DIGITS}.5\n", "must be a finite number"),
        ("d.jsonl", DEEP, "d.jsonl, line 1: not JSON (maximum recursion depth"),
        ("d.jsonl", '{"a":' * 50_000, "d.jsonl, line 1: not JSON (maximum recursion depth"),
    ],
)
def test_data(name: str, text: str, message: str, room: Path, refused: Refused) -> None:
    (room / name).write_text(text)
    assert message in refused("compare", "--data", name, *OURS)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_dev_label_of_thousands_of_digits(kind: str, room: Path, refused: Refused) -> None:
    (room / "d.csv").write_text(f"a,b\n{LABELS}")
    given = f'{{"a": "z", "b": "{DIGITS}"}}' if kind == "jsonl" else f"a,b\nz,{DIGITS}\n"
    (room / f"dev.{kind}").write_text(given)
    said = refused("compare", "--data", "d.csv", "--dev", f"dev.{kind}", *OURS)
    assert f"dev.{kind}, line " in said


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--seeds", DIGITS),
        ("compare", "--seeds", f"0,{2**32}"),
        ("train", "--task", "acceptability", "--out", "o", "--seed", DIGITS),
        ("train", "--task", "acceptability", "--out", "o", "--seed", 2**32),
        ("compare", "--epochs", DIGITS),
        ("compare", "--lr", DIGITS),
        ("compare", "--methods", f"lora[rank={DIGITS}]"),
        ("compare", "--methods", f"lora[rank={DEEP[:5000]}]"),
        ("compare", "--set", f"training.epochs={DIGITS}"),
    ],
)
def test_numbers(words: tuple[object, ...], refused: Refused) -> None:
    refused(*words)


@pytest.mark.parametrize(
    "text",
    [
        f"seeds = [{DIGITS}]",
        f"seeds = {DEEP}",
        'model = "a\\u0000b"',
        'data = { path = "\\u0000.csv", text = ["a"], label = "b" }',
        f'name = "{LONG}"\nmodel = "MODEL"\nmethods = ["head"]\ntasks = ["acceptability"]',
    ],
    ids=["digits", "deep", "null-in-model", "null-in-path", "long-name"],
)
def test_suite_files(text: str, room: Path, tiny_model: Path, refused: Refused) -> None:
    (room / "s.toml").write_text(text.replace("MODEL", str(tiny_model)))
    refused("compare", "s.toml")


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--model", LONG),
        ("compare", "--model", f"./{LONG}"),
        ("compare", "--model", "~nobody-of-this-name/model"),
        ("compare", "--data", f"{LONG}.csv", *OURS),
        ("compare", "--tasks", LONG),
        ("compare", "--methods", LONG),
        ("compare", "--tasks", "mrpc", "--data-dir", LONG),
        ("compare", LONG),
        ("train", "--task", "acceptability", "--out", LONG),
        ("train", "--out", "o", "--task", LONG),
        ("predict", LONG, "d.csv", "--out", "o.csv"),
        ("predict", "adapter", LONG, "--out", "o.csv"),
        ("predict", "adapter", "d.csv", "--out", f"{LONG}.csv"),
        ("merge", LONG, "--out", "o"),
        ("merge", "adapter", "--out", LONG),
        ("export", LONG, "--to", "o"),
        ("report", LONG),
        ("methods", LONG),
        ("tasks", "--data-dir", LONG),
        ("doctor", "--out", LONG),
    ],
)
def test_names_of_thousands_of_characters(
    words: tuple[str, ...], tiny_model: Path, refused: Refused
) -> None:
    model = ("--model", str(tiny_model))
    refused(*words, *(model if words[0] == "train" else ()))


def test_an_output_folder_that_can_not_be_made_is_refused_before_the_training(
    room: Path, tiny_model: Path, refused: Refused
) -> None:
    (room / "d.csv").write_text(f"a,b\n{LABELS}")
    words = ("train", "--model", tiny_model, "--data", "d.csv", *OURS, "--method", "head", "--out")
    for out in ("d.csv/x", "/proc/x", LONG):
        assert "can't be written" in refused(*words, out)
    words = ("compare", *words[1:-3], "--methods", "head", "--out")
    assert "too long" in refused(*words, LONG)
    assert "is not writable" in refused(*words, "d.csv/x")


@pytest.fixture
def model(room: Path, tiny_model: Path) -> Path:
    (room / "d.csv").write_text(f"a,b\n{LABELS}")
    return shutil.copytree(tiny_model, room / "model")


COMPARE = ("compare", "--model", "./model", "--data", "d.csv", *OURS, "--methods", "lora")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": -32}, "model model can't be made: "),
        ({"hidden_size": 10**9}, "model model can't be made: "),
        ({"intermediate_size": -1}, "model model can't be made: "),
        ({"vocab_size": -1}, "has no token to pad with among the model's -1"),
        ({"max_position_embeddings": -5}, "takes no text: "),
        ({"num_attention_heads": 0}, "model model can't be made: "),
        ({"hidden_act": "nonsense"}, "model model can't be made: "),
        ({"hidden_act": 5}, "can't be "),
        ({"model_type": "gpt2"}, "don't fit its config.json"),
        ({"model_type": "distilbert"}, "don't fit its config.json"),
        ({"model_type": "clip"}, "no sequence-classification class"),
        ({"model_type": "fnet"}, "can't be trained in batches"),
        ({"model_type": LONG}, "can't be read"),
        ({"num_hidden_layers": 0}, "has no linear layer to adapt"),
    ],
)
def test_configurations(
    changed: dict[str, Any], message: str, model: Path, refused: Refused
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changed))
    assert message in refused(*COMPARE)


@pytest.mark.parametrize("text", [DEEP, "", "5", "null", "[]", f'{{"vocab_size": {DIGITS}}}'])
def test_a_config_that_is_none(text: str, model: Path, refused: Refused) -> None:
    (model / "config.json").write_text(text)
    assert "config.json of model model can't be read" in refused(*COMPARE)


@pytest.mark.parametrize(
    "text",
    [
        *("5", "[]", "{}", DEEP, '{"weight_map": 5}', '{"weight_map": {"a": 5}}'),
        *('{"weight_map": {"a": null}}', '{"weight_map": {"a": "../model/model.safetensors"}}'),
        *(f'{{"weight_map": {{"a": "{LONG}"}}}}', '{"weight_map": {"a": ["b"]}}'),
        *('{"weight_map": {"a": "\\u0000"}}', '{"weight_map": {"a": "config.json"}}'),
    ],
)
def test_indices_of_weights(text: str, model: Path, refused: Refused) -> None:
    (model / "model.safetensors").rename(model / "shard.safetensors")
    (model / "model.safetensors.index.json").write_text(text)
    refused(*COMPARE)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", [DEEP, "5", '{"model_max_length": -5}', '{"model_max_length": "x"}']
)
def test_tokenizers(file: str, text: str, model: Path, refused: Refused) -> None:
    (model / file).write_text(text)
    refused(*COMPARE)


@pytest.mark.parametrize("targets", ["(" * 3000, "a{99999999999}", "[", LONG])
def test_targets(targets: str, model: Path, refused: Refused) -> None:
    refused(*COMPARE[:-1], f"lora[targets={targets}]")


@pytest.fixture
def adapter(room: Path, tiny_model: Path) -> Path:
    (room / "d.csv").write_text("a\nthe cat\n")
    loaded, _ = load_model(str(tiny_model))
    save(inject(loaded, make("lora")), room / "adapter")
    return room / "adapter"


@pytest.mark.parametrize("file", ["peftlab.json", "adapter_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", [DEEP, "5", "[]", "{}", f'{{"r": {DIGITS}}}'])
def test_adapters(file: str, text: str, adapter: Path, refused: Refused) -> None:
    if file == "adapter_config.json":
        (adapter / "peftlab.json").unlink()
    (adapter / file).write_text(text)
    refused("predict", "adapter", "d.csv", "--out", "o.csv", "--text", "a")
    refused("merge", "adapter", "--out", "merged")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", -5),
        ("labels", ["one"]),
        ("label_type", "int"),  # of the labels a and b
        ("kind", LONG),
        ("columns", 5),
    ],
)
def test_cards(field: str, value: object, adapter: Path, refused: Refused) -> None:
    trained_on(adapter, {field: value})
    said = refused("predict", "adapter", "d.csv", "--out", "o.csv")
    assert "peftlab.json can't be read: " in said


def trained_on(adapter: Path, task: dict[str, object]) -> None:
    """Let the adapter's card tell of a task; `task` over a right one."""
    file = adapter / "peftlab.json"
    right = {"kind": "classes", "labels": ["a", "b"], "columns": ["a"], "max_length": 8}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task": right | task}))


def test_a_file_without_the_columns_of_training(adapter: Path, refused: Refused) -> None:
    trained_on(adapter, {"columns": ["sentence"]})
    said = refused("predict", "adapter", "d.csv", "--out", "o.csv")
    assert (
        "(d.csv). The adapter was trained on sentence; name this file's columns with --text" in said
    )
    said = refused("predict", "adapter", "d.csv", "--out", "o.csv", "--text", "b")
    assert "unknown column 'b'" in said and "trained" not in said


@pytest.mark.parametrize(
    "text", [DEEP, "5", "[]", "{}", '{"cells": [5]}', f'{{"cells": [{{"cell": "{LONG}"}}]}}']
)
def test_damaged_output_folders(text: str, room: Path, refused: Refused) -> None:
    (room / "out").mkdir()
    (room / "out" / "suite.json").write_text(text)
    refused("report", "out")
    refused("export", "out", "--to", "o")


def test_parquet_with_nulls(room: Path, refused: Refused) -> None:
    pq.write_table(pa.table({"a": ["x", None], "b": ["p", None]}), room / "d.parquet")
    assert "d.parquet, row 2: the label is empty" in refused(
        "compare", "--data", "d.parquet", *OURS
    )


def test_parquet_is_read_without_threads_of_arrow(
    room: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just started aborts a process that ends at once, in one run of four."""
    read, asked = pq.ParquetFile.read, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, *a, **more: asked.append(more["use_threads"]) or read(self, *a, **more),
    )
    test_parquet_with_nulls(room, refused)
    assert asked == [False]


@pytest.mark.slow
def test_folders_of_another_kind_are_named(adapter: Path, room: Path, refused: Refused) -> None:
    said = refused("compare", "--tasks", "acceptability", "--out", "adapter")
    assert "holds an adapter, and a comparison needs a folder of its own" in said
    (room / "out").mkdir()
    (room / "out" / "suite.json").write_text("{}")
    said = refused("train", "--task", "acceptability", "--out", "out")
    assert "holds what `peftlab compare` wrote, and not an adapter" in said


def test_numbers_that_nobody_means(room: Path, refused: Refused) -> None:
    said = refused("train", "--task", "acceptability", "--lr", "1e-4,1e-3", "--out", "o")
    assert "train takes one learning rate, got 2; `peftlab compare` takes several" in said
    (room / "out").mkdir()
    said = refused("report", "out", "--memory", "10")
    assert "memory must be a number with a unit, such as 2GiB or 800MiB, got '10'" in said
    (room / "d.csv").write_text(f"a,b\n{LABELS}")
    assert "d.csv is the file to answer" in refused("predict", "x", "d.csv", "--out", "d.csv")
    said = refused("train", "--task", "acceptability", "--out", "o", "--seed", "-1")
    assert "seed must be at least 0 and less than 2**32" in said


def test_nothing_is_trained_that_nobody_asked_for(room: Path, refused: Refused) -> None:
    """It was the demo's task, and it replaced the adapter that lay there."""
    said = refused("train", "--out", "o")
    assert "train needs data: give your own with --data, --text and --label, or a --task" in said


def test_what_is_given_twice(room: Path, refused: Refused) -> None:
    said = refused("plan", "--set", "training.lr=7e-3", "--lr", "2e-4")
    assert "--set training.lr=7e-3 and the option for lr exclude each other; leave one" in said
    said = refused("compare", "--set", "training.head_lr=7e-3", "--head-lr", "2e-4")
    assert "--set training.head_lr=7e-3 and the option for head_lr exclude each other" in said
    for command in ("plan", "compare"):
        said = refused(command, "--tune", "2", "--lr", "1e-3")
        assert "--lr 0.001 is given and --tune shall find it; leave one of them out" in said


def test_answers_are_not_put_among_an_adapter_s_files(adapter: Path, refused: Refused) -> None:
    for out in ("adapter/peftlab.json", "adapter/answers.csv"):
        said = refused("predict", "adapter", "d.csv", "--out", out)
        assert f"{out} lies in the adapter's folder, among its own files" in said


def test_a_column_with_a_comma_is_named_as_in_csv(room: Path, refused: Refused) -> None:
    (room / "e.csv").write_text('"my text, the 1st",b\n' + LABELS)
    said = refused("plan", "--data", "e.csv", "--text", "my text, the 1st", "--label", "b")
    assert "did you mean 'my text, the 1st'?" in said
    assert "in --text, a name with a comma stands in double quotes" in said
    said = refused("plan", "--data", "e.csv", "--text", '"my text, the 1st",c', "--label", "b")
    assert "unknown column 'c'" in said


def test_an_adapter_of_pairs_is_not_given_single_texts(adapter: Path, refused: Refused) -> None:
    trained_on(adapter, {"columns": ["a", "b"], "n_texts": 2})
    said = refused("predict", "adapter", "d.csv", "--out", "o.csv", "--text", "a")
    assert "the model was trained on pairs of texts and is given single texts" in said


def test_a_card_of_a_later_version(adapter: Path, refused: Refused) -> None:
    file = adapter / "peftlab.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    said = refused("predict", "adapter", "d.csv", "--out", "o.csv", "--text", "a")
    assert "it is of version 99, and this peftlab reads up to 1" in said
