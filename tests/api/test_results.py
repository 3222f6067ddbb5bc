"""What a comparison left, as a script or a notebook has it: table, records, the winner."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import peftlab
from peftlab.api.progress import callers_console
from peftlab.records.store import Store
from peftlab.tasks import Task

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    peftlab.compare(model=tiny_model, tasks=tiny_task, methods=["head", "lora"], out=out, epochs=1)
    return out


def test_a_folder_shows_its_table_and_what_to_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter sets it
    shown = peftlab.show(folder)
    lines = str(shown).splitlines()
    assert "\x1b" not in str(shown)
    assert any(line.lstrip().startswith("lora") for line in lines)
    assert any(line.startswith("Take ") for line in lines)
    assert lines[-1] == f"page: {shown.page.resolve()}" and shown.page.is_file()
    assert repr(shown) == str(shown)  # which is what a notebook's cell ends with
    alone = str(peftlab.show(folder, methods=["head"]))
    assert not any(line.lstrip().startswith("lora") for line in alone.splitlines())
    with pytest.raises(peftlab.RequestError, match="folder must be a path"):
        peftlab.show(5)  # type: ignore[arg-type]


def test_several_folders_are_shown_side_by_side(folder: Path, tmp_path: Path) -> None:
    """As `peftlab report A B` does; Python could show a single one."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shown = peftlab.show([folder, other], out=tmp_path / "both")
    assert shown.page == tmp_path / "both" / "report" / "index.html" and shown.page.is_file()
    lines = str(shown).splitlines()
    for side in ("out", "other"):
        assert any(line.startswith(f" lora ({side})") for line in lines)
    assert lines[-1] == f"page: {shown.page.resolve()}"
    assert shown.notes and set(shown.notes) <= set(lines)
    with pytest.raises(peftlab.RequestError, match="is for several folders"):
        peftlab.show(folder, out=tmp_path / "both")
    with pytest.raises(peftlab.RequestError, match="folder must be a folder, or a list"):
        peftlab.show([])


def test_records_come_back_and_are_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    records = peftlab.load_records(folder)
    assert records == Store(folder).records() and len(records) == 2
    score = records[0].score
    assert score is not None
    assert repr(records[0]) == f"<Record {records[0].cell}: accuracy {score['accuracy']:.3f}>"
    with pytest.raises(peftlab.RequestError, match="has no records"):
        peftlab.load_records(tmp_path)


def test_a_record_that_can_not_be_read_is_told_of(folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    broken = next((out / "records").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"the record of {broken.stem} can't be read"):
        assert len(peftlab.load_records(out)) == 1


def test_a_record_without_a_score_has_a_line_too(folder: Path) -> None:
    record = peftlab.load_records(folder)[0].model_copy(update={"score": None})
    assert str(record) == repr(record) == f"<Record {record.cell}: no score>"


def test_of_two_tasks_of_one_name_the_one_that_is_given_is_exported(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    second = dataclasses.replace(tiny_task, dev=tiny_task.train)
    for task in (tiny_task, second):
        asked = {"model": tiny_model, "tasks": task, "methods": "head", "epochs": 1}
        peftlab.compare(**asked, out=tmp_path / "out", quiet=True)
    found = peftlab.export(tmp_path / "out", tmp_path / "best", task=tiny_task)
    assert found.record.task.sha256 == tiny_task.sha256()


def test_a_later_task_of_one_name_may_be_of_another_kind(
    folder: Path, tiny_task: Task, tmp_path: Path
) -> None:
    """Its metric, which is none of classes, was asked of the task that is given."""
    out = Path(shutil.copytree(folder, tmp_path / "out"))
    record = peftlab.load_records(out)[0]
    changes = {"kind": "regression", "main_metric": "rmse", "sha256": "0" * 64}
    later = {"cell": "later", "task": record.task.model_copy(update=changes), "score": {"rmse": 1}}
    Store(out).write_record(record.model_copy(update=later))
    assert peftlab.load_records(out)[-1].cell == "later"
    exported = peftlab.export(out, tmp_path / "best", task=tiny_task)
    assert exported.record.task.sha256 == tiny_task.sha256()


def test_a_task_made_in_python_is_given_to_export_again(
    folder: Path, tiny_task: Task, tmp_path: Path
) -> None:
    with pytest.raises(peftlab.RequestError, match=r"handed over in Python.*task="):
        peftlab.export(folder, tmp_path / "best")
    found = peftlab.export(folder, tmp_path / "best", task=tiny_task)
    assert found.record.score is not None
    assert found.reached == found.record.score["accuracy"]
    other = dataclasses.replace(tiny_task, dev=tiny_task.train)
    with pytest.raises(peftlab.RequestError, match=r"is not what .* saw"):
        peftlab.export(folder, tmp_path / "other", task=other)
    with pytest.raises(peftlab.RequestError, match="task must be a name or a Task"):
        peftlab.export(folder, tmp_path / "other", task=5)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_a_task_is_judged_by_the_metric_of_its_comparison(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    asked = {"model": tiny_model, "tasks": tiny_task, "methods": "head", "epochs": 1}
    peftlab.compare(**asked, metric="matthews", out=tmp_path / "out")
    found = peftlab.export(tmp_path / "out", tmp_path / "best", task=tiny_task)
    assert found.record.score is not None
    assert found.reached == found.record.score["matthews"] != found.record.score["accuracy"]


def test_a_task_that_was_judged_on_train_is_carved_again(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    asked = {"model": tiny_model, "tasks": tiny_task, "methods": "head", "epochs": 1}
    peftlab.compare(**asked, judge_on="train", out=tmp_path / "out")
    found = peftlab.export(tmp_path / "out", tmp_path / "best", task=tiny_task)
    assert found.record.score is not None
    assert found.reached == found.record.score["accuracy"]


def test_quiet_shows_nothing(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {"model": tiny_model, "tasks": tiny_task, "methods": "head", "epochs": 1}
    peftlab.compare(**asked, out=tmp_path / "quiet", quiet=True)
    model, tokenizer = peftlab.load_model(str(tiny_model))
    peftlab.train(model, tokenizer, tiny_task, "head", epochs=1, quiet=True)
    assert capfd.readouterr() == ("", "")
    peftlab.compare(**asked, out=tmp_path / "told")
    assert "head" in capfd.readouterr().err
    with pytest.raises(peftlab.RequestError, match="quiet must be True or False, got 'no'"):
        peftlab.compare(**asked, out=tmp_path / "told", quiet="no")  # type: ignore[arg-type]


def test_no_rows_to_show_are_refused_as_they_were_given(folder: Path) -> None:
    with pytest.raises(peftlab.RequestError, match=r"methods must be a name.*, got \[\]"):
        peftlab.show(folder, methods=[])


def test_a_notebook_s_progress_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars kept each of their frames, and rich's own way there needs a library that is not here."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    console = callers_console()
    assert console.stderr and not console.is_jupyter and not console.is_terminal
    monkeypatch.setattr("rich.console._is_jupyter", lambda: False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert callers_console().is_terminal
