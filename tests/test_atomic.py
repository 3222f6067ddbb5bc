"""Files and folders that are replaced whole, and those that are never replaced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from peftlab.atomic import CARD, PUSHED_FILES, check_replaceable, replace_file, replace_folder
from peftlab.errors import RequestError


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / CARD).write_text("{}")
    return folder


def fill(place: Path) -> None:
    (place / "new").write_text("new")


@pytest.mark.parametrize("name", ["token.txt", "tokens.csv", "mine.model", "vocab.md", "README.md"])
def test_what_only_looks_like_an_adapter_s_file_is_not_deleted(tmp_path: Path, name: str) -> None:
    """The patterns `token*` and `*.model` matched a login token and somebody's own model."""
    folder = adapter(tmp_path / "adapter")
    (folder / name).write_text("mine")
    with pytest.raises(RequestError, match=name):
        replace_folder(folder, fill)
    assert (folder / name).read_text() == "mine"
    assert name not in PUSHED_FILES


def test_a_folder_in_an_adapter_s_is_not_deleted_whatever_its_name(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        replace_folder(folder, fill)


def test_what_the_caller_writes_beside_an_adapter_may_be_replaced(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / "README.md").write_text("a card")
    replace_folder(folder, fill, beside=["README.md"])
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_mount_point_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(RequestError, match="is a mount point"):
        check_replaceable(tmp_path)


def test_a_drive_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(RequestError, match=r"/away/adapter can't be written: there is no /$"):
        check_replaceable(Path("/away/adapter"))


def test_files_are_readable_by_whom_new_ones_are(tmp_path: Path) -> None:
    def private(place: Path) -> None:
        fill(place)
        (place / "new").chmod(0o600)  # as safetensors writes its files

    before = os.umask(0o027)
    try:
        replace_folder(tmp_path / "folder", private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder" / "new").stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    replace_file(tmp_path / "link", lambda place: place.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_file_system_without_modes_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(Path, "chmod", refuse)
    replace_folder(tmp_path / "folder", fill)
    assert (tmp_path / "folder" / "new").read_text() == "new"


def test_links_that_lead_to_each_other_are_the_system_s_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):  # its errno depends on the system
        replace_file(tmp_path / "a" / "file", lambda place: place.write_text("new"))


@pytest.mark.parametrize("place", [".", ".."])
def test_the_folder_that_somebody_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    inner = tmp_path / "empty" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    with pytest.raises(RequestError, match="current folder"):
        check_replaceable(Path(place), beside=["inner"])
