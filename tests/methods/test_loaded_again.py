"""What a method computed once of its weights is computed again when others are loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab.errors import RequestError
from peftlab.layers import Int8Linear
from peftlab.methods import inject, make
from peftlab.methods.dora import DoRALinear
from peftlab.methods.lora_drop import share
from peftlab.methods.lora_fa import correction
from tiny import batch, in_eight_bits, tiny


def other(model: Any) -> dict[str, torch.Tensor]:
    """A state dict as of a model of other weights, another one each time."""
    return {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor.flip(0)
        for name, tensor in model.state_dict().items()
    }


def test_a_layer_in_eight_bits_multiplies_by_what_was_loaded() -> None:
    model = in_eight_bits().eval()
    with torch.no_grad():
        model(**batch())  # packs
        model.load_state_dict(other(model))
        layer = next(m for m in model.modules() if isinstance(m, Int8Linear))
        x = torch.randn(4, layer.in_features, dtype=torch.bfloat16)
        wanted = x.float() @ layer.dense().T
        assert (layer.product(x) - wanted).norm() < 0.03 * wanted.norm()


def test_dora_s_norm_is_of_the_base_that_was_loaded() -> None:
    model = inject(tiny(dtype=torch.float32), "dora").eval()
    model.load_state_dict(other(model))
    layer = next(m for m in model.modules() if isinstance(m, DoRALinear))
    x = torch.randn(4, 32)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.merged()(x), rtol=1e-3, atol=1e-4)


def test_lora_fa_s_correction_is_of_the_a_that_was_loaded() -> None:
    method = make("lora-fa", {"correct_gradient": True})
    model = inject(tiny(dtype=torch.float32), method)
    layer: Any = next(m for m in model.modules() if hasattr(m, "lora_A"))
    method.before_update(model, None)  # type: ignore[arg-type]
    before = layer.correction.clone()
    for assign in (False, True, True):
        model.load_state_dict(other(model), assign=assign)
        method.before_update(model, None)  # type: ignore[arg-type]
        assert torch.equal(layer.correction, correction(layer))
        assert not torch.allclose(layer.correction, before)
        before = layer.correction.clone()


def test_lora_drop_does_not_take_trained_pairs_for_fresh_ones() -> None:
    method: Any = make("lora-drop", {"threshold": 0.5})
    model = inject(tiny(dtype=torch.float32), method)
    share(model, [])  # a first training found that none do
    with pytest.raises(RequestError, match="has been trained here"):
        method.prepare(model, None)
