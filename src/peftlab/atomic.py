"""Files and folders are replaced as a whole: a reader sees the old one or the new one, never half.

The new one is written beside its place, under a name that ends in .tmp, and then renamed. The names
of an adapter's files are listed here too: a folder may be replaced only if it holds nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError

from peftlab.errors import RequestError, system_refusals

CARD = "peftlab.json"  # marks an adapter's folder, which may be replaced if it holds nothing else
WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# a cell's files that are copied beside its adapter, by the folder where a comparison keeps them
CELL_FILES = {"records": "record.json", "curves": "curve.jsonl", "predictions": "predictions.jsonl"}
# the files that `push` sends; whole names, as the pattern token* would match a user's token.txt
PUSHED_FILES = frozenset(
    {
        *(CARD, WEIGHTS, PEFT_CONFIG),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
        *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "bpe.codes", "emoji.json"),
        *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"),
    }
)
ADAPTER_FILES = PUSHED_FILES | set(CELL_FILES.values())


def write(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, making its parent folders."""
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8", newline="\n"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it to `path`; parent folders are made.

    A symbolic link is kept, and its target replaced.

    Raises:
        OSError: if the file can't be written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    new, _ = _temporary_paths(path)
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def check_replaceable(
    folder: Path, may_be_adapter: bool = True, beside: Collection[str] = ()
) -> None:
    """Raise `RequestError` unless `folder` is new, empty or an adapter, and can be written.

    `may_be_adapter` says whether an adapter there may be replaced, and `beside` names further
    files that may lie with it.
    """
    with system_refusals(f"{folder} can't be written"):
        folder = folder.resolve()
        foreign = _foreign_names(folder, may_be_adapter, beside) if folder.is_dir() else []
        holds_cwd = Path.cwd().is_relative_to(folder)
    if os.path.ismount(folder):
        raise RequestError(f"{folder} is a mount point and can't be replaced; give a folder in it")
    if holds_cwd:
        raise RequestError(
            f"{folder} is the current folder, or holds it, and can't be replaced; give one in it"
        )
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; give a folder")
    if foreign:
        content = f"something that is not an adapter of peftlab's ({foreign[0]})"
        if not may_be_adapter:
            content = f"something already ({foreign[0]})"
        if "suite.json" in foreign:
            content = "what `peftlab compare` wrote, and not an adapter"
        raise RequestError(f"{folder} holds {content}; give a new or an empty folder")
    # the permissions alone don't tell whether it can be written: try it
    with system_refusals(f"{folder} can't be written"):
        parent = next((parent for parent in folder.parents if parent.exists()), None)
        if parent is None:
            raise RequestError(f"{folder} can't be written: there is no {folder.anchor}")
        Path(tempfile.mkdtemp(prefix=".", dir=parent)).rmdir()


def replace_folder(
    folder: Path,
    write: Callable[[Path], object],
    may_be_adapter: bool = True,
    beside: Collection[str] = (),
) -> None:
    """Let `write` fill a folder beside `folder`, then rename it to `folder`.

    The old folder stays until the new one is written whole, and is put back if renaming fails. The
    files get the system's permissions for new files: safetensors writes some that only their owner
    can read.

    Raises:
        RequestError: if `folder` may not be replaced, or can't be written.
    """
    check_replaceable(folder, may_be_adapter, beside)
    folder = folder.resolve()
    new, old = _temporary_paths(folder)
    try:
        new.mkdir(parents=True)
        write(new)
        _set_default_mode(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{folder} can't be written: {_reason(error)}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _temporary_paths(path: Path) -> tuple[Path, Path]:
    """The paths beside `path` for its new content, and for its old content meanwhile."""
    stem = uuid.uuid4().hex  # not derived from path.name, which may be as long as names can be
    return path.with_name(f".{stem}.tmp"), path.with_name(f".{stem}.old")


def _set_default_mode(folder: Path) -> None:
    """Give the files in `folder` the permissions that the system gives a new file there."""
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            with contextlib.suppress(OSError):  # not every file system has modes
                file.chmod(mode)


def _reason(error: Exception) -> object:
    """The system's message; of those that `shutil.copytree` lists, one a file, the first."""
    if isinstance(error, shutil.Error):
        return error.args[0][0][-1]
    return getattr(error, "strerror", None) or error


def _foreign_names(folder: Path, may_be_adapter: bool, beside: Collection[str]) -> list[str]:
    """The names in `folder` that may not be deleted."""
    paths = sorted(folder.iterdir())
    names = [path.name for path in paths]
    if not (may_be_adapter and CARD in names):
        return names
    replaceable = {*ADAPTER_FILES, *beside}
    return [path.name for path in paths if path.name not in replaceable or path.is_dir()]
