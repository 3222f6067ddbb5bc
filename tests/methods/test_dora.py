"""DoRA on a layer that is not square and has a bias, its magnitude moved away from ‖W‖."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftlab.layers import Linear, NF4Linear, weight_of
from peftlab.methods.dora import DoRALinear

KINDS = ["linear", "conv1d", "nf4"]


def layer_of(kind: str = "linear", dropout: float = 0.0) -> DoRALinear:
    """7 inputs, 5 outputs, float64, every parameter away from its start."""
    torch.manual_seed(0)
    base: Linear = (Conv1D(5, 7) if kind == "conv1d" else nn.Linear(7, 5)).double()
    nn.init.normal_(base.bias)
    nn.init.normal_(base.weight)
    base.requires_grad_(False)
    if kind == "nf4":
        base = NF4Linear(weight_of(base), base.bias, torch.float64, nn.Linear)
    layer = DoRALinear(base, rank=3, scaling=1.5, dropout_p=dropout)
    layer.magnitude.data = layer.magnitude.data.double()
    with torch.no_grad():
        for parameter in (layer.lora_A, layer.lora_B, layer.magnitude):
            parameter.add_(torch.randn_like(parameter))
    return layer


def direction(layer: DoRALinear) -> Tensor:
    """W + s·B A, as a matrix: (out, in)."""
    return weight_of(layer.base).double() + layer.scaling * layer.lora_B @ layer.lora_A


def dense(layer: DoRALinear, x: Tensor, constant_norm: bool) -> Tensor:
    """The paper's equation 5 on the dense weight, the norm a constant to autograd or not."""
    v = direction(layer)
    norm = torch.stack([row.square().sum().sqrt() for row in v])
    norm = norm.detach() if constant_norm else norm
    return x @ (layer.magnitude[:, None] * v / norm[:, None]).T + layer.base.bias


def gradients(layer: DoRALinear, out: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    inputs = (x, layer.lora_A, layer.lora_B, layer.magnitude)
    return torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_norm_is_that_of_the_dense_weight(kind: str) -> None:
    layer = layer_of(kind)
    torch.testing.assert_close(layer.norm(), direction(layer).norm(dim=1), rtol=1e-6, atol=1e-6)
    assert layer.norm().shape == (5,)
    assert not layer.norm().requires_grad
    assert (layer.norm() - weight_of(layer.base).norm(dim=1)).abs().min() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_the_formula_with_a_constant_norm(kind: str) -> None:
    layer = layer_of(kind)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), dense(layer, x, True), rtol=1e-6, atol=1e-6)
    ours = gradients(layer, layer(x), x)
    torch.testing.assert_close(
        ours, gradients(layer, dense(layer, x, True), x), rtol=1e-6, atol=1e-6
    )
    with_norm = gradients(layer, dense(layer, x, False), x)
    torch.testing.assert_close(ours[3], with_norm[3], rtol=1e-6, atol=1e-6)  # of the magnitude
    for index in (1, 2):
        assert (ours[index] - with_norm[index]).abs().max() > 0.1


def test_merged_rows_have_the_magnitude_as_their_norm() -> None:
    for kind in KINDS:
        layer = layer_of(kind)
        merged = layer.merged()
        rows = weight_of(merged).norm(dim=1)
        assert weight_of(merged).shape == (5, 7)
        torch.testing.assert_close(rows, layer.magnitude.abs().detach(), rtol=1e-6, atol=1e-6)


def test_the_bias_is_not_scaled() -> None:
    """However large the magnitude: at x = 0 the output is the bias."""
    layer = layer_of()
    with torch.no_grad():
        layer.magnitude.mul_(7.0)
    out = layer(torch.zeros(1, 7).double())[0]
    assert torch.allclose(out, layer.base.bias, rtol=1e-12, atol=0)
    assert torch.equal(layer.merged().bias, layer.base.bias)


def test_the_output_is_linear_in_the_magnitude() -> None:
    layer, x = layer_of(), torch.randn(3, 7).double()
    once = layer(x) - layer.base.bias
    with torch.no_grad():
        layer.magnitude.mul_(3.0)
    torch.testing.assert_close(layer(x) - layer.base.bias, 3 * once)


def test_magnitude_starts_as_the_norm_of_each_output() -> None:
    base = nn.Linear(7, 5).double()
    layer = DoRALinear(base, rank=3, scaling=1.5)
    torch.testing.assert_close(layer.magnitude, base.weight.norm(dim=1))
    torch.testing.assert_close(layer.norm(), base.weight.norm(dim=1))


def test_dropout_acts_on_the_update_alone() -> None:
    layer = layer_of(dropout=0.5).train()
    x = torch.randn(6, 7, dtype=torch.float64)
    torch.manual_seed(3)
    kept = torch.dropout(x, 0.5, train=True)
    update = layer.scaling * kept @ layer.lora_A.T @ layer.lora_B.T
    gain = layer.magnitude / direction(layer).norm(dim=1)
    expected = gain * (x @ layer.base.weight.T + update) + layer.base.bias
    torch.manual_seed(3)
    torch.testing.assert_close(layer(x), expected)


def test_a_weight_whose_row_is_zero_gives_no_nan() -> None:
    """A pruned output: m = ‖W‖ = 0, and 0 / 0 would spread through the model."""
    base = nn.Linear(7, 5)
    nn.init.zeros_(base.weight[2])
    layer, x = DoRALinear(base, rank=3, scaling=1.5), torch.randn(4, 7)
    torch.testing.assert_close(layer(x), base(x))
    torch.testing.assert_close(layer.merged()(x), base(x))


@pytest.mark.parametrize("gain", [0.998, 1.0035, 1.3])
def test_forward_in_bf16_equals_merged_but_for_the_rounding_of_outputs(gain: float) -> None:
    """A gain of 1.0035 is 1 in bf16: forward left out what merging put in."""
    torch.manual_seed(0)
    base = nn.Linear(256, 64).bfloat16().requires_grad_(False)
    layer = DoRALinear(base, rank=3, scaling=1.5)
    with torch.no_grad():
        layer.magnitude *= gain
        x = torch.randn(500, 256).bfloat16()
        wanted = x.float() @ layer.merged_weight(base.weight.float()).T + base.bias.float()
        error = (layer(x).float() - wanted).square().mean()
        rounding = (wanted.bfloat16().float() - wanted).square().mean()
    # the product is rounded once, and its scaled sum once more
    assert error < 3 * rounding
