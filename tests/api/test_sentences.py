"""The texts of dev examples on request: of the very data that was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.api.again import task_again
from peftlab.api.sentences import sentences
from peftlab.bench.grid import resolve
from peftlab.bench.run import Observer, write_suite
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.records.sides import join
from peftlab.records.store import Store
from peftlab.tasks import Task, load
from sessions import FakeSession


def compared(out: Path, model: Path, **request: object) -> Path:
    """A folder of finished cells, without a training."""
    grid = resolve(make_suite(model=str(model), methods=["head"], seeds=[0], **request))
    store = Store(out)
    store.prepare()
    write_suite(store, grid)
    session = FakeSession(store, grid.tasks, Observer())
    for cell in grid.cells:
        session.run(cell, keep_adapter=False)
    return out


def test_a_built_in_task_s_dev_texts_are_given_by_the_hash_of_its_data(
    tmp_path: Path, tiny_model: Path
) -> None:
    out = compared(tmp_path / "out", tiny_model, tasks=["acceptability", "paraphrase"])
    singles, pairs = load("acceptability"), load("paraphrase")
    assert sentences(out) == {
        singles.sha256(): [text for (text,) in singles.dev.texts],
        pairs.sha256(): [f"{a} | {b}" for a, b in pairs.dev.texts],
    }
    assert list(sentences(out, ["paraphrase"])) == [pairs.sha256()]


def test_a_part_of_train_that_judged_is_told_as_such(tmp_path: Path, tiny_model: Path) -> None:
    out = compared(tmp_path / "out", tiny_model, tasks=["acceptability"], judge_on="train")
    (texts,) = sentences(out).values()
    assert set(texts) <= {text for (text,) in load("acceptability").train.texts}


def test_a_file_s_texts_are_read_again_and_not_once_it_has_changed(
    tmp_path: Path, tiny_model: Path, tiny_csv: Path
) -> None:
    data = {"path": tiny_csv, "text": ["sentence"], "label": "answer"}
    out = compared(tmp_path / "out", tiny_model, data=data)
    (texts,) = sentences(out).values()
    assert texts and all(f"\n{text}," in tiny_csv.read_text() for text in texts)
    tiny_csv.write_text(tiny_csv.read_text().replace(texts[0], "another", 1))
    with pytest.raises(RequestError, match="is no longer what"):
        sentences(out)
    tiny_csv.unlink()
    with pytest.raises(RequestError, match="no such file"):
        sentences(out)


def test_of_joined_folders_each_task_is_read_where_its_own_found_it(
    tmp_path: Path, tiny_model: Path, tiny_csv: Path
) -> None:
    data = {"path": tiny_csv, "text": ["sentence"], "label": "answer"}
    one = compared(tmp_path / "one", tiny_model, data=data)
    other = compared(tmp_path / "other", tiny_model, tasks=["acceptability"])
    join([one, other], tmp_path / "both")
    assert sentences(tmp_path / "both") == sentences(one) | sentences(other)
    assert sentences(tmp_path / "both", ["acceptability"]) == sentences(other)


def test_a_joined_folder_may_be_judged_by_another_metric_since(
    tmp_path: Path, tiny_model: Path
) -> None:
    one = compared(tmp_path / "one", tiny_model, tasks=["acceptability"])
    other = compared(tmp_path / "other", tiny_model, tasks=["paraphrase"])
    join([one, other], tmp_path / "both")
    (record,) = Store(one).records()
    task = record.task.model_copy(update={"main_metric": "f1"})
    Store(one).write_record(record.model_copy(update={"task": task}))
    assert sentences(tmp_path / "both") == sentences(one) | sentences(other)


def test_texts_of_what_is_not_asked_for_need_not_be_there(
    tmp_path: Path, tiny_model: Path, tiny_csv: Path
) -> None:
    data = {"path": tiny_csv, "text": ["sentence"], "label": "answer"}
    out = compared(tmp_path / "out", tiny_model, data=data)
    tiny_csv.write_text(tiny_csv.read_text().replace("cat", "dog"))
    compared(out, tiny_model, data=data)
    with pytest.raises(RequestError, match="is no longer what"):
        sentences(out)
    assert len(sentences(out, last=True)) == 1


def test_texts_that_were_handed_over_in_python_are_refused(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    out = compared(tmp_path / "out", tiny_model, tasks=[tiny_task])
    with pytest.raises(RequestError, match=rf"task {tiny_task.name} was handed over in Python"):
        sentences(out)


def test_a_record_s_task_is_judged_by_the_record_s_own_metric(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Its suite left it to the task, and another command has judged it anew since."""
    store = Store(compared(tmp_path / "out", tiny_model, tasks=["acceptability"]))
    (record,) = store.records()
    for metric in ("f1", "accuracy"):
        task = record.task.model_copy(update={"main_metric": metric})
        assert task_again(store, record.model_copy(update={"task": task})).main_metric == metric
