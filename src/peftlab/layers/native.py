"""Kernels in C++, each beside its readable form: built once, where a compiler is found, and kept.

    layers/rows.cpp        rows.py         rows around a product in eight bits
    engine/sentences.cpp   sentences.py    attention of a packed batch

torch's own extension loader builds one (7 s on an EPYC), and torch's dispatcher has its operations
as `torch.ops.peftlab` from then on. It is kept in the user's cache, by its text, torch's version
and the processor. Without a compiler the readable form does the work; a build that fails is a
warning and no more.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from peftlab.cache import cache_folder

_loaded: list[str] = []
BUILD_S = 60  # it takes 7; longer than this nobody waits
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
BUILD = """
import sys
from torch.utils.cpp_extension import load
name, source, folder, *flags = sys.argv[1:]
load(name, [source], extra_cflags=flags, build_directory=folder, is_python_module=False)
"""


@functools.cache
def is_built(source: Path, *flags: str) -> bool:
    """Whether the operations of `source` are there for this process; builds them if need be.

    Args:
        source: a file in C++.
        flags: for the compiler, beside those that all kernels have.
    """
    if compiler() is None:
        return False
    library = _folder(source, flags) / f"{source.stem}.so"
    try:
        if not library.is_file():
            _build(source, flags, library)
        torch.ops.load_library(library)
        _loaded.append(source.name)
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        reason = (words.strip().splitlines() or ["no reason given"])[-1][:300]
        warnings.warn(
            f"the kernels of {source.name} can't be built, and all is slower without: {reason}",
            stacklevel=2,
        )
        return False
    return True


def loaded() -> list[str]:
    """The kernels that this process has, by the names of their files."""
    return _loaded


@functools.cache
def compiler() -> str | None:
    """The C++ compiler that torch would take; None without one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def _folder(source: Path, flags: tuple[str, ...]) -> Path:
    """By all that the library depends on: its text, torch, Python and the processor."""
    known = [source.read_text(encoding="utf-8"), torch.__version__, sys.version, *FLAGS, *flags]
    known += [torch.backends.cpu.get_cpu_capability(), _processor()]
    digest = hashlib.sha256(repr(known).encode()).hexdigest()[:16]
    return cache_folder() / f"{source.stem}-{digest}"


def _processor() -> str:
    """What -march=native means here."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def _build(source: Path, flags: tuple[str, ...], library: Path) -> None:
    """Beside its place first: others may build it too, and one that dies leaves torch's lock."""
    print(f"building {source.name}, once", file=sys.stderr, flush=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    # where pip has put ninja, if it has
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        command = [sys.executable, "-c", BUILD, source.stem, str(source), folder, *FLAGS, *flags]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            env=os.environ | {"PATH": path},
        )
        (Path(folder) / library.name).replace(library)
