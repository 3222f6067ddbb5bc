"""Files and folders that are either the old one or the new one, never half of it.

What is written is made beside its place, under a name that ends in .tmp, and then renamed. Which
files are an adapter's is known here too: a folder of them alone may be replaced.
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

CARD = "peftlab.json"  # a folder that has it is an adapter's and may be replaced, if all in it is
WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# the files of one cell that lie beside its adapter, by the folder that a comparison has for them
BESIDE = {"records": "record.json", "curves": "curve.jsonl", "predictions": "predictions.jsonl"}
# by their whole names: a pattern such as token* would take somebody's token.txt for one of these
SENT = frozenset(
    {
        *(CARD, WEIGHTS, PEFT_CONFIG),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
        *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "bpe.codes", "emoji.json"),
        *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"),
    }
)
OURS = SENT | set(BESIDE.values())


def write(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`; the folders above it are made."""
    replace_file(path, lambda place: place.write_text(text, encoding="utf-8", newline="\n"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place; the folders above are made.

    A link stays one, and what it leads to is replaced.

    Raises:
        OSError: if it can't be written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    place, _ = _beside(path)
    try:
        write(place)
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)


def check_replaceable(
    folder: Path, may_be_adapter: bool = True, beside: Collection[str] = ()
) -> None:
    """Raise `RequestError` unless `folder` is new, empty or an adapter, and can be written.

    `may_be_adapter` says whether an adapter there may be replaced, `beside` what may lie with it.
    """
    with system_refusals(f"{folder} can't be written"):
        folder = folder.resolve()
        strange = _strange(folder, may_be_adapter, beside) if folder.is_dir() else []
        is_here = Path.cwd().is_relative_to(folder)
    if os.path.ismount(folder):
        raise RequestError(f"{folder} is a mount point and can't be replaced; give a folder in it")
    if is_here:
        raise RequestError(
            f"{folder} is the current folder, or holds it, and can't be replaced; give one in it"
        )
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; give a folder")
    if strange:
        what = f"something that is not an adapter of peftlab's ({strange[0]})"
        if "suite.json" in strange:
            what = "what `peftlab compare` wrote, and not an adapter"
        raise RequestError(f"{folder} holds {what}; give a new or an empty folder")
    # what may be written is not all in the permissions: try it
    with system_refusals(f"{folder} can't be written"):
        parent = next((place for place in folder.parents if place.exists()), None)
        if parent is None:
            raise RequestError(f"{folder} can't be written: there is no {folder.anchor}")
        Path(tempfile.mkdtemp(prefix=".", dir=parent)).rmdir()


def replace_folder(
    folder: Path,
    write: Callable[[Path], object],
    may_be_adapter: bool = True,
    beside: Collection[str] = (),
) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place.

    Until the new one is there whole, the old one stays or is put back. Who may read the files is as
    the system has it for new ones: safetensors' are the writer's alone.

    Raises:
        RequestError: if `folder` may not be replaced, or can't be written.
    """
    check_replaceable(folder, may_be_adapter, beside)
    folder = folder.resolve()
    place, old = _beside(folder)
    try:
        place.mkdir(parents=True)
        write(place)
        _share(place)
        if folder.exists():
            folder.rename(old)
        place.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = _reason(error)
        raise RequestError(f"{folder} can't be written: {reason}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (place, old):
            shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where to write what `path` shall be, and where to put what it was meanwhile."""
    mark = uuid.uuid4().hex  # no part of the path's own name, which may be as long as names can
    return path.with_name(f".{mark}.tmp"), path.with_name(f".{mark}.old")


def _share(folder: Path) -> None:
    """Let the files be read by whom a new file may be read by."""
    new = folder / f".{uuid.uuid4().hex}.tmp"
    new.touch()
    mode = new.stat().st_mode & 0o777
    new.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            with contextlib.suppress(OSError):  # not every file system has modes
                file.chmod(mode)


def _reason(error: Exception) -> object:
    """What the system says; `shutil.copytree` lists that of each file."""
    if isinstance(error, shutil.Error):
        return error.args[0][0][-1]
    return getattr(error, "strerror", None) or error


def _strange(folder: Path, may_be_adapter: bool, beside: Collection[str]) -> list[str]:
    """What `folder` holds that may not be deleted."""
    found = sorted(folder.iterdir())
    names = [path.name for path in found]
    if not (may_be_adapter and CARD in names):
        return names
    known = {*OURS, *beside}
    return [path.name for path in found if path.name not in known or path.is_dir()]
