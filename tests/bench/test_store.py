from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from peftlab.bench.store import Store
from peftlab.errors import RequestError


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").prepare()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_our_own_folder_is_taken_and_half_written_files_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json("suite.json", {})
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json.tmp").write_text("{")
    store.prepare()
    assert list((tmp_path / "records").iterdir()) == []


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match=r"not peftlab's \(thesis\.tex\); give a new"):
        Store(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_folders_are_not_ours_and_their_files_stay(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.tmp").write_text("precious")
    with pytest.raises(RequestError, match=r"not peftlab's \(\.cache\)"):
        Store(tmp_path).prepare()
    assert (tmp_path / ".cache" / "x.tmp").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RequestError, match="is a file; give a folder"):
        Store(tmp_path / "out").prepare()


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is not writable: Not a directory"):
        Store(tmp_path / "file" / "out").prepare()
    with pytest.raises(RequestError, match="is not writable"):
        Store(Path("/proc/peftlab")).prepare()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 5 * 2**20))
    with pytest.raises(RequestError, match="5 MiB of free disk space and 200 MiB are needed"):
        Store(tmp_path).prepare()


def test_a_folder_without_records_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no records"):
        Store(tmp_path).records()


def test_an_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("{}")
    assert Store(tmp_path).read("x") is None
    assert Store(tmp_path).read("y") is None


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write_json("suite.json", {"cells": []})
    before = (tmp_path / "suite.json").read_text()

    def full(self: Path, *arguments: object, **named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_json("suite.json", {"cells": ["new"]})
    assert (tmp_path / "suite.json").read_text() == before
