"""Frozen layers: products and gradients are the plain layers', and so are the weights behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.engine.frozen import FrozenLinear, Joined
from peftlab.engine.weight import onednn_multiplies, side_by_side
from peftlab.layers import LoRALinear

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2, dtype=BF16)), reason="oneDNN multiplies no bf16 here"
)


def layers(*sizes: int, conv: bool = False, bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    made = [Conv1D(n, 24) if conv else nn.Linear(24, n, bias=bias) for n in sizes]
    return [layer.to(BF16).requires_grad_(False) for layer in made]


def places(plain: list[nn.Module]) -> list[FrozenLinear]:
    joined = Joined(plain)
    joined.share()
    return [FrozenLinear(layer, joined, index) for index, layer in enumerate(plain)]


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("sizes", [(40,), (16, 16, 16), (8, 40)])
def test_equals_the_plain_layers(sizes: tuple[int, ...], conv: bool) -> None:
    plain = layers(*sizes, conv=conv)
    x = torch.randn(3, 5, 24).to(BF16).requires_grad_()
    wanted = [layer(x) for layer in plain]
    weights = [torch.randn_like(y) for y in wanted]
    (g_wanted,) = torch.autograd.grad(wanted, x, weights)
    before = [layer.weight.clone() for layer in plain]
    quick = places(plain)
    got = [layer(x) for layer in quick]
    (g_got,) = torch.autograd.grad(got, x, weights)
    for one, other in zip(got, wanted, strict=True):  # both sum in fp32 and round once
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)
    # the plain layers' gradients are rounded one by one before they are added
    torch.testing.assert_close(g_got, g_wanted, rtol=2**-6, atol=2**-5)
    held = {layer.weight.untyped_storage().data_ptr() for layer in plain}
    assert len(held) == 1  # nothing is held twice
    quick[0].joined.part()
    for layer, weight in zip(plain, before, strict=True):
        assert torch.equal(layer.weight, weight)
        assert layer.weight.is_contiguous()
        assert layer.weight.untyped_storage().nbytes() == weight.nbytes


def test_another_input_or_order_is_computed_anew() -> None:
    query, key, value = places(layers(8, 8, 8))
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
    joined.share()
    adapter.base = FrozenLinear(query, joined, 0)
    other_key = FrozenLinear(key, joined, 1)
    assert other_key.updated(x) is None
    got = [adapter(x), adapter.base(x), other_key(x)]
    assert not torch.equal(wanted[0], wanted[1])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-6)


def test_a_layer_without_a_bias_beside_one_that_has_one() -> None:
    plain = [*layers(8), *layers(8, bias=False)]
    x = torch.randn(4, 24).to(BF16)
    wanted = [layer(x) for layer in plain]
    for layer, y in zip(places(plain), wanted, strict=True):
        torch.testing.assert_close(layer(x), y, rtol=2**-7, atol=2**-7)


def test_gradients_that_lie_side_by_side_are_not_copied() -> None:
    whole = torch.randn(3, 5, 12)
    parts = whole.split([4, 8], dim=-1)
    assert side_by_side(parts).data_ptr() == whole.data_ptr()
    apart = [parts[1], parts[0]]
    assert torch.equal(side_by_side(apart), torch.cat(apart, dim=-1))
    assert torch.equal(side_by_side([whole, whole]), torch.cat([whole, whole], dim=-1))


def test_a_layers_place_adds_nothing_to_the_state() -> None:
    plain = layers(8)
    assert set(places(plain)[0].state_dict()) == {"bias"}
