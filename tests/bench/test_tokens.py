from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from peftlab.bench import tokens
from peftlab.bench.tokens import tokens_of
from peftlab.models import load_tokenizer
from peftlab.tasks import Task


def test_what_is_read_is_what_was_made(tiny_model: Path, tiny_task: Task, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    made = tokens_of(tokenizer, tiny_task, 8)
    assert made.train.n_truncated > 0
    for _ in range(2):  # written, then read
        assert tokens_of(tokenizer, tiny_task, 8, tmp_path) == made


def test_cells_share_them_while_all_they_depend_on_is_the_same(
    tiny_model: Path, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    encoded: list[int] = []
    encode = tokens.encode
    monkeypatch.setattr(tokens, "encode", lambda *a: encoded.append(1) or encode(*a))
    for _ in range(3):
        tokens_of(tokenizer, tiny_task, 16, tmp_path)
    assert len(encoded) == 2  # train and dev
    relabelled = dataclasses.replace(
        tiny_task, dev=dataclasses.replace(tiny_task.dev, labels=tiny_task.dev.labels[::-1])
    )
    got = tokens_of(tokenizer, relabelled, 16, tmp_path)
    assert len(encoded) == 2
    assert got.dev.labels == relabelled.dev.labels
    tokens_of(tokenizer, tiny_task, 12, tmp_path)
    assert len(encoded) == 4
    other = dataclasses.replace(
        tiny_task, dev=dataclasses.replace(tiny_task.dev, texts=tiny_task.dev.texts[::-1])
    )
    tokens_of(tokenizer, other, 16, tmp_path)
    assert len(encoded) == 5
    tokenizer.backend_tokenizer.add_tokens(["catdog"])
    tokens_of(tokenizer, tiny_task, 16, tmp_path)
    assert len(encoded) == 7
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".safetensors"]
