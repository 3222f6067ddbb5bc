"""nn.Linear, Conv1D and NF4Linear seen as one kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.layers import (
    Linear,
    NF4Linear,
    adapter_dtype,
    base_dtype,
    features,
    is_conv1d,
    is_linear,
    linear_like,
    product,
    weight_of,
)

KINDS = ["linear", "linear without bias", "conv1d", "nf4", "nf4 of conv1d", "nf4 without bias"]


def layer_of(kind: str, dtype: torch.dtype = torch.float32) -> Linear:
    """7 inputs, 5 outputs, a bias that is not zero."""
    torch.manual_seed(0)
    plain = Conv1D(5, 7) if "conv1d" in kind else nn.Linear(7, 5, bias="without" not in kind)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    plain = plain.to(dtype).requires_grad_(False)
    if kind.startswith("nf4"):
        return NF4Linear(weight_of(plain), plain.bias, dtype, type(plain))
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_the_product_with_the_weight_and_the_bias(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(2, 3, 7)
    assert is_linear(layer)
    assert features(layer) == (7, 5)
    assert weight_of(layer).shape == (5, 7)
    torch.testing.assert_close(product(layer, x), x @ weight_of(layer).T)
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(layer(x), product(layer, x) + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_like_keeps_all_but_the_weight(kind: str, dtype: torch.dtype) -> None:
    base = layer_of(kind, dtype)
    made = linear_like(base, torch.arange(35.0).view(5, 7), base.bias)
    assert type(made) is (Conv1D if "conv1d" in kind else nn.Linear)
    assert torch.equal(weight_of(made), torch.arange(35.0).view(5, 7).to(dtype))
    assert base_dtype(made) == base_dtype(base) == dtype
    assert (made.bias is None) == (base.bias is None)
    if base.bias is not None:
        assert torch.equal(made.bias, base.bias)
        assert made.bias is not base.bias
    assert not any(p.requires_grad for p in made.parameters())
    assert features(made) == features(base)
    assert made(torch.randn(2, 7, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_linear_like_of_the_same_weight_is_the_same_layer(kind: str) -> None:
    base, x = layer_of(kind), torch.randn(4, 7)
    torch.testing.assert_close(linear_like(base, weight_of(base), base.bias)(x), base(x))


def test_linear_like_keeps_the_mode() -> None:
    for mode in (True, False):
        assert linear_like(nn.Linear(2, 2).train(mode), torch.ones(2, 2), None).training == mode


def test_adapters_are_held_in_at_least_fp32() -> None:
    assert adapter_dtype(layer_of("linear", torch.bfloat16)) == torch.float32
    assert adapter_dtype(layer_of("nf4", torch.bfloat16)) == torch.float32
    assert adapter_dtype(layer_of("nf4 without bias")) == torch.float32  # it has no parameter
    assert adapter_dtype(layer_of("conv1d", torch.float64)) == torch.float64


def test_other_modules_are_not_linear() -> None:
    for module in (nn.LayerNorm(4), nn.Embedding(4, 4), nn.Identity(), nn.Conv1d(4, 4, 1)):
        assert not is_linear(module)
        assert not is_conv1d(module)
