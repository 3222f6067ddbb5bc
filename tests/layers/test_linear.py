"""nn.Linear, Conv1D and NF4Linear seen as one kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from peftlab.errors import RequestError
from peftlab.layers import (
    Int8Linear,
    Linear,
    LoRALinear,
    NF4Linear,
    adapter_dtype,
    base_dtype,
    features,
    is_conv1d,
    is_linear,
    linear_like,
    product,
    replace_linears,
    weight_of,
)
from peftlab.layers.linear import QuantisedLinear

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


@pytest.mark.parametrize("held", [Int8Linear, NF4Linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_leaves_a_quantised_weight_as_it_is(
    held: type[QuantisedLinear], dtype: torch.dtype
) -> None:
    """Bitsandbytes reads scales as fp32, whatever they are: in bf16 a weight was inf."""
    torch.manual_seed(0)
    layer = held(torch.randn(33, 64), torch.randn(33), torch.float32, nn.Linear)
    before, x = weight_of(layer), torch.randn(5, 64)
    plain = layer(x)
    layer.to(dtype)
    assert torch.equal(weight_of(layer), before)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), plain, atol=0.2, rtol=0.02)


@pytest.mark.parametrize("held", [Int8Linear, NF4Linear])
def test_a_quantised_layer_takes_no_rows(held: type[QuantisedLinear]) -> None:
    layer = held(torch.randn(33, 64), torch.randn(33), torch.float32, nn.Linear)
    x = torch.zeros(2, 0, 64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (2, 0, 33) and x.grad is not None and x.grad.shape == x.shape


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


def test_linear_like_keeps_the_bias_and_freezes() -> None:
    base = nn.Linear(5, 3)
    layer = linear_like(base, torch.ones(3, 5), base.bias)
    assert layer.bias is not None
    assert torch.equal(layer.bias, base.bias)
    assert torch.equal(layer(torch.ones(1, 5)), 5 + base.bias[None])
    assert not any(p.requires_grad for p in layer.parameters())


def test_replace_linears_refuses_another_kind_of_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(TypeError, match=r"1 is a LayerNorm"):
        replace_linears(model, ["1"], lambda base: LoRALinear(base, 1, 1.0))


def test_a_refusal_half_way_replaces_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(RequestError, match=r"rank must be <= 2, .*, got 3 \(1\)"):
        replace_linears(model, ["0", "1"], lambda base: LoRALinear(base, 3, 1.0))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_adapters_take_the_mode_of_the_layers_they_stand_on() -> None:
    model = nn.Sequential(nn.Linear(4, 4).eval(), nn.Linear(4, 2).train())
    replace_linears(model, ["0", "1"], lambda base: LoRALinear(base, 2, 1.0, 0.5))
    assert [layer.dropout.training for layer in model] == [False, True]


def test_rank_is_at_most_the_smaller_side() -> None:
    with pytest.raises(RequestError, match="rank must be <= 3"):
        LoRALinear(nn.Linear(5, 3), rank=4, scaling=1.0)


def test_adapter_is_fp32_on_a_bf16_base_and_keeps_its_dtype() -> None:
    adapter = LoRALinear(nn.Linear(8, 4).bfloat16(), rank=2, scaling=1.0)
    assert adapter.lora_A.dtype == adapter.lora_B.dtype == torch.float32
    assert adapter(torch.randn(3, 8).bfloat16()).dtype == torch.bfloat16
    assert adapter.merged().weight.dtype == torch.bfloat16


def test_dropout_acts_on_the_update_only() -> None:
    adapter = LoRALinear(nn.Linear(6, 4), rank=2, scaling=1.0, dropout_p=0.5)
    nn.init.ones_(adapter.lora_B)
    x = torch.randn(64, 6)
    adapter.train()
    torch.manual_seed(3)
    kept = torch.dropout(x, 0.5, train=True)
    torch.manual_seed(3)
    expected = adapter.base(x) + kept @ adapter.lora_A.T @ adapter.lora_B.T
    torch.testing.assert_close(adapter(x), expected)


class Router(nn.Linear):
    """As PhiMoE's: its outputs are no product."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(x).topk(1)


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_a_product() -> None:
    assert not is_linear(Router(7, 5))
    assert is_linear(type("Named", (nn.Linear,), {})(7, 5))
    assert is_linear(FalconLinear(7, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_linear_like_shares_nothing_with_the_layer_it_is_like(kind: str) -> None:
    """A merged layer that is changed must leave the adapter's base, which unmerge puts back.

    BitFit's has the base's own weight.
    """
    base = layer_of(kind)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    made = linear_like(base, weight_of(base), base.bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
