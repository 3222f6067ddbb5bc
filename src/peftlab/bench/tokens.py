"""A task as tokens, made once for all cells of a suite that read it alike.

The file's name is a hash of all that the tokens depend on: the tokenizer, the texts, the length.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from peftlab.atomic import replace_file
from peftlab.tasks import Examples, Task
from peftlab.training import Encoded, encode


class Tokens(NamedTuple):
    """The two splits of a task."""

    train: Encoded
    dev: Encoded


def tokens_of(tokenizer: Any, task: Task, max_length: int, cache: Path | None = None) -> Tokens:
    """The task's splits as tokens, from the folder `cache` where they are there already.

    Args:
        tokenizer: the model's own.
        task: with its texts.
        max_length: to which texts are cut.
        cache: a folder that exists; without one nothing is kept.
    """
    return Tokens(
        *(_split(tokenizer, examples, max_length, cache) for examples in (task.train, task.dev))
    )


def _split(tokenizer: Any, examples: Examples, max_length: int, cache: Path | None) -> Encoded:
    if cache is None:
        return encode(tokenizer, examples.texts, examples.labels, max_length)
    file = cache / f"tokens-{_content(tokenizer, examples, max_length)}.safetensors"
    if not file.exists():
        _write(encode(tokenizer, examples.texts, examples.labels, max_length), file)
    return _read(file, examples.labels)


def _content(tokenizer: Any, examples: Examples, max_length: int) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for of_the_last_call in ("truncation", "padding"):
        del backend[of_the_last_call]
    about = [max_length, tokenizer.model_input_names, tokenizer.pad_token_id, examples.texts]
    return hashlib.sha256(json.dumps([backend, about]).encode()).hexdigest()


def _write(data: Encoded, file: Path) -> None:
    """Every feature as one row of numbers, example after example."""
    tensors = {
        f"features.{name}": np.concatenate([np.asarray(row, np.int32) for row in rows])
        for name, rows in data.features.items()
    }
    tensors["lengths"] = np.asarray(data.lengths, np.int32)
    about = {"padding": json.dumps(data.padding), "n_truncated": str(data.n_truncated)}
    replace_file(file, lambda place: save_file(tensors, place, about))


def _read(file: Path, labels: Any) -> Encoded:
    with safe_open(file, "np") as held:
        about = held.metadata()
        ends = np.cumsum(held.get_tensor("lengths"))[:-1]
        features = {
            name: [row.tolist() for row in np.split(held.get_tensor(f"features.{name}"), ends)]
            for name in json.loads(about["padding"])
        }
        padding, n_truncated = json.loads(about["padding"]), int(about["n_truncated"])
    return Encoded(features, labels, padding, n_truncated)
