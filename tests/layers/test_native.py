"""Kernels in C++: built once, again when spoilt, and told where they can't be."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.engine import KERNELS, sentences
from peftlab.layers import native
from peftlab.layers.native import Kernel


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A cache that has nothing yet; see `made_anew`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "compiler", functools.cache(native.compiler.__wrapped__))
    return monkeypatch


def made_anew(without: str = "all is slow") -> Kernel:
    """sentences.cpp's as another process has it, before it is built there."""
    return Kernel(sentences.__file__, without)


def test_a_build_that_fails_is_a_warning_and_not_tried_in_every_process(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[list[str]] = []

    def fails(command: list[str]) -> None:
        tried.append(command)
        raise native.BuildError("Ninja is required")

    unbuilt.setattr(native, "_run", fails)
    unbuilt.setattr(native, "processor_words", lambda: {kernel.needs for kernel in KERNELS})
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"sentences.cpp can't be built.*Ninja is required"):
            assert not made_anew().is_built()
    assert len(tried) == 1
    told = "not built: Ninja is required (tried again in an hour), so batches are padded"
    later = "built when first needed"
    for kernel in KERNELS:
        assert kernel.describe() == (told if kernel is sentences.KERNEL else later)
    (failed,) = tmp_path.rglob("failed-*.txt")
    os.utime(failed, (0, 0))
    with pytest.warns(UserWarning, match="Ninja is required"):
        assert not made_anew().is_built()
    assert len(tried) == 2


def test_another_compiler_is_tried_at_once(unbuilt: pytest.MonkeyPatch) -> None:
    """On a shared home folder one machine's broken compiler barred every other's for an hour."""

    def fails(command: list[str]) -> None:
        raise native.BuildError("no compiler")

    unbuilt.setattr(native, "_run", fails)
    with pytest.warns(UserWarning, match="no compiler"):
        assert not made_anew().is_built()
    assert "no compiler" in made_anew().describe()
    unbuilt.setenv("CXX", "g++")
    assert made_anew().describe() == "built when first needed"


def test_without_a_home_folder_nothing_is_built_and_that_is_told(
    unbuilt: pytest.MonkeyPatch,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    unbuilt.delenv("XDG_CACHE_HOME")
    unbuilt.setattr(Path, "home", homeless)
    assert "set XDG_CACHE_HOME" in made_anew().describe()
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        assert not made_anew().is_built()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_build_that_takes_too_long_is_ended_with_all_its_processes(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def impatient(process: Any, timeout: float) -> Any:
        while not (tmp_path / "child").exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    unbuilt.setattr(subprocess.Popen, "communicate", impatient)
    begun = f"echo $! > {tmp_path / 'begun'}; mv {tmp_path / 'begun'} {tmp_path / 'child'}"
    with pytest.raises(native.BuildError, match=r"more than 60 s"):
        native._run(["bash", "-c", f"sleep 600 & {begun}; wait"])
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):  # the signal is sent; the system takes a moment
        try:
            if child.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail("the compiler runs on")


def test_the_compiler_s_own_words_are_given() -> None:
    with pytest.raises(native.BuildError, match=r"^fatal error: no such file$"):
        native._run(["bash", "-c", "echo first >&2; echo 'fatal error: no such file' >&2; exit 1"])


def test_without_a_compiler_nothing_is_said(
    unbuilt: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    unbuilt.setenv("CXX", "no-such-compiler")
    assert not made_anew().is_built() and not recwarn
    wanted = "not built: no C++ compiler is found by CXX=no-such-compiler, so all is slow"
    assert made_anew().describe() == wanted


def test_a_kernel_for_other_processors_is_not_built(
    unbuilt: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    kernel = Kernel(sentences.__file__, "all is slow", needs="amx_bf16")
    unbuilt.setattr(native, "processor_words", lambda: {"avx2"})
    assert kernel.describe() == "not needed: the processor has no amx_bf16"
    assert not kernel.is_built() and not recwarn
    unbuilt.setattr(native, "processor_words", lambda: {"avx2", "amx_bf16"})
    assert kernel.describe() == "built when first needed"


def test_what_is_built_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built where the login node has one, used where the other nodes have none."""
    assert sentences.KERNEL.is_built()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(native, "compiler", functools.cache(native.compiler.__wrapped__))
    anew = made_anew()
    assert anew.is_built()
    assert anew.describe() == "built"


def test_of_a_build_s_lines_the_compiler_s_reason_is_given() -> None:
    lines = "FAILED: a.o; a.cpp:1:2: error: no thread; ninja: build stopped: subcommand failed."
    words = "; ".join(f"echo '{line}' >&2" for line in lines.split("; "))
    with pytest.raises(native.BuildError, match=r"^a.cpp:1:2: error: no thread$"):
        native._run(["bash", "-c", f"{words}; exit 1"])


def test_clang_is_refused_before_it_builds(unbuilt: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its libraries have another OpenMP, and could not be loaded."""
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\necho clang version 14\n")
    compiler.chmod(0o755)
    unbuilt.setenv("CXX", str(compiler))
    with pytest.warns(UserWarning, match=r"is clang.* set CXX=g\+\+"):
        assert not made_anew().is_built()
    assert "is clang" in made_anew().describe()


def test_a_cache_that_can_t_be_written_is_told_at_once(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unbuilt.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    assert f"{tmp_path} can't be written; set XDG_CACHE_HOME" in made_anew().describe()


def test_where_the_flags_are_not_the_compiler_s_nothing_is_tried(
    unbuilt: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A Mac's clang refuses -fopenmp, or is a stub that offers to install one."""
    assert native.compiler() is not None
    native.compiler.cache_clear()
    unbuilt.setattr(sys, "platform", "darwin")
    assert not made_anew().is_built() and not recwarn
    assert made_anew().describe() == "not built: that is done on Linux alone, so all is slow"


def test_it_is_built_once_with_a_word_and_again_if_the_library_is_spoilt(
    unbuilt: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Path] = []  # a second copy of the same operations is more than torch takes
    unbuilt.setattr(torch.ops, "load_library", loaded.append)
    built: list[list[str]] = []

    def builds(command: list[str]) -> None:
        built.append(command)
        (Path(command[6]) / "sentences.so").write_bytes(b"a library")

    unbuilt.setattr(native, "_run", builds)
    for _ in range(2):
        assert made_anew().is_built()
    assert capfd.readouterr().err == "building sentences.cpp, once\n"
    (library,) = tmp_path.rglob("*.so")
    assert [path.name for path in library.parent.iterdir()] == ["sentences.so"]
    assert loaded == [library] * 2 and len(built) == 1
    assert made_anew().describe() == "built"

    def spoilt(path: Path) -> None:
        if len(built) == 1:
            raise OSError("file too short")
        loaded.append(path)

    unbuilt.setattr(torch.ops, "load_library", spoilt)
    assert made_anew().is_built()
    assert len(built) == 2 and loaded == [library] * 3


def test_another_header_is_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a kernel that was built before goes on as it was."""
    *others, last = native.HEADERS
    changed = tmp_path / last.name
    changed.write_text(last.read_text() + "// changed")
    before = native._library(sentences.KERNEL)
    monkeypatch.setattr(native, "HEADERS", (*others, changed))
    assert native._library(sentences.KERNEL) != before
