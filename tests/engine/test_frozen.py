"""Frozen layers and updates beside them: values, gradients and the weights behind are plain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from peftlab.engine import fast
from peftlab.engine.frozen import FrozenLinear, Joined, product_with_updates, side_by_side
from peftlab.engine.weights import onednn_multiplies
from peftlab.layers import Int8Linear, LoRALinear, Pair
from peftlab.layers.int8 import Int7Linear

BF16 = torch.bfloat16
OF_TWO = {
    "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 48},
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    },
}  # fmt: skip
needs_bf16 = pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2, dtype=BF16)), reason="oneDNN multiplies no bf16 here"
)


def layers(*sizes: int, inside: int = 24, conv: bool = False, bias: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    made = [Conv1D(n, inside) if conv else nn.Linear(inside, n, bias=bias) for n in sizes]
    return [layer.to(BF16).requires_grad_(False) for layer in made]


def places(plain: list[nn.Module]) -> list[FrozenLinear]:
    joined = Joined(plain)
    joined.share()
    return [FrozenLinear(joined, index) for index in range(len(plain))]


@needs_bf16
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
    quick[0].joined.separate()
    for layer, weight in zip(plain, before, strict=True):
        assert torch.equal(layer.weight, weight)
        assert layer.weight.is_contiguous()
        assert layer.weight.untyped_storage().nbytes() == weight.nbytes


@needs_bf16
def test_another_input_or_order_is_computed_anew() -> None:
    query, key, value = places(layers(8, 8, 8))
    x, y = torch.randn(2, 4, 24).to(BF16)
    first = [query(x), key(x), value(x)]
    assert torch.equal(value(y), value(y))
    assert torch.equal(key(y), key(y.clone()))
    assert not torch.equal(key(y), first[1])
    assert torch.equal(value(x), first[2])
    assert torch.equal(query(x), first[0])


@needs_bf16
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


def test_a_layer_s_place_has_the_layer_s_state() -> None:
    plain = layers(8)
    wanted = {name: tensor.clone() for name, tensor in plain[0].state_dict().items()}
    state = places(plain)[0].state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


def in_eight_bits(*sizes: int, inside: int = 24) -> list[Int8Linear]:
    plain = layers(*sizes, inside=inside)
    return [Int7Linear(layer.weight.float(), layer.bias, BF16, nn.Linear) for layer in plain]


@pytest.mark.parametrize(("size", "inside"), [(16, 24), (64, 128)])  # of oneDNN, of AMX's tiles
def test_layers_in_eight_bits_are_one_and_give_the_very_same_outputs(
    size: int, inside: int
) -> None:
    """Scales are of each output channel and of each row of x, so joining changes no number."""
    apart = in_eight_bits(size, size, size, inside=inside)
    x = torch.randn(3, 5, inside).to(BF16).requires_grad_()
    wanted = [layer(x) for layer in apart]
    before = [(layer.codes.clone(), layer.scales.clone()) for layer in apart]
    quick = places(apart)
    got = [layer(x) for layer in quick]
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    grads = [torch.randn_like(y) for y in wanted]
    (g_got,) = torch.autograd.grad(got, x, grads)
    exact = sum(
        g.float() @ layer.dequantised(torch.float32) for g, layer in zip(grads, apart, strict=True)
    )
    assert float((g_got.float() - exact).norm() / exact.norm()) < 0.02
    held = {layer.codes.untyped_storage().data_ptr() for layer in apart}
    packed = {id(tensor) for layer in quick for tensor in layer.joined.weight.packed}
    assert len(held) == 1 and len(packed) == len(apart[0].packings("cpu"))  # nothing twice
    products = [layer.product(x) for layer in quick]
    quick[0].joined.separate()
    for layer, (codes, scales), product in zip(apart, before, products, strict=True):
        assert torch.equal(layer.codes, codes) and torch.equal(layer.scales, scales)
        assert layer.codes.untyped_storage().nbytes() == codes.nbytes
        assert torch.equal(layer.product(x), product)


def test_an_input_that_was_changed_in_place_is_another_input() -> None:
    query, key = in_eight_bits(8, 8)
    wanted = in_eight_bits(8, 8)[1]
    quick = places([query, key])
    x = torch.randn(4, 24).to(BF16)
    quick[0](x)
    before = wanted(x)
    x.mul_(-2)
    found = quick[1](x)
    assert torch.equal(found, wanted(x)) and not torch.equal(found, before)


@pytest.mark.parametrize("made", [pytest.param(layers, marks=needs_bf16), in_eight_bits])
def test_an_adapters_update_is_in_what_it_asks_for_and_nowhere_else(
    made: Callable[..., list[nn.Module]],
) -> None:
    query, key = made(8, 8)
    adapter = LoRALinear(query, rank=2, scaling=2.0)
    nn.init.normal_(adapter.lora_B)
    x = torch.randn(4, 24).to(BF16)
    wanted = [adapter(x), query(x), key(x)]
    joined = Joined([query, key], adapters=[adapter, None])
    joined.share()
    adapter.base = FrozenLinear(joined, 0)
    other_key = FrozenLinear(joined, 1)
    assert other_key.updated(x) is None
    got = [adapter(x), adapter.base(x), other_key(x)]
    assert not torch.equal(wanted[0], wanted[1])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-6)
    pair = [adapter.lora_A, adapter.lora_B]
    g = torch.randn_like(wanted[0])
    for one, other in zip(
        torch.autograd.grad(got[0], pair, g), torch.autograd.grad(wanted[0], pair, g), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)


SIZES = (4, 3, 5)


class Whole:
    """A weight in float64: `FrozenWeight` is for bf16 alone."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def gradient(self, g: Tensor) -> Tensor:
        return g @ self.weight


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def case() -> tuple[Tensor, Whole, Tensor, list[Pair | None]]:
    torch.manual_seed(0)
    weight, bias = draw(sum(SIZES), 6).detach(), draw(sum(SIZES)).detach()
    # of two ranks, so that a part in the wrong place shows
    pairs = [Pair(draw(2, 6), draw(4, 2), 1.5), None, Pair(draw(1, 6), draw(5, 1), 0.25)]
    return draw(2, 3, 6), Whole(weight), bias, pairs


def by_formula(x: Tensor, weight: Whole, bias: Tensor, pairs: list[Pair | None]) -> list[Tensor]:
    plain = F.linear(x, weight.weight, bias).split(SIZES, dim=-1)
    return [
        y if pair is None else y + pair.scaling * x @ pair.lora_A.T @ pair.lora_B.T
        for y, pair in zip(plain, pairs, strict=True)
    ]


def learned(x: Tensor, pairs: list[Pair | None]) -> list[Tensor]:
    return [x, *(tensor for pair in pairs if pair is not None for tensor in pair[:2])]


def test_a_gradient_may_lie_in_any_order() -> None:
    """As it does behind a layer whose output is transposed."""
    torch.manual_seed(0)
    x, pair = draw(2, 3, 6), Pair(draw(2, 6), draw(4, 2), 1.5)
    weight, bias = Whole(draw(4, 6).detach()), draw(4).detach()
    (got,) = product_with_updates(x, weight, bias, (4,), [pair])
    wanted = F.linear(x, weight.weight, bias) + 1.5 * x @ pair.lora_A.T @ pair.lora_B.T
    grad = torch.randn(3, 4, 2, dtype=torch.float64).permute(2, 0, 1)
    for one, other in zip(
        torch.autograd.grad(got, learned(x, [pair]), grad),
        torch.autograd.grad(wanted, learned(x, [pair]), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("beside", [False, True])
def test_equals_the_formula(beside: bool) -> None:
    """`beside`: the three gradients come as parts of one tensor, as attention gives them."""
    x, weight, bias, pairs = case()
    wanted = by_formula(x, weight, bias, pairs)
    got = product_with_updates(x, weight, bias, SIZES, pairs)
    torch.testing.assert_close(list(got), wanted)
    grads = list(torch.randn(2, 3, sum(SIZES), dtype=torch.float64).split(SIZES, dim=-1))
    if not beside:
        grads = [grad.clone() for grad in grads]
    assert (side_by_side(grads).data_ptr() == grads[0].data_ptr()) == beside
    for one, other in zip(
        torch.autograd.grad(got, learned(x, pairs), grads),
        torch.autograd.grad(wanted, learned(x, pairs), grads),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_layer_by_itself_and_without_a_bias() -> None:
    x, weight, _, (pair, *_) = case()
    weight = Whole(weight.weight[: SIZES[0]])
    (got,) = product_with_updates(x, weight, None, SIZES[:1], [pair])
    assert pair is not None
    torch.testing.assert_close(
        got, F.linear(x, weight.weight) + 1.5 * x @ pair.lora_A.T @ pair.lora_B.T
    )


def test_one_row_without_a_batch_goes_back_too() -> None:
    x, weight, bias, pairs = case()
    x = x[0, 0].detach().requires_grad_()
    got = product_with_updates(x, weight, bias, SIZES, pairs)
    wanted = by_formula(x, weight, bias, pairs)
    for one, other in zip(
        torch.autograd.grad(sum(y.square().sum() for y in got), learned(x, pairs)),
        torch.autograd.grad(sum(y.square().sum() for y in wanted), learned(x, pairs)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", range(5))
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    x, weight, bias, pairs = case()
    given = learned(x, pairs)
    given[frozen].requires_grad_(False)
    sum(y.square().sum() for y in product_with_updates(x, weight, bias, SIZES, pairs)).backward()
    assert [t.grad is None for t in given] == [index == frozen for index in range(5)]


def test_with_every_A_frozen_the_input_is_not_kept() -> None:
    """What makes LoRA-FA smaller."""
    kept: list[torch.Size] = []

    def shapes_kept(freeze: bool) -> list[torch.Size]:
        kept.clear()
        x, weight, bias, pairs = case()
        for pair in pairs:
            if pair is not None:
                pair.lora_A.requires_grad_(not freeze)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.shape), lambda nothing: nothing
        ):
            product_with_updates(x, weight, bias, SIZES, pairs)
        return list(kept)

    x = case()[0]
    assert x.shape in shapes_kept(freeze=False)
    assert x.shape not in shapes_kept(freeze=True)


def test_pairs_in_fp32_get_gradients_in_fp32() -> None:
    x, weight, bias, pairs = case()
    weight = Whole(weight.weight.bfloat16())
    exact = [
        None if p is None else Pair(*(t.detach().float().requires_grad_() for t in p[:2]), p[2])
        for p in pairs
    ]
    outputs = product_with_updates(x.detach().bfloat16(), weight, bias.bfloat16(), SIZES, exact)
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    sum(y.float().sum() for y in outputs).backward()
    assert {t.grad.dtype for p in exact if p is not None for t in p[:2]} == {torch.float32}


@needs_bf16
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_attention_between_two_texts_is_not_joined(kind: str) -> None:
    """Its query has another input than its key and value: joined, all three were computed twice."""
    config = AutoConfig.for_model(kind, vocab_size=40, **OF_TWO[kind])
    model = AutoModelForSequenceClassification.from_config(config, dtype=BF16).requires_grad_(False)
    with fast(model):
        found = {name: one for name, one in model.named_modules() if isinstance(one, FrozenLinear)}
        sizes = {name: len(one.joined.layers) for name, one in found.items()}
    crossing = {
        n for name, n in sizes.items() if "EncDecAttention" in name or "encoder_attn" in name
    }
    within = {n for name, n in sizes.items() if "SelfAttention.q" in name or "self_attn.q" in name}
    assert (crossing, within) == ({1}, {3})


@needs_bf16
def test_what_was_computed_before_a_load_is_computed_anew_behind_it() -> None:
    """Query was asked for before, and key, which waits for its turn, must not be the old one."""
    query, key = places(layers(8, 8))
    x = torch.ones(2, 24, dtype=BF16)
    query(x)
    key.load_state_dict({"weight": torch.zeros(8, 24), "bias": torch.ones(8)})
    assert torch.equal(key(x), torch.ones(2, 8, dtype=BF16))
