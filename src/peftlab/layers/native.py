"""Kernels in C++: built once, where there is a compiler, and cached.

A module that computes something in C++ has a `Kernel`, by a file of its own name, and does without
where that can't be built. `peftlab doctor` lists them (engine.KERNELS).

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
from typing import Any, TypeVar

import torch

from peftlab.atomic import write
from peftlab.cache import cache_folder
from peftlab.errors import RequestError
from peftlab.layers.cpuinfo import processor_lines, processor_words

BUILD_S = 60  # a build takes 7; nobody waits longer than this
FAILED_S = 3600  # before a failed build is tried again: each cell is a process of its own
REASON = re.compile(r"\berror: |not found|cannot (find|open)")
WIDEST = 16  # numbers in the widest vector, of which some kernels take multiples alone
FUSED = ("-ffp-contract=fast",)  # a product and a sum are one operation, rounded once
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
BUILD = """
import sys
from torch.utils.cpp_extension import load
name, source, folder, *flags = sys.argv[1:]
load(name, [source], extra_cflags=flags, build_directory=folder, is_python_module=False)
"""

Shapes = TypeVar("Shapes", bound=Callable[..., Any])


class BuildError(Exception):
    """Why there is no library."""


class NoCompiler(BuildError):
    """There is none here, which `peftlab doctor` says and no warning."""


class Kernel:
    """Operations in C++, which `torch.ops.peftlab` has once they are built.

    Attributes:
        source: their file.
        without: what is slower without them, in words.
        flags: for the compiler, beside `FLAGS`.
        needs: a word of /proc/cpuinfo, of processors that have a use for them; None for all.
    """

    def __init__(
        self,
        module: str,
        without: str,
        flags: tuple[str, ...] = FUSED,
        needs: str | None = None,
    ) -> None:
        """Of the file beside `module`, the path of one in Python."""
        self.source = Path(module).with_suffix(".cpp")
        self.without, self.flags, self.needs = without, flags, needs
        self._shapes: dict[str, Callable[..., Any]] = {}
        self._built: bool | None = None

    @property
    def name(self) -> str:
        """The name of their file."""
        return self.source.name

    def shapes_of(self, operation: str) -> Callable[[Shapes], Shapes]:
        """Decorates a function that gives outputs of the operation's shapes from its arguments.

        An operation needs one if `plan` calls it with fake tensors.
        """

        def keep(shapes: Shapes) -> Shapes:
            self._shapes[operation] = shapes
            return shapes

        return keep

    def is_built(self) -> bool:
        """Whether this process has them; builds them if need be."""
        if self._built is None:
            self._built = self._is_needed() and self._is_loaded()
        return self._built

    def describe(self) -> str:
        """Whether they are built, or why not, in words; builds nothing."""
        if not self._is_needed():
            return f"not needed: the processor has no {self.needs}"
        try:
            library = _library(self)
            if library.is_file():
                return "built"
            _check_can_build(library)
        except (BuildError, RequestError) as error:
            return f"not built: {error}, so {self.without}"
        return "built when first needed"

    def _is_needed(self) -> bool:
        return self.needs is None or self.needs in processor_words()

    def _is_loaded(self) -> bool:
        try:
            _load(self)
        except NoCompiler:
            return False
        except (OSError, BuildError, RequestError) as error:
            warnings.warn(
                f"the kernels of {self.name} can't be built, and all is slower without: {error}",
                stacklevel=3,
            )
            return False
        for operation, shapes in self._shapes.items():
            torch.library.register_fake(f"peftlab::{operation}", shapes)
        return True


def _load(kernel: Kernel) -> None:
    library = _library(kernel)
    if library.is_file():
        with contextlib.suppress(OSError):  # truncated by a full disk, or of another system
            torch.ops.load_library(library)
            return
    _check_can_build(library)
    try:
        _build(kernel, library)
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


def _library(kernel: Kernel) -> Path:
    """The library's path, with a hash of its text, the flags, torch, Python and the processor."""
    texts = [path.read_text(encoding="utf-8") for path in (kernel.source, *HEADERS)]
    parts = [*texts, torch.__version__, sys.version, *FLAGS, *kernel.flags]
    parts += [torch.backends.cpu.get_cpu_capability(), _processor()]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    name = kernel.source.stem
    return cache_folder() / f"{name}-{digest}" / f"{name}.so"


def _processor() -> str:
    """The machine and its features, on which the meaning of -march=native depends."""
    keys = ("flags", "Features", "CPU implementer", "CPU part")
    lines = dict.fromkeys(line for line in processor_lines() if line.startswith(keys))  # each once
    return "\n".join([platform.machine(), *lines])


def _build(kernel: Kernel, library: Path) -> None:
    """Build in a folder beside it: others may build too, and one that dies leaves torch's lock."""
    if _is_clang():
        raise BuildError("the C++ compiler is clang, whose OpenMP is not torch's; set CXX=g++")
    print(f"building {kernel.name}, once", file=sys.stderr, flush=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        command = [sys.executable, "-P", "-c", BUILD, library.stem, str(kernel.source), folder]
        _run([*command, *FLAGS, *kernel.flags])
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
