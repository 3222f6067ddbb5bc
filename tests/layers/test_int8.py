"""Products in eight bits: what they come to, what they leave, and that both paths are one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from peftlab.layers import Int8Linear, int8

DTYPES = [torch.float32, torch.bfloat16]


def layer(dtype: torch.dtype = torch.float32, bias: bool = True) -> Int8Linear:
    torch.manual_seed(0)
    plain = nn.Linear(192, 80, bias=bias)
    return Int8Linear(plain.weight, plain.bias, dtype, nn.Linear)


def both(made: Int8Linear, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient of x."""
    x = x.clone().requires_grad_()
    y = made(x)
    y.backward(g)
    assert x.grad is not None
    return y.detach(), x.grad


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_weight_it_stands_for(
    dtype: torch.dtype, bias: bool
) -> None:
    """Codes of 127 steps and 192 numbers: each operand's rounding is some .7 % of the product."""
    made = layer(dtype, bias)
    x, g = torch.randn(4, 33, 192, dtype=dtype), torch.randn(4, 33, 80, dtype=dtype)
    y, gradient = both(made, x, g)
    weight = made.dequantised(torch.float32)
    offset = 0 if made.bias is None else made.bias.float()
    assert y.dtype == gradient.dtype == dtype
    assert 1e-3 < distance(y, x.float() @ weight.T + offset) < 0.015
    assert 1e-3 < distance(gradient, g.float() @ weight) < 0.015


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_processors_products_are_the_exact_sums(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths quantise alike and sum integers; they differ by the rounding of the result."""
    made = layer(dtype)
    x, g = torch.randn(33, 192, dtype=dtype), torch.randn(33, 80, dtype=dtype)
    quick = both(made, x, g)
    monkeypatch.setattr(int8, "has_products", lambda: False)
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    for one, other in zip(quick, both(made, x, g), strict=True):
        torch.testing.assert_close(
            one, other, rtol=rounding, atol=rounding * float(other.abs().max())
        )


def test_a_row_that_is_large_spoils_no_other() -> None:
    made, x = layer(), torch.randn(8, 192)
    before = made(x)
    x[3] *= 1e6
    torch.testing.assert_close(made(x)[:3], before[:3])


def test_weights_are_within_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(80, 192) * torch.logspace(-3, 3, 80)[:, None]
    made = Int8Linear(weight, None, torch.float32, nn.Linear)
    error = (made.dequantised(torch.float32) - weight).abs()
    assert (error <= 0.5001 * weight.abs().amax(dim=1, keepdim=True) / 127).all()


def test_nothing_is_kept_for_the_backward_pass_and_nothing_of_it_trains() -> None:
    made, saved = layer(), list[Tensor]()
    x = torch.randn(5, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        made(x)
    assert saved == []
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_a_copy_is_the_same_layer_and_packs_its_own() -> None:
    made, x = layer(), torch.randn(5, 192)
    y = made(x)
    again = copy.deepcopy(made)
    assert torch.equal(again(x), y)
    assert set(dict(made.named_buffers())) == {"codes", "scales"}


def test_a_layer_without_memory_has_the_shapes_of_one_with() -> None:
    empty = Int8Linear(torch.empty(33, 65, device="meta"), None, torch.float32, nn.Linear)
    full = Int8Linear(torch.randn(33, 65), None, torch.float32, nn.Linear)
    shapes = {name: (b.shape, b.dtype) for name, b in full.named_buffers()}
    assert {name: (b.shape, b.dtype) for name, b in empty.named_buffers()} == shapes
