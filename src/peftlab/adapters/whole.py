"""Write a folder whole or not at all: beside its place first, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from peftlab.errors import RequestError

OURS = "peftlab.json"  # a folder that has it may be replaced


def check_replaceable(folder: Path) -> None:
    """Raise `RequestError` if `folder` is a file, or holds something that is no adapter of ours."""
    if folder.exists() and not _may_replace(folder):
        raise RequestError(
            f"{folder} holds something that is not an adapter of peftlab's; give another folder"
        )
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not os.access(parent, os.W_OK):
        raise RequestError(f"{folder} can't be written: {parent} is not writable")


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in its place.

    Raises:
        RequestError: if `folder` may not be replaced, or can't be written.
    """
    check_replaceable(folder)
    mark = uuid.uuid4().hex[:8]
    place, old = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("tmp", "old"))
    try:
        place.mkdir(parents=True)
        write(place)
        if folder.exists():
            folder.rename(old)
        place.rename(folder)
    except OSError as error:
        raise RequestError(f"{folder} can't be written: {error.strerror or error}") from error
    finally:
        for left in (place, old):
            shutil.rmtree(left, ignore_errors=True)


def _may_replace(folder: Path) -> bool:
    return folder.is_dir() and ((folder / OURS).is_file() or not any(folder.iterdir()))
