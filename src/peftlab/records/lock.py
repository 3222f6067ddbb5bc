"""A folder that one command at a time writes to, and who that is, in words."""

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

LOCK, HOLDER = ".lock", ".holder"  # the latter says in words who has the former
_held: ContextVar[tuple[Path, ...]] = ContextVar("held", default=())  # locked here, by this thread


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep `folder` for this process to write to; one inside another of the same folder adds none.

    Raises:
        RequestError: if another process has it; it is named.
    """
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    try:
        lock = FileLock(place / LOCK, timeout=0).acquire()
    except Timeout:
        raise RequestError(
            f"another command writes to {folder}: {_holder(folder)}; wait for its end, or give "
            "another folder with --out DIR"
        ) from None
    except NotImplementedError as error:
        raise RequestError(
            f"{folder} lies on a file system that can't lock files ({error}); give another folder "
            "with --out DIR"
        ) from error
    with lock:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}"
        before = _held.set((*_held.get(), place))
        try:
            atomic.write(folder / HOLDER, holder)
            yield
        finally:
            _held.reset(before)
            with contextlib.suppress(OSError):  # Windows keeps what somebody reads just now
                (folder / HOLDER).unlink()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8")
    except OSError:  # it has just begun, or is about to end
        return "it has not said which"
