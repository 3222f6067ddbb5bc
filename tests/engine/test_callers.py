"""What callers do around the engine: modes, hooks, masks and configurations of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftlab.engine import fast
from peftlab.methods import inject
from tiny import batch, in_eight_bits, tiny


@pytest.mark.parametrize("make", [tiny, in_eight_bits])
def test_a_model_that_answered_under_inference_mode_still_trains(make: Any) -> None:
    model = inject(make(), "lora")
    with torch.inference_mode(), fast(model):
        model(**batch())
    assert not [name for name, p in model.named_parameters() if p.is_inference()]
    assert not [name for name, b in model.named_buffers() if b.is_inference()]
    model.train()(**batch()).logits.float().sum().backward()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_a_hook_of_a_caller_s_sees_what_the_model_gives(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    block = next(m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))[-1]

    def mixed(module: nn.Module, inputs: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        moved = h + h[:, :2].mean(1, keepdim=True)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    block.register_forward_hook(mixed)
    with torch.no_grad():
        plain = model(**batch()).logits
        with fast(model):
            assert torch.allclose(model(**batch()).logits, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "albert", "modernbert"])
@pytest.mark.parametrize("form", ["float", "half", "four dimensions"])
def test_masks_of_every_kind_say_the_same(kind: str, form: str) -> None:
    model, inputs = tiny(kind, torch.float32).eval(), batch()
    mask = inputs["attention_mask"]
    if form == "float":
        inputs["attention_mask"] = mask.float()
    elif form == "half":
        inputs["attention_mask"] = mask * 0.5
    elif kind == "mpnet":
        return  # takes no such mask
    else:
        inputs["attention_mask"] = mask[:, None, None, :].bool().expand(-1, -1, mask.shape[1], -1)
    with torch.no_grad():
        plain = model(**inputs).logits
        with fast(model):
            assert torch.allclose(model(**inputs).logits, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_feed_forward_layer_in_chunks_is_left_alone(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 3
    model.config.chunk_size_feed_forward = 3
    with torch.no_grad():
        plain = model(**batch()).logits
        with fast(model):
            assert torch.allclose(model(**batch()).logits, plain, atol=1e-5)


class Narrow(nn.Module):
    """An attention whose value reads another input than its query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(32, 16), nn.Linear(32, 16)
        self.value = nn.Linear(64, 16)


def test_siblings_of_other_input_sizes_are_no_siblings() -> None:
    model = tiny()
    model.base_model.encoder.layer[0].attention.extra = Narrow().bfloat16().requires_grad_(False)
    model.requires_grad_(False)
    with torch.no_grad(), fast(model):
        model(**batch())
