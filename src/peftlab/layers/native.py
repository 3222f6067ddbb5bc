"""Kernels in C++: built once, where there is a compiler, and cached.

    layers/rows.cpp        rows around a product in eight bits; without it, torch's own (rows.py)
    layers/gain.cpp        learned gains, as DoRA's; without it, torch's own (gain.py)
    engine/sentences.cpp   attention of a packed batch; without it, batches stay padded
    engine/dropout.cpp     dropout, and the end of each half of a block; without it, masks are kept,
                           and that end is three passes
    engine/gelu.cpp        gelu in bf16; without it, torch's own
    engine/low_rank.cpp    low-rank updates in bf16; without it, torch's products

torch's own extension loader builds a kernel (7 s on an EPYC), and torch's dispatcher then has its
operations as `torch.ops.peftlab`. The library is kept in the user's cache, under a hash of its
text, torch's version and the processor. A build that fails is a warning and no more.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peftlab.atomic import write
from peftlab.cache import cache_folder
from peftlab.errors import RequestError
from peftlab.layers.cpuinfo import processor_lines

BUILD_S = 60  # a build takes 7; nobody waits longer than this
FAILED_S = 3600  # before a failed build is tried again: each cell is a process of its own
REASON = re.compile(r"\berror: |not found|cannot (find|open)")
WIDEST = 16  # numbers in the widest vector, of which some kernels take multiples alone
FUSED = ("-ffp-contract=fast",)  # a product and a sum are one operation, rounded once
HEADER = Path(__file__).with_name("vectors.h")
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
BUILD = """
import sys
from torch.utils.cpp_extension import load
name, source, folder, *flags = sys.argv[1:]
load(name, [source], extra_cflags=flags, build_directory=folder, is_python_module=False)
"""


class BuildError(Exception):
    """Why there is no library."""


class NoCompiler(BuildError):
    """There is none here, which `peftlab doctor` says and no warning."""


@functools.cache
def is_built(source: Path, *flags: str, **shapes: Callable[..., Any]) -> bool:
    """Whether this process has the operations of `source`; builds them if need be.

    Args:
        source: a file in C++.
        flags: for the compiler, beside `FLAGS`.
        **shapes: for each operation that `plan` calls with fake tensors, a function that gives
            outputs of the right shapes from its arguments.
    """
    try:
        _load(source, flags)
    except NoCompiler:
        return False
    except (OSError, BuildError, RequestError) as error:
        warnings.warn(
            f"the kernels of {source.name} can't be built, and all is slower without: {error}",
            stacklevel=2,
        )
        return False
    for operation, fake in shapes.items():
        _register_fake(operation, fake)
    return True


@functools.cache  # torch takes one an operation
def _register_fake(operation: str, fake: Callable[..., Any]) -> None:
    torch.library.register_fake(f"peftlab::{operation}", fake)


def describe_build(source: Path, *flags: str) -> str:
    """Whether the operations of `source` are built, or why not, in words; builds nothing."""
    try:
        library = _library(source, flags)
        if library.is_file():
            return "built"
        _check_can_build(library)
    except (BuildError, RequestError) as error:
        return f"not built: {error}"
    return "built when first needed"


def _load(source: Path, flags: tuple[str, ...]) -> None:
    library = _library(source, flags)
    if library.is_file():
        with contextlib.suppress(OSError):  # truncated by a full disk, or of another system
            torch.ops.load_library(library)
            return
    _check_can_build(library)
    try:
        _build(source, flags, library)
    except BuildError as error:
        write(_failed(library), str(error))
        raise
    torch.ops.load_library(library)


def _check_can_build(library: Path) -> None:
    """Raise `BuildError` where a build is known to fail."""
    if sys.platform != "linux":
        raise NoCompiler("that is done on Linux alone")
    if compiler() is None:
        named = f" by CXX={os.environ['CXX']}" if os.environ.get("CXX") else ""
        raise NoCompiler(f"no C++ compiler is found{named}")
    folder = next(parent for parent in library.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BuildError(f"{folder} can't be written; set XDG_CACHE_HOME to a folder that can be")
    failed = _failed(library)
    if failed.is_file() and time.time() - failed.stat().st_mtime < FAILED_S:
        raise BuildError(f"{failed.read_text(encoding='utf-8')} (tried again in an hour)")


def _failed(library: Path) -> Path:
    """The file that says why there is no library: by this compiler, on this machine."""
    how = repr((os.environ.get("CXX"), compiler(), platform.node()))
    return library.with_name(f"failed-{hashlib.sha256(how.encode()).hexdigest()[:8]}.txt")


@functools.cache
def compiler() -> str | None:
    """The path of the C++ compiler that torch would call; None without one.

    On Linux alone: compilers elsewhere refuse these flags, and a command of that name may do no
    more than offer to install one.
    """
    # torch takes CXX for the name of one command, too
    return shutil.which(os.environ.get("CXX", "c++")) if sys.platform == "linux" else None


def _library(source: Path, flags: tuple[str, ...]) -> Path:
    """The library's path, with a hash of its text, the flags, torch, Python and the processor."""
    texts = [path.read_text(encoding="utf-8") for path in (source, HEADER)]
    parts = [*texts, torch.__version__, sys.version, *FLAGS, *flags]
    parts += [torch.backends.cpu.get_cpu_capability(), _processor()]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"{source.stem}-{digest}" / f"{source.stem}.so"


def _processor() -> str:
    """The machine and its features, on which the meaning of -march=native depends."""
    keys = ("flags", "Features", "CPU implementer", "CPU part")
    lines = dict.fromkeys(line for line in processor_lines() if line.startswith(keys))  # each once
    return "\n".join([platform.machine(), *lines])


def _build(source: Path, flags: tuple[str, ...], library: Path) -> None:
    """Build in a folder beside it: others may build too, and one that dies leaves torch's lock."""
    if _is_clang():
        raise BuildError("the C++ compiler is clang, whose OpenMP is not torch's; set CXX=g++")
    print(f"building {source.name}, once", file=sys.stderr, flush=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        command = [sys.executable, "-P", "-c", BUILD, source.stem, str(source), folder]
        _run([*command, *FLAGS, *flags])
        (Path(folder) / library.name).replace(library)


def _is_clang() -> bool:
    command = [compiler() or "", "--version"]
    return "clang" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _run(command: list[str]) -> None:
    # pip puts ninja, if it is there, beside the interpreter
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path},
        start_new_session=True,  # ninja and the compiler end with it
    ) as process:
        try:
            _, stderr = process.communicate(timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise BuildError(f"it took more than {BUILD_S} s") from None
    if process.returncode:
        lines = stderr.strip().splitlines() or ["no reason given"]
        # behind a compiler's reason ninja says no more than that it stops
        raise BuildError(next(filter(REASON.search, lines), lines[-1])[:300])
