"""Packed weights: the bits come back, and products and gradients are the plain layers'."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.layers import LoRALinear
from peftlab.layers.engine.beside import side_by_side
from peftlab.layers.engine.packed import Joined, Packed, PackedLinear, can_pack

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not can_pack(nn.Linear(2, 2, dtype=BF16)), reason="oneDNN multiplies no bf16 here"
)


def layers(*sizes: int, conv: bool = False, bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    made = [Conv1D(n, 24) if conv else nn.Linear(24, n, bias=bias) for n in sizes]
    return [layer.to(BF16).requires_grad_(False) for layer in made]


def packed(plain: list[nn.Module]) -> list[PackedLinear]:
    joined = Joined(plain)
    joined.empty()
    return [PackedLinear(layer, joined, index) for index, layer in enumerate(plain)]


def test_the_weight_comes_back_bit_for_bit() -> None:
    weight = torch.randn(96, 70).to(BF16)
    held = Packed(weight)
    assert torch.equal(held.dense(), weight)
    wanted = torch.randn(5, 96).to(BF16)
    late = Packed(weight, backward=False)
    assert torch.equal(late.gradient(wanted), held.gradient(wanted))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("sizes", [(40,), (16, 16, 16), (8, 40)])
def test_equals_the_plain_layers(sizes: tuple[int, ...], conv: bool) -> None:
    plain = layers(*sizes, conv=conv)
    x = torch.randn(3, 5, 24).to(BF16).requires_grad_()
    wanted = [layer(x) for layer in plain]
    weights = [torch.randn_like(y) for y in wanted]
    (g_wanted,) = torch.autograd.grad(wanted, x, weights)
    before = [layer.weight.clone() for layer in plain]
    quick = packed(plain)
    got = [layer(x) for layer in quick]
    (g_got,) = torch.autograd.grad(got, x, weights)
    for one, other in zip(got, wanted, strict=True):  # both sum in fp32 and round once
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)
    # the plain layers' gradients are rounded one by one before they are added
    torch.testing.assert_close(g_got, g_wanted, rtol=2**-6, atol=2**-5)
    assert all(layer.weight.numel() == 0 for layer in plain)
    quick[0].joined.restore()
    for layer, weight in zip(plain, before, strict=True):
        assert torch.equal(layer.weight, weight)
        assert layer.weight.is_contiguous()


def test_another_input_or_order_is_computed_anew() -> None:
    query, key, value = packed(layers(8, 8, 8))
    x, y = torch.randn(2, 4, 24).to(BF16)
    first = [query(x), key(x), value(x)]
    assert torch.equal(value(y), value(y))
    assert torch.equal(key(y), key(y.clone()))
    assert not torch.equal(key(y), first[1])
    assert torch.equal(value(x), first[2])
    assert torch.equal(query(x), first[0])


def test_an_adapters_update_is_in_what_it_asks_for_and_nowhere_else() -> None:
    query, key = layers(8, 8)
    adapter = LoRALinear(query, rank=2, scaling=2.0)
    nn.init.normal_(adapter.lora_B)
    x = torch.randn(4, 24).to(BF16)
    wanted = [adapter(x), query(x), key(x)]
    joined = Joined([query, key], adapters=[adapter, None])
    joined.empty()
    adapter.base = PackedLinear(query, joined, 0)
    packed_key = PackedLinear(key, joined, 1)
    assert packed_key.updated(x) is None
    got = [adapter(x), adapter.base(x), packed_key(x)]
    assert not torch.equal(wanted[0], wanted[1])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-6)


def test_a_layer_without_a_bias_beside_one_that_has_one() -> None:
    plain = [*layers(8), *layers(8, bias=False)]
    x = torch.randn(4, 24).to(BF16)
    wanted = [layer(x) for layer in plain]
    for layer, y in zip(packed(plain), wanted, strict=True):
        torch.testing.assert_close(layer(x), y, rtol=2**-7, atol=2**-7)


def test_gradients_that_lie_side_by_side_are_not_copied() -> None:
    whole = torch.randn(3, 5, 12)
    parts = whole.split([4, 8], dim=-1)
    assert side_by_side(parts).data_ptr() == whole.data_ptr()
    apart = [parts[1], parts[0]]
    assert torch.equal(side_by_side(apart), torch.cat(apart, dim=-1))
    assert torch.equal(side_by_side([whole, whole]), torch.cat([whole, whole], dim=-1))


def test_a_packed_layer_is_no_part_of_the_state() -> None:
    plain = layers(8)
    assert set(packed(plain)[0].state_dict()) == {"bias"}
