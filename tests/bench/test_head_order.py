"""A head that was trained on the task's classes in another order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import peftlab
from peftlab.bench.process import _order_head
from peftlab.models import last_layer
from peftlab.tasks import Task


def head(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    layer = last_layer(model)
    return layer.weight.detach().clone(), layer.bias.detach().clone()


@pytest.mark.parametrize(
    ("names", "is_turned"),
    [(["Cat", "other"], True), (["other", "cat"], False), (["pos", "neg"], False)],
)
def test_its_outputs_are_put_in_the_task_s_order_by_name(
    names: list[str], is_turned: bool, tiny_model: Path, tiny_task: Task
) -> None:
    assert tiny_task.labels == ("other", "cat")
    model, _ = peftlab.load_model(str(tiny_model), precision="fp32")
    model.config.id2label = dict(enumerate(names))
    weight, bias = head(model)
    assert bool(_order_head(model, tiny_task)) == is_turned
    order = [1, 0] if is_turned else [0, 1]
    after = head(model)
    assert torch.equal(after[0], weight[order]) and torch.equal(after[1], bias[order])


def test_a_checkpoint_of_the_same_classes_begins_where_it_ended(
    tiny_model: Path, tiny_task: Task, tmp_path: Path
) -> None:
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="fp32")
    peftlab.train(model, tokenizer, tiny_task, "full", epochs=3, batch_size=8, lr=1e-2)
    reached = peftlab.evaluate(model, tokenizer, tiny_task)["accuracy"]
    layer = last_layer(model)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(0))
        layer.bias.copy_(layer.bias.flip(0))
    model.config.id2label = {0: "cat", 1: "other"}
    model.config.label2id = {"cat": 0, "other": 1}
    model.save_pretrained(tmp_path / "turned")
    tokenizer.save_pretrained(tmp_path / "turned")
    again, tokenizer = peftlab.load_model(str(tmp_path / "turned"))
    assert peftlab.evaluate(again, tokenizer, tiny_task)["accuracy"] == reached > 0.5
    still = {"lr": 1e-9, "head_lr": 1e-9, "epochs": 1, "batch_size": 8}
    record = peftlab.train(again, tokenizer, tiny_task, "lora", **still)
    assert record.score is not None and record.score["accuracy"] == reached
    assert "put in the order" in " ".join(record.method.notes)


def test_three_outputs_and_their_biases_are_put_in_the_task_s_order(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Of two, whichever is looked up in the other's list comes to the same."""
    task = dataclasses.replace(tiny_task, labels=("a", "b", "c"))
    model, _ = peftlab.load_model(str(tiny_model), num_labels=3, precision="fp32")
    model.config.id2label = dict(enumerate(["b", "c", "a"]))
    with torch.no_grad():
        last_layer(model).bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    weight, bias = head(model)
    assert _order_head(model, task)
    after = head(model)
    assert torch.equal(after[0], weight[[2, 0, 1]]) and torch.equal(after[1], bias[[2, 0, 1]])
