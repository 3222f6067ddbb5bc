"""A task as tokens, made once for all cells of a suite that tokenise it alike.

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
    """The two splits of a task, tokenised."""

    train: Encoded
    dev: Encoded


def tokens_of(tokenizer: Any, task: Task, max_length: int, cache: Path | None = None) -> Tokens:
    """The task's splits as tokens, read from the folder `cache` if they are there already.

    Args:
        tokenizer: the model's own.
        task: the task, with its texts.
        max_length: tokens at which texts are cut.
        cache: a folder that exists, to which the tokens are written; None to write none.
    """
    return Tokens(
        *(_split(tokenizer, examples, max_length, cache) for examples in (task.train, task.dev))
    )


def _split(tokenizer: Any, examples: Examples, max_length: int, cache: Path | None) -> Encoded:
    if cache is None:
        return encode(tokenizer, examples.texts, examples.labels, max_length)
    file = cache / f"tokens-{_content_hash(tokenizer, examples, max_length)}.safetensors"
    if not file.exists():
        _write(encode(tokenizer, examples.texts, examples.labels, max_length), file)
    return _read(file, examples.labels)


def _content_hash(tokenizer: Any, examples: Examples, max_length: int) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for call_state in ("truncation", "padding"):  # as the tokenizer's last call has left them
        del backend[call_state]
    inputs = [max_length, tokenizer.model_input_names, tokenizer.pad_token_id, examples.texts]
    return hashlib.sha256(json.dumps([backend, inputs]).encode()).hexdigest()


def _write(data: Encoded, file: Path) -> None:
    """Write every feature as one row of numbers, example after example."""
    tensors = {
        f"features.{name}": np.concatenate([np.asarray(row, np.int32) for row in rows])
        for name, rows in data.features.items()
    }
    tensors["lengths"] = np.asarray(data.lengths, np.int32)
    metadata = {"padding": json.dumps(data.padding), "n_truncated": str(data.n_truncated)}
    replace_file(file, lambda place: save_file(tensors, place, metadata))


def _read(file: Path, labels: Any) -> Encoded:
    with safe_open(file, "np") as tensors:
        metadata = tensors.metadata()
        padding, n_truncated = json.loads(metadata["padding"]), int(metadata["n_truncated"])
        ends = np.cumsum(tensors.get_tensor("lengths"))[:-1]
        features = {
            name: [row.tolist() for row in np.split(tensors.get_tensor(f"features.{name}"), ends)]
            for name in padding
        }
    return Encoded(features, labels, padding, n_truncated)
