"""Methods from outside: a script that is named, a package that is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftlab.errors import RequestError
from peftlab.methods import METHODS, load_plugin, make
from peftlab.methods.registry import register, resolve_method

METHOD = """
from typing import ClassVar
import peftlab
from peftlab.methods import train_head_only
from words import SUMMARY  # a file beside it

@peftlab.register
class Mine(peftlab.Method):
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = SUMMARY
    paper: ClassVar[str] = "my own"
    default_lr: ClassVar[float] = 1e-3

    def inject(self, model):
        train_head_only(model)
"""


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes known is forgotten behind it, and where it imports from."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    METHODS.pop("mine", None)
    sys.modules.pop("words", None)


def write(folder: Path, text: str) -> Path:
    (folder / "words.py").write_text('SUMMARY = "the head, as I call it"\n')
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


def test_a_script_makes_its_methods_known_twice_as_well_as_once(tmp_path: Path) -> None:
    file = write(tmp_path, METHOD)
    for _ in range(2):
        load_plugin(file)
        assert METHODS["mine"].summary == "the head, as I call it"
    assert list(METHODS)[-1] == "mine"  # behind peftlab's own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"plugin .*mine\.py registers no method; put @peftlab\.register before"),
        ("1 / 0\n", r"plugin .*mine\.py can't be imported: ZeroDivisionError: division by zero"),
        ("def (\n", r"mine\.py can't be imported: SyntaxError: .*line 1"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise SystemExit(3)\n", "can't be imported: SystemExit: 3"),
        (METHOD.replace('"mine"', '"lora"'), "RequestError: Mine can't be called 'lora'"),
        (METHOD + "1 / 0\n", "can't be imported: ZeroDivisionError"),
    ],
)
def test_what_can_not_be_a_plugin_is_explained(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        load_plugin(write(tmp_path, text))
    assert "mine" not in METHODS


def test_what_is_no_class_is_no_method() -> None:
    with pytest.raises(RequestError, match=r"method must be a class, .* got 3"):
        register(3)  # type: ignore[type-var]


def test_a_plugin_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone.py", tmp_path / ("x" * 300)):
        with pytest.raises(RequestError, match=r"there is no plugin|can't be read: File name too"):
            load_plugin(place)


def installed(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Ask for the methods where a package in `folder` brings one."""
    write(folder, text)
    information = folder / "mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[peftlab.methods]\nmine = mine\n")
    code = f"import sys; sys.path.append({str(folder)!r}); import peftlab.methods as m"
    return subprocess.run(
        [sys.executable, "-c", f"{code}; print(*m.METHODS)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_package_s_methods_are_known_by_its_entry_point(tmp_path: Path) -> None:
    done = installed(tmp_path, METHOD)
    assert done.stdout.split() == [*METHODS, "mine"], done.stderr


def test_a_package_that_fails_is_named(tmp_path: Path) -> None:
    done = installed(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "RequestError: the method 'mine' of an installed package (mine) can't be" in done.stderr


def test_a_method_may_be_named_with_its_settings() -> None:
    assert resolve_method("lora[rank=4,targets=query,value]") == make(
        "lora", {"rank": 4, "targets": "query,value"}
    )
    for wrong, words in (
        ("lora[rnk=4]", "rnk.*rank"),
        ("lora[rank=0]", "rank"),
        ("lroa", "did you mean 'lora'"),
        ("lora[rank", "NAME or NAME"),
    ):
        with pytest.raises(RequestError, match=words):
            resolve_method(wrong)
