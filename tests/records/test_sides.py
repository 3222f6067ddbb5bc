"""Folders side by side: rows of their own, pairs where examples and seeds are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from peftlab.errors import RequestError
from peftlab.records.lock import LOCK
from peftlab.records.sides import join, side_names
from peftlab.records.store import Store, rounds_of
from peftlab.records.verdicts import compare_rows


@pytest.fixture
def two(folder: Any, tmp_path: Path) -> tuple[Any, Any]:
    """The same cells twice, one of them a little worse in the second folder."""
    other = type(folder)(tmp_path / "other")
    for seed in range(3):
        for row in ("lora", "full"):
            folder.add(row, seed)
            other.add(row, seed, wrong=40 if row == "full" else 140)
    return folder, other


def test_every_row_of_either_side_is_a_row_and_pairs_are_of_the_same_seeds(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    told = join([one.path for one in two], tmp_path / "both")
    records = Store(tmp_path / "both").records()
    assert len(records) == 12 and {record.side for record in records} == {"out", "other"}
    pairs = {(p.a, p.b): p for p in compare_rows(records, [tmp_path / "both"]).pairs}
    assert {name for pair in pairs for name in pair} == {
        *("lora (out)", "lora (other)", "full (out)", "full (other)")
    }
    pair = next(p for (a, b), p in pairs.items() if a[:4] == b[:4] == "lora")
    assert pair.seeds == [0, 1, 2]
    assert pair.of("lora (out)").verdict == "better"
    assert "cola: the same examples in other, out; seeds in all: 0, 1, 2" in told
    assert any("not measured in turns" in line for line in told)
    assert not any("commit" in line or "base models" in line for line in told)
    assert Store(tmp_path / "both").notes() == told  # for the page, whenever it is made


def test_a_record_that_can_not_be_read_is_named_with_its_side(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    path = next((two[1].path / "records").glob("*.json"))
    path.write_text("half")
    told = join([one.path for one in two], tmp_path / "both")
    assert f"the record of {path.stem} in other can't be read and is left out" in told
    assert Store(two[1].path).notes() == [
        f"the record of {path.stem} can't be read and is left out"
    ]


def test_the_same_examples_by_two_metrics_are_said_to_be_apart(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    folder, other = two
    for one in other.records:
        task = one.task.model_copy(update={"main_metric": "f1"})
        Store(other.path).write_record(one.model_copy(update={"task": task}))
    told = join([folder.path, other.path], tmp_path / "both")
    assert (
        "cola: judged by other metrics, so that rows are apart: accuracy in out; f1 in other"
        in told
    )


def test_other_examples_models_machines_and_commits_are_said(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    folder, other = two
    one = other.records[0]
    environment = one.environment.model_copy(update={"processor": "y", "commit": "c" * 40})
    changed = {"environment": environment.model_dump(), "seed": 7}
    changed["model"] = {"name": "m", "revision": None, "sha256": "d" * 64}
    changed["task"] = one.task.model_copy(update={"sha256": "else"}).model_dump()
    Store(other.path).write_record(
        type(one).model_validate(one.model_dump() | changed | {"cell": "another"})
    )
    told = join([folder.path, other.path], tmp_path / "both")
    words = " | ".join(told)
    assert "cola: other examples, so its scores don't compare between other, out; other" in words
    assert "base models differ" in words and "m (dddddddd) in other" in words
    assert "the machines differ" in words
    assert "commit differs" in words and "other cccccccccc, package" in words


def test_it_can_be_made_anew_and_nothing_else_is_overwritten(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    folder, other = two
    both = tmp_path / "both"
    join([folder.path, other.path], both)
    (folder.path / "records" / f"{folder.records[0].cell}.json").unlink()
    join([folder.path, other.path], both)
    assert len(Store(both).records()) == 11
    assert json.loads((both / "suite.json").read_text())["sides"] == {
        "out": str(folder.path.resolve()),
        "other": str(other.path.resolve()),
    }
    before = sorted(other.path.rglob("*"))
    with pytest.raises(RequestError, match="was not made of several folders"):
        join([folder.path, both], other.path)
    assert sorted(other.path.rglob("*")) == before
    with pytest.raises(RequestError, match="is given twice"):
        join([folder.path, folder.path], both)
    with pytest.raises(RequestError, match="no records"):
        join([folder.path, tmp_path / "nothing"], both)


def test_folders_of_one_name_are_told_apart_by_what_is_above_them() -> None:
    assert list(side_names([Path("/a/x"), Path("/b/x"), Path("/b/y")])) == ["a/x", "b/x", "b/y"]


def test_a_folder_is_not_written_into_itself(two: tuple[Any, Any], tmp_path: Path) -> None:
    folder, other = two
    both, third = tmp_path / "both", type(folder)(tmp_path / "third")
    third.add("lora", 0)
    join([folder.path, other.path], both)
    before = sorted(path for path in both.rglob("*") if path.is_file())
    with pytest.raises(RequestError, match="both is one of the folders to lay side by side"):
        join([both, third.path], both)
    assert sorted(path for path in both.rglob("*") if path.is_file()) == before
    assert any("predictions" in path.parts for path in before)


def test_what_is_joined_is_written_by_one_command_at_a_time(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    folders = [one.path for one in two]
    join(folders, tmp_path / "both")
    with (
        FileLock(tmp_path / "both" / LOCK),  # another command's
        pytest.raises(RequestError, match="another command writes to"),
    ):
        join(folders, tmp_path / "both")
    join(folders, tmp_path / "both")
    assert len(Store(tmp_path / "both").records()) == 12


def test_a_join_that_was_interrupted_is_joined_again(
    two: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    folders = [one.path for one in two]
    with monkeypatch.context() as patch:
        patch.setattr("peftlab.records.sides._link", interrupted)
        with pytest.raises(KeyboardInterrupt):
            join(folders, tmp_path / "both")
    assert list((tmp_path / "both" / "records").iterdir())
    join(folders, tmp_path / "both")
    assert len(Store(tmp_path / "both").records()) == 12


def test_rounds_that_a_side_has_no_more_are_not_joined_again(
    two: tuple[Any, Any], tmp_path: Path, cost: Any
) -> None:
    """The cells' speeds would be read from them."""
    folders, both = [one.path for one in two], tmp_path / "both"
    type(two[0])(folders[0] / "speed").add("lora", 0, **cost(10, 70, 1))
    join(folders, both)
    assert len(rounds_of(both)) == 1
    shutil.rmtree(folders[0] / "speed")
    join(folders, both)
    assert rounds_of(both) == []
