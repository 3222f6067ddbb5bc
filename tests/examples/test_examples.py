"""The examples run, on a tiny model and for one epoch, and are as short as they say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import decoder
import glue
import pytest
import tickets

from peftlab.tasks import Task

pytestmark = pytest.mark.shown
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_methods_forgotten: None) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_is_short_and_says_how_it_is_run_and_for_how_long() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.stem for file in files] == ["decoder", "glue", "own_method", "tickets"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60, file.name
        head = text.split('"""')[1]
        assert f"python examples/{file.name}" in head
        assert "minute" in head or "How long it takes" in head


def test_tickets_go_from_a_csv_to_answers(folder: Path, tiny_model: Path) -> None:
    answers = tickets.main(str(tiny_model), seeds=(0,), epochs=1)
    assert len(answers) == 2
    assert set(answers) <= set(tickets.TICKETS)
    assert (folder / "best" / "peftlab.json").is_file()
    train, later = (read(folder / name) for name in ("tickets.csv", "later.csv"))
    assert (len(train), len(later)) == (384, 256)
    assert not train & later


def read(path: Path) -> set[str]:
    """The texts of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["text"] for row in csv.DictReader(file)}


def test_glue_ends_with_a_row_to_take(folder: Path, tiny_model: Path) -> None:
    examples = [(f"the cat sees {i}", f"the dog hears {i}", i % 2) for i in range(24)]
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for name in ("train", "dev"):
        (folder / "MRPC").mkdir(exist_ok=True)
        lines = [f"{label}\t0\t0\t{a} {name}\t{b}" for a, b, label in examples]
        (folder / "MRPC" / f"{name}.tsv").write_text(head + "\n".join(lines), encoding="utf-8")
    rows = ("head", "lora")
    found = glue.main(folder, str(tiny_model), ("mrpc",), rows, (0,), measure=False, epochs=1)
    assert [(pair.a, pair.b) for pair in found.pairs] == [rows]
    assert found.recommendation is not None
    assert found.recommendation.row in rows


def test_a_decoder_is_made_and_trained_on_a_base_in_four_bits(tiny_task: Task) -> None:
    scores = decoder.main(tiny_task, epochs=1, width=64, layers=1)
    assert list(scores) == ["lora", "qlora[targets=all-linear]"]
    assert all(-1 <= score <= 1 for score in scores.values())


def test_a_method_of_one_s_own_trains_what_it_says(
    tiny_model: Path, tiny_task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    import own_method  # here, and not above: it registers its method, which is forgotten again

    scores = own_method.main(str(tiny_model), tiny_task, epochs=1)
    assert [name.split("[")[0] for name in scores] == ["lora", "norms", "norms"]
    trained = re.findall(r"^norms\S* +(\d+) numbers", capsys.readouterr().out, re.MULTILINE)
    assert trained == ["320", "160"]  # five norms 32 wide: gain and bias, or the gain
