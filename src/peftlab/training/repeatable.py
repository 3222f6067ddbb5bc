"""The same bits twice on CUDA: what torch asks for, and a note where an operation can't give them.

On a CPU nothing is needed: with equal threads the same operations add in the same order.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# The workspace with which cuBLAS adds in one order; it is read when cuBLAS is first used.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@contextlib.contextmanager
def repeatable(device: str, trial: Callable[[], None]) -> Iterator[list[str]]:
    """Inside, CUDA computes the same bits each time; torch's settings are restored behind it.

    `trial` is run first. Where one of its operations has no such form, torch only warns of it from
    then on, and of attention chooses none that has.

    Args:
        device: "cuda"; for any other nothing is done.
        trial: a forward and backward pass as they will be run inside.

    Yields:
        Notes for a reader of the scores: which operation may give other bits, none if none may.
    """
    if device != "cuda":
        yield []
        return
    with contextlib.ExitStack() as undo:
        _set(undo)
        yield _try(trial)


def _set(undo: contextlib.ExitStack) -> None:
    for name in WORKSPACE.keys() - os.environ.keys():
        os.environ[name] = WORKSPACE[name]
        undo.callback(os.environ.pop, name, None)
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    undo.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    cudnn.benchmark = False  # a search that may end elsewhere each time
    # not for the bits: it would fill every new tensor, and nothing here reads one before writing it
    undo.callback(setattr, memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory)
    memory.fill_uninitialized_memory = False


def _try(trial: Callable[[], None]) -> list[str]:
    """Run `trial`, at second try with a warning where it can't be repeated; those in short."""
    try:
        trial()
    except RuntimeError as error:
        if not _is_about_bits(str(error)):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trial()
        said = [str(error), *(str(warning.message) for warning in caught)]
        return list(dict.fromkeys(_note(words) for words in said if _is_about_bits(words)))
    return []


def _is_about_bits(words: str) -> bool:
    return "deterministic" in words.lower()


def _note(words: str) -> str:
    """What torch says of an operation at length."""
    if "CUBLAS_WORKSPACE_CONFIG" in words:
        (name, value), *_ = WORKSPACE.items()
        reason = f"cuBLAS was used before training; set {name}={value} before Python starts"
    else:
        reason = re.split(r"\. |, but ", words)[0]
    return f"CUDA may give other bits next time: {reason}"
