"""Every method injected into the tiny model and moved away from its start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import peftlab
from peftlab.adapters import TaskCard
from peftlab.methods import METHODS, make
from peftlab.models import state_of

SETTINGS: dict[str, dict[str, Any]] = {
    "houlsby": {"size": 4},
    "vera": {"rank": 5, "targets": "query,ffn-in"},
    **{
        name: {"rank": 3, "targets": "query,ffn-in"}
        for name in ("lora", "lora-plus", "lora-fa", "dora", "qlora", "dylora", "lora-drop")
    },
    "delta-lora": {"rank": 3, "targets": "query,ffn-in"},
}
TEXTS = ["the cat sees a red dog", "a bird", "the old fish hears the new cat and not the dog"]

Trained = Callable[..., tuple[PreTrainedModel, Any]]


@pytest.fixture(scope="session")
def trained(tiny_model: Path) -> Trained:
    """Load the tiny model, inject a method and move all that it trains."""

    def build(
        name: str, precision: str | None = None, num_labels: int = 3, **settings: Any
    ) -> tuple[PreTrainedModel, Any]:
        held = precision or METHODS[name].base_precision or "fp32"
        model, tokenizer = peftlab.load_model(str(tiny_model), num_labels, held)
        peftlab.inject(model, make(name, SETTINGS.get(name, {}) | settings))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        labels = ["red", "green", "blue"][:num_labels] if num_labels > 1 else []
        kind = "classes" if num_labels > 1 else "regression"
        card = TaskCard(kind=kind, labels=labels, columns=["sentence"], max_length=32)
        state_of(model).task_card = card
        if labels:
            model.config.id2label = dict(enumerate(labels))
        return model.eval(), tokenizer

    return build


@pytest.fixture(scope="session")
def logits() -> Callable[[Any, Any], torch.Tensor]:
    def compute(model: Any, tokenizer: Any) -> torch.Tensor:
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).logits.float()

    return compute
