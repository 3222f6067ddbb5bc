"""From a comparison to an answered file: export, predict, merge and train, as a user types them."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from peftlab.api.inference import predict_file
from peftlab.bench.execute import Worker
from peftlab.bench.grid import Grid
from peftlab.cli import main
from peftlab.records.lock import LOCK
from peftlab.records.store import Store

pytestmark = pytest.mark.usefixtures("warm")
Type = Callable[..., str]


@pytest.fixture
def type_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Type:
    """Run a command in an empty folder; returns what it printed."""
    monkeypatch.delenv("PEFTLAB_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["peftlab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out if code == 0 else shown.err

    return run


def test_the_winner_of_a_comparison_answers_a_file(
    type_in: Type, tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    short = ["--model", tiny_model, "--epochs", "2", "--batch-size", "8", "--quiet"]
    methods = ["--methods", "lora[rank=2],head", "--seeds", "0,1", "--out", "out"]
    type_in("compare", *data, *short, *methods)
    shown = type_in("export", "out", "--to", "best")
    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "records").iterdir()]
    rows = {r["method"]["label"] for r in records}
    mean = {
        row: sum(r["score"]["accuracy"] for r in records if r["method"]["label"] == row)
        for row in rows
    }
    assert mean[shown.split(" · ")[1]] == max(mean.values())
    assert "in its record" in shown

    _, row, seed = shown.split(":")[0].split(" · ")
    (record,) = [r for r in records if (r["method"]["label"], f"seed {r['seed']}") == (row, seed)]
    cell = record["cell"]
    record["score"]["accuracy"] += 0.01  # what rounding may do: an example of a hundred
    (tmp_path / "out" / "records" / f"{cell}.json").write_text(json.dumps(record))
    assert "in its record" in type_in("export", "out", "--to", "again", "--method", row)
    moved = shutil.move(tiny_model, tmp_path / "moved")
    try:
        said = type_in("export", "out", "--to", "again", code=2)
        assert "say where it lies now with --base" in said
        assert "in its record" in type_in("export", "out", "--to", "again", "--base", moved)
    finally:
        shutil.move(moved, tiny_model)
    file = tmp_path / "out" / "adapters" / cell / "adapter_model.safetensors"
    save_file({name: -x for name, x in load_file(file).items()}, file, {"format": "pt"})
    assert "it is not exported" in type_in("export", "out", "--to", "no", code=2)
    assert not (tmp_path / "no").exists()
    (tmp_path / "out" / "predictions" / f"{cell}.jsonl").write_text("{")
    assert "is missing or damaged" in type_in("export", "out", "--to", "no", code=2)

    assert "48 rows" in type_in("predict", "best", tiny_csv, "--out", "answers.csv")
    with (tmp_path / "answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert list(answers[0]) == ["sentence", "answer", "prediction", "score_cat", "score_other"]
    for row in answers:
        scores = {name: float(row[f"score_{name}"]) for name in ("cat", "other")}
        assert row["prediction"] == max(scores, key=lambda name: scores[name])
        assert sum(scores.values()) == pytest.approx(1)

    assert "logits move by at most" in type_in("merge", "best", "--out", "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert plain.config.id2label == {0: "cat", 1: "other"}


def test_the_winner_of_an_earlier_suite_in_the_folder_is_exported(
    type_in: Type, tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    """Its data is found although a later suite, of other data, has rewritten suite.json."""
    other = tmp_path / "other.csv"
    other.write_text(tiny_csv.read_text(encoding="utf-8"), encoding="utf-8")
    short = ["--model", tiny_model, "--epochs", "1", "--batch-size", "8", "--quiet"]
    for file, method in ((tiny_csv, "lora[rank=2]"), (other, "head")):
        data = ["--data", file, "--text", "sentence", "--label", "answer"]
        type_in("compare", *data, *short, "--methods", method, "--seeds", "0", "--out", "out")
    for task in ("tiny", "other"):
        assert "in its record" in type_in("export", "out", "--to", task, "--task", task)
    assert "several tasks" in type_in("export", "out", "--to", "no", code=2)

    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    longer = [*short, "--methods", "lora[rank=2]", "--seeds", "0,1", "--lr", "1e-4"]
    type_in("compare", *data, *longer, "--out", "out")
    type_in("export", "out", "--to", "again", "--task", "tiny", "--method", "lora[rank=2]")
    shown = ["--task", "tiny", "--method", "lora[rank=2] (lr 0.0001)"]
    assert "in its record" in type_in("export", "out", "--to", "exact", *shown)
    record = json.loads((tmp_path / "exact" / "record.json").read_text())
    assert record["training"]["lr"] == 1e-4
    weights = (tmp_path / "again" / "adapter_model.safetensors").read_bytes()
    records = [json.loads(p.read_text()) for p in (tmp_path / "out" / "records").iterdir()]
    # of the two rows of one label, the one with the most seeds
    cells = [r["cell"] for r in records if r["training"]["lr"] == 1e-4]
    paths = [tmp_path / "out" / "adapters" / cell / "adapter_model.safetensors" for cell in cells]
    assert weights in [path.read_bytes() for path in paths]


def test_train_writes_one_adapter_that_predicts(
    type_in: Type, tiny_model: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    short = ["--model", tiny_model, "--epochs", "1", "--batch-size", "8", "--quiet"]
    short += ["--max-length", "16"]
    shown = type_in("train", *data, *short, "--method", "dora[rank=2]", "--out", "mine")
    record = json.loads((tmp_path / "mine" / "record.json").read_text())
    assert f"accuracy {record['score']['accuracy']:.4f}" in shown
    assert record["method"]["name"] == "dora"
    type_in("predict", "mine", tiny_csv, "--out", "answers.jsonl")
    (tmp_path / "long.csv").write_text(f"sentence\nthe cat\n{'very ' * 200}\n")
    predicted = predict_file(Path("mine"), Path("long.csv"), Path("long.jsonl"))
    assert (predicted.n_cut, predicted.max_length) == (1, 16)
    first = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert set(first) == {"sentence", "answer", "prediction", "score_cat", "score_other"}


@pytest.fixture
def train(type_in: Type, tiny_model: Path, tiny_csv: Path) -> Type:
    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    short = ["--model", tiny_model, "--epochs", "1", "--batch-size", "8"]
    return functools.partial(type_in, "train", *data, *short, "--method", "head")


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_stopped_train_is_kept_beside_its_folder_until_it_ends(
    train: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: str, keeps: bool) -> str:
        def run_grid(grid: Grid, out: Path, *_: object, **__: object) -> NoReturn:
            checkpoint = Store(out).checkpoint(grid.cells[0].name)
            if keeps:
                checkpoint.parent.mkdir()
                checkpoint.write_text("")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("peftlab.api.train.run_grid", run_grid)
            return train(*words, code=130)

    assert "stopped; nothing is kept\n" in stop("--out", "new/mine", keeps=False)
    assert not (tmp_path / "new").exists()
    shown = stop("--out", "new/mine", keeps=True)
    (kept,) = hidden(tmp_path / "new")
    assert f"is kept in {kept}, and the same command goes on from there" in shown
    assert kept.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "new" / "mine").exists()
    # another request has a folder of its own, and leaves the first one's alone
    stop("--out", "new/mine", "--lr", "1e-4", keeps=False)
    assert hidden(tmp_path / "new") == [kept]
    with FileLock(kept / LOCK):
        assert "another command writes to" in train("--out", "new/mine", code=2)
    train("--out", "new/mine")
    assert hidden(tmp_path / "new") == []
    assert (tmp_path / "new" / "mine" / "record.json").exists()


def test_a_train_that_could_not_be_written_is_written_by_the_same_command(
    train: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for copyfile, code in ((full, 2), (stop, 130)):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", copyfile)
            shown = train("--out", "new/mine", code=code)
        (kept,) = hidden(tmp_path / "new")
        assert f"is kept in {kept}, and the same command" in shown
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", lambda *_: pytest.fail("it is trained"))
        train("--out", "new/mine")
    assert (tmp_path / "new" / "mine" / "adapter_model.safetensors").exists()
    assert hidden(tmp_path / "new") == []


def test_what_is_wrong_is_said_before_anything_is_computed(
    type_in: Type, tiny_csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    data = ["--data", tiny_csv, "--text", "sentence", "--label", "answer"]
    for words, message in [
        (["predict", "nowhere", tiny_csv, "--out", "a.csv"], "there is no folder nowhere"),
        (["predict", "empty", tiny_csv, "--out", "a.csv"], "adapter_model.safetensors is wanted"),
        (["predict", "empty", tiny_csv, "--out", "a.xls"], "must end in one of .csv"),
        (["merge", "empty", "--out", "plain"], "adapter_model.safetensors is wanted"),
        (["export", "nowhere", "--to", "best"], "no records"),
        (["train", *data, "--method", "lora,head", "--out", "x"], "train runs one cell"),
        (["train", *data, "--out", "mine"], "holds something that is not an adapter"),
        (["train", "--task", "paraphase", "--out", "x"], "did you mean 'paraphrase'"),
    ]:
        assert message in type_in(*words, code=2)
