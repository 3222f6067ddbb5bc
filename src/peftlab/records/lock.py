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
        RequestError: if another process has locked it; names that. Or if it can't be locked.
    """
    resolved = folder.resolve()
    if resolved in _held.get():
        yield
        return
    try:
        # a lock by the file's existence alone would outlive a command that was killed
        lock = FileLock(resolved / LOCK, timeout=0, fallback_to_soft=False).acquire()
    except Timeout:
        raise RequestError(
            f"another command writes to {folder}: {_read_holder(folder)}; wait for its end, or "
            "give another folder with --out DIR"
        ) from None
    except PermissionError as error:
        raise RequestError(
            f"{folder / LOCK} belongs to another user, so that {folder} can't be locked; delete "
            "it if no command of theirs is running, or give another folder with --out DIR"
        ) from error
    except OSError as error:  # ENOSYS, ENOLCK
        raise RequestError(
            f"{folder} lies on a file system that can't lock files ({error.strerror}); give "
            "another folder with --out DIR"
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
