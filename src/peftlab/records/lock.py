"""A lock that lets one command at a time write to a folder, and a note of which one it is."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from peftlab import atomic
from peftlab.errors import RequestError

LOCK, HOLDER = ".lock", ".holder"  # the holder file says in words which process has the lock
_held: ContextVar[tuple[Path, ...]] = ContextVar(
    "held", default=()
)  # folders locked by this thread


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process to write to; a nested lock of the same folder does nothing.

    Raises:
        RequestError: if another process has locked it; names that. Or if its file system has no
            locks.
    """
    resolved = folder.resolve()
    if resolved in _held.get():
        yield
        return
    try:
        lock = FileLock(resolved / LOCK, timeout=0).acquire()
    except Timeout:
        raise RequestError(
            f"another command writes to {folder}: {_read_holder(folder)}; wait for its end, or "
            "give another folder with --out DIR"
        ) from None
    except NotImplementedError as error:
        raise RequestError(
            f"{folder} lies on a file system that can't lock files ({error}); give another folder "
            "with --out DIR"
        ) from error
    with lock:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}"
        token = _held.set((*_held.get(), resolved))
        try:
            atomic.write(folder / HOLDER, holder)
            yield
        finally:
            _held.reset(token)
            with contextlib.suppress(OSError):  # Windows keeps a file while somebody reads it
                (folder / HOLDER).unlink()


def _read_holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8")
    except OSError:  # the command has just begun, or is about to end
        return "it has not said which"
