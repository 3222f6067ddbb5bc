"""peftlab plan as a user meets it, and the line that every comparison begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.bench.cost import IMPORTS_MIB
from peftlab.cli import main
from peftlab.errors import RequestError
from peftlab.tasks import Task
from sessions import FakeSession

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def ask(tiny_model: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line here, on the tiny model and the tiny file; what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str, *words: str) -> None:
        data = ["--data", str(tiny_csv), "--text", "sentence", "--label", "answer"]
        given = ["--model", str(tiny_model), *data, "--epochs", "1", "--batch-size", "8", *words]
        monkeypatch.setattr("sys.argv", ["peftlab", command, *given])
        main()

    return run


def test_plan_says_every_cost_and_trains_nothing(
    ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ask("plan", "--methods", "head,lora", "--seeds", "0,1")
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    for word in ("base", "optim", "lora", "4 cells on tiny, time unknown: use --measure"):
        assert word in said
    assert not (tmp_path / "runs").exists()


def test_numbers_are_whole_in_a_narrow_terminal(
    ask: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peak of 480 was shown as 4."""
    shown = []
    for columns in ("200", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit):
            ask("plan", "--methods", "full,lora", "--seeds", "0")
        lines = capsys.readouterr().out.splitlines()
        shown.append(
            [line.split() for line in lines if line.startswith(("method", "full", "lora"))]
        )
    assert shown[0] == shown[1] and len(shown[0]) == 3


def test_where_steps_were_too_few_to_time_more_of_them_are_not_advised(
    ask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ask("plan", "--methods", "head", "--seeds", "0", "--measure", "--batch-size", "32")
    said = capsys.readouterr()
    assert "1 cell on tiny, time unknown: too few steps to tell" in said.out
    assert "running a few steps of" in said.err  # no terminal, which would draw it


def test_plan_in_json_has_parts_and_nulls(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ask("plan", "--methods", "lora", "--seeds", "0", "--json")
    document = json.loads(capsys.readouterr().out)
    (row,) = document["rows"]
    assert row["n_trainable"]["adapter"] > 0
    assert sum(row["memory"]["by_part"].values()) == pytest.approx(row["memory"]["peak_mib"])
    assert row["cell_s"] is None
    assert document["all_s"] is None
    assert document["peak_mib"] == row["memory"]["peak_mib"]


def test_a_comparison_begins_with_its_plan_and_later_ones_know_the_time(
    ask: Any, capsys: pytest.CaptureFixture[str], fake: None
) -> None:
    words = ["--methods", "head", "--keep", "none"]
    with pytest.raises(SystemExit):
        ask("compare", *words, "--seeds", "0")
    said = capsys.readouterr().err
    before, _, after = said.partition("plan: 1 cell, time unknown")
    assert "suite tiny-tiny: 1 cell, 0 done already" in before
    assert "[1/1] tiny · head · seed 0" in after
    assert " MiB (head)" in after
    with pytest.raises(SystemExit):
        ask("compare", *words, "--seeds", "0,1")
    assert "plan: 1 cell, about " in capsys.readouterr().err


def test_a_comparison_that_does_not_fit_is_refused(
    ask: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("peftlab.bench.foresee.available_mib", lambda device: 1.0)
    with pytest.raises(SystemExit) as ended:
        ask("compare", "--methods", "head", "--seeds", "0")
    assert ended.value.code == 2
    assert "1 of 1 methods would not fit into memory" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_plan_in_python_takes_what_compare_takes(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftlab.bench.foresee.available_mib", lambda device: 310.0)
    given: dict[str, Any] = {"model": tiny_model, "tasks": tiny_task, "methods": ["head"]}
    found = peftlab.plan(**given, seeds=[0, 1], batch_size=8)
    (row,) = found.rows
    assert (found.cells, row.cost.cells) == (2, 2)
    assert row.fits is False
    assert row.all_s is None
    with pytest.raises(RequestError, match="unknown method 'lroa'"):
        peftlab.plan(model=tiny_model, tasks=tiny_task, methods="lroa")
    with pytest.raises(RequestError, match="measure must be True or False, got 'no'"):
        peftlab.plan(model=tiny_model, tasks=tiny_task, measure="no")  # type: ignore[arg-type]


def test_plan_tells_what_compare_would_refuse_and_what_is_just_above_the_room(
    ask: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ask("plan", "--methods", "head", "--seeds", "0", "--json")
    peak = json.loads(capsys.readouterr().out)["peak_mib"]
    for share, words in ((0.8, "would not"), (0.9, "may not")):  # 15 % may be the prediction's
        room = IMPORTS_MIB + share * peak
        monkeypatch.setattr("peftlab.bench.foresee.available_mib", lambda device, room=room: room)
        with pytest.raises(SystemExit):
            ask("plan", "--methods", "head", "--seeds", "0")
        said = capsys.readouterr().out
        assert re.findall(r"(\w+ not) fit into memory: head on tiny", said) == [words]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains."""
    FakeSession.made = []
    for room in ("run", "tune"):
        monkeypatch.setattr(f"peftlab.bench.{room}.Session", FakeSession)


def test_trials_are_counted_in(ask: Any, capsys: pytest.CaptureFixture[str], fake: None) -> None:
    """6 trials on one rung: as many trainings, each on about nine tenths of the tokens."""
    with pytest.raises(SystemExit):
        ask("compare", "--methods", "head,lora", "--seeds", "0", "--keep", "none")
    capsys.readouterr()
    words = ["--methods", "head,lora[lr=1e-3,head_lr=1e-3]", "--seeds", "0,1", "--tune", "6"]
    with pytest.raises(SystemExit):
        ask("plan", *words, "--json")
    open_row, given = json.loads(capsys.readouterr().out)["rows"]
    assert (open_row["trials"], given["trials"], given["trials_s"]) == (6, 0, 0)
    assert open_row["trials_s"] == pytest.approx(6 * 0.9 * open_row["cell_s"], rel=0.1)
    assert open_row["all_s"] == pytest.approx(2 * open_row["cell_s"] + open_row["trials_s"])
    with pytest.raises(SystemExit):
        ask("plan", *words)
    assert "4 cells on tiny after about 6 trainings of trials" in capsys.readouterr().out


def test_what_has_run_is_not_counted(
    ask: Any, capsys: pytest.CaptureFixture[str], fake: None
) -> None:
    """Three trials of lora and its first cell have run; nothing of head."""
    tuned = ["--tune", "3", "--keep", "none"]
    with pytest.raises(SystemExit):
        ask("compare", "--methods", "lora", "--seeds", "0", *tuned)
    capsys.readouterr()
    words = ["--methods", "lora,head", "--seeds", "0,1", "--tune", "3"]
    with pytest.raises(SystemExit):
        ask("plan", *words, "--json")
    document = json.loads(capsys.readouterr().out)
    lora, head = document["rows"]
    assert document["done"] == 1
    assert [(row["due"], row["trials"]) for row in (lora, head)] == [(1, 0), (2, 3)]
    assert lora["all_s"] == pytest.approx(lora["cell_s"])
    with pytest.raises(SystemExit):
        ask("plan", *words)
    said = capsys.readouterr().out
    assert "4 cells on tiny after about 3 trainings of trials, " in said
    assert "; 1 of them done already, in runs/tiny-tiny" in said
    with pytest.raises(SystemExit):
        ask("compare", *words, "--keep", "none")
    assert "plan: 3 cells" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ask("plan", *words)
    said = capsys.readouterr().out
    assert "4 cells on tiny, nothing left to train; 4 of them done already, in runs/tiny" in said


def test_a_label_is_no_markup(
    ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake: None
) -> None:
    """`[/b]` closes a tag that was never opened, and `[rank=4]` vanished as one."""
    suite = tmp_path / "s.toml"
    suite.write_text('methods = [{ name = "head", label = "a[/b]" }, "lora[rank=4]"]\n')
    with pytest.raises(SystemExit) as end:
        ask("compare", str(suite), "--tune", "2", "--seeds", "0", "--keep", "none")
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    assert "(lora[rank=4])" in said.err
