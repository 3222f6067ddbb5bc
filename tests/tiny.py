"""Tiny models of every architecture, and passes through them inside and outside of the engine."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from peftlab.engine import fast
from peftlab.layers import quantise_linears
from peftlab.methods import inject, make
from peftlab.models import linear_names

COMMON = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXTRA: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), GROUPED),
}


def tiny(kind: str = "bert", dtype: torch.dtype = torch.bfloat16, p: float = 0.0) -> Any:
    """A model with random weights; all its dropouts have the probability `p`."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **COMMON | EXTRA.get(kind, {}))
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, p)
    return transformers.AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def bert(dtype: torch.dtype = torch.float32, p: float = 0.0) -> PreTrainedModel:
    """Two blocks, hidden 12, FFN 20: attention square, FFN not. Dropout of probability `p`."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=16, hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).to(dtype)


def batch(padded: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 40, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[2, 5:] = 0
        ids[2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def passes(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The logits, and the gradient of every trained tensor, by name."""
    logits = model(**inputs).logits
    logits.float().square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients | {"logits": logits.detach()}


def in_eight_bits(kind: str = "bert") -> Any:
    """A tiny model whose linear layers, but the head's, are multiplied in eight bits."""
    model = tiny(kind)
    # every processor can multiply in int7
    quantise_linears(model, linear_names(model), "bf16", "int7")
    return model


def compare(model: PreTrainedModel, method: str, tolerance: float) -> None:
    """Compare every output and gradient of a pass inside the engine with one outside."""
    inject(model, make(method)).train()
    with torch.no_grad():  # move away from the initial values, many of which are zero
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    inputs = batch()
    outside = passes(model, inputs)
    with fast(model):
        inside = passes(model, inputs)
    assert inside.keys() == outside.keys()
    largest = max(tensor.double().norm() for tensor in outside.values())
    for name, expected in outside.items():
        error = (inside[name] - expected).double().norm()
        # a key's bias has no effect, so its gradient is nothing but rounding
        assert error <= tolerance * max(expected.double().norm(), 1e-4 * largest), name
