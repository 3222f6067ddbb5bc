"""The same bits each time on CUDA, by torch's settings; notes name the operations that have none.

A CPU needs no settings: with equal threads the same operations add in the same order.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# With this workspace cuBLAS adds in a fixed order; it is read when cuBLAS is first used.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@contextlib.contextmanager
def repeatable(device: str, trial: Callable[[], None]) -> Iterator[list[str]]:
    """Let CUDA compute the same bits each time inside the context; restore torch's settings after.

    `trial` is run first. If one of its operations has no deterministic form, torch is set to warn
    instead of to raise, by which it may also choose attention without such a form.

    Args:
        device: with any other than "cuda" nothing is done.
        trial: a forward and backward pass like those that will be run inside.

    Yields:
        Notes for a reader of the scores, one for each operation that may give other bits.
    """
    if device != "cuda":
        yield []
        return
    with contextlib.ExitStack() as undo:
        _make_deterministic(undo)
        yield _run_trial(trial)


@contextlib.contextmanager
def cublas_in_order() -> Iterator[None]:
    """Let cuBLAS add in a fixed order ever after, if it is first used in this context."""
    with contextlib.ExitStack() as undo:
        for name in WORKSPACE.keys() - os.environ.keys():
            os.environ[name] = WORKSPACE[name]
            undo.callback(os.environ.pop, name, None)
        yield


def _make_deterministic(undo: contextlib.ExitStack) -> None:
    undo.enter_context(cublas_in_order())
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    cudnn: Any = torch.backends.cudnn
    fills: Any = torch.utils.deterministic
    undo.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    cudnn.benchmark = False  # its search may choose another algorithm each time
    # filling every new tensor changes no bit: nothing here reads a tensor before writing it
    undo.callback(setattr, fills, "fill_uninitialized_memory", fills.fill_uninitialized_memory)
    fills.fill_uninitialized_memory = False


def _run_trial(trial: Callable[[], None]) -> list[str]:
    """Run `trial`, a second time with warnings if torch refuses; returns the notes on those."""
    try:
        trial()
    except RuntimeError as error:
        if not _is_about_bits(str(error)):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial()
        messages = [str(error), *(str(warning.message) for warning in caught)]
        return list(dict.fromkeys(map(_note, filter(_is_about_bits, messages))))
    return []


def _is_about_bits(message: str) -> bool:
    return "deterministic" in message.lower()


def _note(message: str) -> str:
    """Torch's message on an operation, shortened to a note."""
    if "CUBLAS_WORKSPACE_CONFIG" in message:
        (name, value), *_ = WORKSPACE.items()
        reason = f"cuBLAS was used before training; set {name}={value} before Python starts"
    else:
        reason = re.split(r"\. |, but ", message)[0]
    return f"CUDA may give other bits next time: {reason}"
