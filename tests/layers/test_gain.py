"""gain.cpp against the formula in float64, and the torch operations that stand in for it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftlab.engine import fast, kernels_of
from peftlab.layers import Linear, Pair, gain, rescaled, scaled, squared_norms
from peftlab.layers.native import WIDEST
from peftlab.methods import inject, make
from tiny import batch, bert, passes, tiny

HALF_STEP = {torch.bfloat16: 2**-8, torch.float32: 2**-23}  # the relative error of rounding
IN_FP32 = 1e-5  # of sums of some hundred numbers about 1
DTYPES = list(HALF_STEP)
RANKS = {"vera": {"rank": 32}}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert gain.KERNEL.is_built()


def operations(call) -> set[str]:
    """The kernels that `call` runs."""
    with torch.profiler.profile() as profile:
        call()
    names = {event.key for event in profile.key_averages()}
    return {name for name in ("squared_norms", "scaled") if f"peftlab::{name}" in names}


class Layer(NamedTuple):
    """A layer with a low-rank update, and its ‖W‖²."""

    base: Linear
    squares: Tensor
    pair: Pair

    def norms(self) -> Tensor:
        return squared_norms(self.base, self.squares, self.pair)

    def exact(self) -> Tensor:
        lora_A, lora_B, scaling = self.pair
        update = scaling * lora_B.double() @ lora_A.double()
        return (self.base.weight.double() + update).square().sum(dim=1)


def layer(outside: int, inside: int, rank: int, dtype: torch.dtype) -> Layer:
    torch.manual_seed(0)
    base = nn.Linear(inside, outside, dtype=dtype).requires_grad_(False)
    base.weight.copy_(torch.randn(outside, inside))
    squares = base.weight.float().square().sum(dim=1)
    lora_A, lora_B = torch.randn(rank, inside) / inside**0.5, torch.randn(outside, rank)
    return Layer(base, squares, Pair(lora_A, lora_B, -1.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("outside", "inside", "rank"),
    [(1, 16, 1), (7, 48, 3), (64, 32, 4), (130, 768, 9), (33, 64, 16)],
)
def test_norms_are_the_formulas(outside: int, inside: int, rank: int, dtype: torch.dtype) -> None:
    of_layer = layer(outside, inside, rank, dtype)
    found = of_layer.norms()
    assert operations(of_layer.norms) == {"squared_norms"}
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), of_layer.exact(), rtol=IN_FP32, atol=0)
    assert (found / of_layer.squares - 1).abs().max() > 0.01


def test_a_weight_may_be_a_part_of_a_larger_one() -> None:
    of_layer = layer(16, 32, 4, torch.bfloat16)
    larger = torch.randn(16, 96).bfloat16()
    larger[:, 32:64] = of_layer.base.weight
    of_layer.base.weight.data = larger[:, 32:64]
    torch.testing.assert_close(of_layer.norms().double(), of_layer.exact(), rtol=IN_FP32, atol=0)


def test_norms_that_the_kernel_does_not_take_are_torchs() -> None:
    wide = layer(8, 64, 17, torch.float32)
    odd = layer(8, 15, 3, torch.float32)
    plain = layer(16, 16, 3, torch.float32)
    transposed = Conv1D(16, 16).requires_grad_(False)
    transposed.weight.copy_(plain.base.weight.T)
    for other in (wide, odd, plain._replace(base=transposed)):
        assert operations(other.norms) == set()
    torch.testing.assert_close(wide.norms().double(), wide.exact(), rtol=IN_FP32, atol=0)
    torch.testing.assert_close(odd.norms().double(), odd.exact(), rtol=IN_FP32, atol=0)
    torch.testing.assert_close(plain._replace(base=transposed).norms(), plain.norms())


class Outputs(NamedTuple):
    """Outputs of a layer, their gains, the bias beside them, and a gradient."""

    x: Tensor
    gain: Tensor
    bias: Tensor | None
    g: Tensor

    def passes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled outputs and the gradients of x and of the gain."""
        x, gain = self.x.detach().requires_grad_(), self.gain.detach().requires_grad_()
        found = rescaled(x, gain, self.bias)
        return found.detach(), *torch.autograd.grad(found, (x, gain), self.g)

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in float64: c + gain ∘ (x - c), gain ∘ g, and Σ g ∘ (x - c)."""
        x, gain, g = self.x.double(), self.gain.double(), self.g.double()
        c = torch.zeros_like(gain) if self.bias is None else self.bias.double()
        return c + gain * (x - c), gain * g, (g * (x - c)).flatten(end_dim=-2).sum(0)

    def check(self, rounding: float) -> None:
        (y, g_x, g_gain), exact = self.passes(), self.exact()
        assert y.dtype == g_x.dtype == self.x.dtype
        assert g_gain.dtype == torch.float32
        for found, wanted in ((y, exact[0]), (g_x, exact[1])):
            assert found.shape == wanted.shape
            error = (found.double() - wanted).abs()
            assert (error <= rounding * wanted.abs() + IN_FP32).all()
        scale = self.g.double().flatten(end_dim=-2).norm(dim=0) + IN_FP32
        assert ((g_gain.double() - exact[2]).abs() / scale).max() < 1e-4


def outputs(*shape: int, dtype: torch.dtype, has_bias: bool = True) -> Outputs:
    torch.manual_seed(0)
    x, g = torch.randn(2, *shape).to(dtype).unbind()
    gain = 1 + torch.randn(shape[-1]) / 4
    return Outputs(x, gain, torch.randn(shape[-1]).to(dtype) if has_bias else None, g)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (3, 48), (2, 5, 32), (70, 80), (1, 368, 768)])
def test_outputs_and_gradients_are_the_formulas_rounded_once(
    shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool
) -> None:
    of_layer = outputs(*shape, dtype=dtype, has_bias=has_bias)
    assert operations(of_layer.passes) == {"scaled"}
    of_layer.check(HALF_STEP[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_as_those_of_a_joined_product_do(dtype: torch.dtype) -> None:
    apart = outputs(2, 9, 96, dtype=dtype)
    middle = slice(32, 64)
    found = Outputs(*(one[..., middle] for one in apart))
    together = Outputs(*(one[..., middle].contiguous() for one in apart))
    assert found.x.stride(-2) == 96
    for one, other in zip(found.passes(), together.passes(), strict=True):
        assert torch.equal(one, other)
    found.check(HALF_STEP[dtype])


@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_s_operations_hold_a_gain_near_1_as_exactly(
    monkeypatch: pytest.MonkeyPatch, has_bias: bool
) -> None:
    """A gain of 1.0035 is 1 in bf16."""
    of_layer = outputs(64, 256, dtype=torch.bfloat16, has_bias=has_bias)
    of_layer = of_layer._replace(gain=1.0035 + torch.rand(256) / 1000)
    monkeypatch.setattr(gain.KERNEL, "is_built", lambda: False)
    assert operations(of_layer.passes) == set()
    for found, exact in zip(of_layer.passes()[:2], of_layer.exact()[:2], strict=True):
        error, rounding = found.double() - exact, exact.bfloat16().double() - exact
        assert error.square().mean() < 3 * rounding.square().mean()


@pytest.mark.parametrize("is_built", [True, False])
def test_other_gains_are_factors(monkeypatch: pytest.MonkeyPatch, is_built: bool) -> None:
    """VeRA's start from 0 and .1."""
    of_layer = outputs(64, 256, dtype=torch.bfloat16, has_bias=False)
    of_layer = of_layer._replace(gain=torch.linspace(-0.1, 0.1, 256))
    monkeypatch.setattr(gain.KERNEL, "is_built", lambda: is_built)
    x, of_gain = of_layer.x.requires_grad_(), of_layer.gain.requires_grad_()
    y = scaled(x, of_gain)
    assert y.dtype == torch.bfloat16
    g_x, g_gain = torch.autograd.grad(y, (x, of_gain), of_layer.g)
    of_y, of_g_x, of_g_gain = of_layer.exact()
    torch.testing.assert_close(y.double(), of_y, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(g_x.double(), of_g_x, rtol=2**-7, atol=1e-6)
    in_sums = 1e-5 if is_built else 0.1  # torch rounds the products to bf16
    torch.testing.assert_close(g_gain.double(), of_g_gain, rtol=2**-7, atol=in_sums)


@pytest.mark.parametrize("width", [15, 16])
def test_what_the_kernel_does_not_take_is_torchs(width: int) -> None:
    """A width that is no multiple of a vector's, an adapter that was cast with its model."""
    of_layer = outputs(4, width, dtype=torch.bfloat16)
    cast = of_layer._replace(gain=of_layer.gain.bfloat16()) if width == 16 else of_layer
    assert operations(cast.passes) == set()
    for found, wanted in zip(cast.passes(), cast.exact(), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0.03, atol=0.03)
    double = of_layer._replace(
        **{name: getattr(of_layer, name).double() for name in Outputs._fields}
    )
    assert operations(double.passes) == set()
    for found, wanted in zip(double.passes(), double.exact(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_any_gradient_is_taken() -> None:
    of_layer = outputs(6, WIDEST, dtype=torch.bfloat16)
    one = torch.ones((), dtype=torch.bfloat16)
    ones = of_layer._replace(g=torch.ones_like(of_layer.x))
    expanded = of_layer._replace(g=one.expand(6, WIDEST))
    for found, wanted in zip(expanded.passes(), ones.passes(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=2**-5)
    y, g_x, g_gain = of_layer._replace(x=of_layer.x[:0], g=of_layer.g[:0]).passes()
    assert y.shape == g_x.shape == (0, WIDEST)
    assert not g_gain.any()
    nan = of_layer._replace(x=of_layer.x * torch.nan)
    assert all(found.isnan().all() for found in (nan.passes()[0], nan.passes()[2]))


def test_vectors_may_have_gaps() -> None:
    of_layer = outputs(4, 32, dtype=torch.float32)
    assert of_layer.bias is not None
    gaps = of_layer._replace(
        gain=torch.stack([of_layer.gain] * 3, dim=1)[:, 1],
        bias=torch.stack([of_layer.bias] * 3, dim=1)[:, 1],
    )
    for found, wanted in zip(gaps.passes(), of_layer.passes(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", ["dora", "vera", "ia3"])
def test_under_autocast_outputs_are_in_its_precision(method: str) -> None:
    model = inject(tiny(dtype=torch.float32), make(method, RANKS.get(method)))
    layer = next(module for module in model.modules() if getattr(module, "has_gain", False))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, layer.base.in_features))
    assert y.dtype == torch.bfloat16


def test_no_sum_depends_on_the_number_of_threads() -> None:
    of_layer = layer(771, 768, 9, torch.bfloat16)  # no multiples of what is computed together
    of_outputs = outputs(70, 768, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append((of_layer.norms(), *of_outputs.passes()))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_only_the_outputs_are_kept_of_their_size() -> None:
    of_layer = outputs(40, 64, dtype=torch.bfloat16)
    x, of_gain = of_layer.x.requires_grad_(), of_layer.gain.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        rescaled(x, of_gain, of_layer.bias)
    (large,) = [one for one in kept if one.numel() >= x.numel()]
    assert large.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize(
    ("method", "used"),
    [("dora", {"squared_norms", "scaled"}), ("vera", {"scaled"}), ("ia3", {"scaled"})],
)
def test_methods_with_gains_train_by_it(method: str, used: set[str], is_fast: bool) -> None:
    model = inject(tiny(dtype=torch.bfloat16), make(method, RANKS.get(method)))
    assert "gain.cpp" in kernels_of(model)
    with fast(model, is_fast):
        assert operations(lambda: passes(model, batch())) == used


def test_records_name_it_where_it_serves() -> None:
    assert "gain.cpp" in kernels_of(inject(tiny(), make("dora")))
    assert kernels_of(inject(tiny(), make("dora")), enabled=False) == "gain.cpp"
    assert kernels_of(inject(tiny(), make("lora")), enabled=False) == "torch"
    assert "gain.cpp" not in kernels_of(inject(tiny(), make("lora")))
    for unserved in (
        inject(tiny(dtype=torch.float64), make("dora")),
        inject(tiny(dtype=torch.bfloat16), make("dora")).bfloat16(),
        inject(bert(), make("dora")),  # 12 wide
    ):
        assert "gain.cpp" not in kernels_of(unserved)
