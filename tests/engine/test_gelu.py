"""gelu.cpp against the formula in float64, at every number that bf16 has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from peftlab.engine import fast, gelu, kernels_of
from peftlab.engine.gelu import FastGelu
from peftlab.layers.native import WIDEST
from peftlab.methods import inject, make
from tiny import batch, passes, tiny

HALF_STEP = 2**-8  # of bf16: the relative error of rounding
PHI_ERROR, DERIVATIVE_ERROR = 5e-7, 8e-6  # as gelu.cpp says


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert gelu.KERNEL.is_built()


def every_number() -> Tensor:
    """All finite numbers of bf16 but those near denormal ones, which a processor takes for 0."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found = numbers[numbers.isfinite() & (numbers.abs() >= 2**-120)]
    return found[: len(found) // WIDEST * WIDEST]


def slope(x: Tensor) -> Tensor:
    """Φ(x) + x φ(x) in float64."""
    density = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    return torch.special.ndtr(x) + x * density


def gradient(x: Tensor, g: Tensor, module: nn.Module) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(module(x), x, g)
    return found


def test_it_is_the_formula_rounded() -> None:
    x = every_number()
    exact = x.double() * torch.special.ndtr(x.double())
    y = FastGelu()(x)
    assert y.dtype == torch.bfloat16
    bound = HALF_STEP * exact.abs() + PHI_ERROR * x.double().abs()
    assert ((y.double() - exact).abs() <= bound)[x.abs() < 100].all()
    assert torch.equal(y[x >= 100], x[x >= 100])
    assert not y[x < -5].any()


def test_its_gradient_is_the_formulas() -> None:
    x = every_number()
    found = gradient(x, torch.ones_like(x), FastGelu()).double()
    exact = slope(x.double())
    assert ((found - exact).abs() <= HALF_STEP * exact.abs() + DERIVATIVE_ERROR).all()


@pytest.mark.parametrize("shape", [(16,), (3, 48), (2, 7, 32), (1, 368, 1536)])
def test_the_gradient_is_multiplied(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(2, *shape).bfloat16().unbind()
    exact = g.double() * slope(x.double())
    found = gradient(x, g, FastGelu())
    assert ((found.double() - exact).abs() <= HALF_STEP * exact.abs() + 1e-5 * g.abs()).all()


@pytest.mark.parametrize(
    "x",
    [
        torch.linspace(-4, 4, 32),
        torch.linspace(-4, 4, 15).bfloat16(),
        torch.linspace(-4, 4, 64).bfloat16().view(2, 32)[:, :16],  # half of a gated layer
    ],
)
def test_what_it_does_not_take_is_torchs(x: Tensor) -> None:
    assert torch.equal(FastGelu()(x), F.gelu(x))
    g = torch.ones_like(x)
    assert torch.equal(gradient(x, g, FastGelu()), gradient(x, g, nn.GELU()))


def test_nan_stays_and_any_gradient_is_taken() -> None:
    x = torch.full((2, WIDEST), torch.nan).bfloat16()
    assert FastGelu()(x).isnan().all()
    assert gradient(x, torch.ones_like(x), FastGelu()).isnan().all()
    x = torch.linspace(-2, 2, 2 * WIDEST).bfloat16().view(2, WIDEST).requires_grad_()
    FastGelu()(x).sum().backward()  # one number expanded
    assert x.grad is not None
    assert torch.equal(x.grad, gradient(x.detach(), torch.ones_like(x), FastGelu()))
    g = torch.randn(WIDEST, 2).bfloat16().T
    assert torch.equal(
        gradient(x.detach(), g, FastGelu()), gradient(x.detach(), g.contiguous(), FastGelu())
    )
    assert FastGelu()(x[:0]).shape == (0, WIDEST)


def test_the_kernel_computes_both() -> None:
    x = torch.ones(WIDEST).bfloat16().requires_grad_()
    with torch.profiler.profile() as profile:
        FastGelu()(x).sum().backward()
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::gelu", "peftlab::gelu_gradient"} <= calls


def test_inside_the_engine_it_stands_for_gelu_in_bf16_alone() -> None:
    model = inject(tiny(), make("lora"))
    plain = [type(module) for module in model.modules()]
    with fast(model):
        assert sum(isinstance(module, FastGelu) for module in model.modules()) == 2
        inside = passes(model, batch())
    assert [type(module) for module in model.modules()] == plain
    with fast(model.eval()):
        pass
    assert not any(module.training for module in model.modules())
    outside = passes(model, batch())
    assert (inside["logits"] - outside["logits"]).abs().max() < 0.02
    assert kernels_of(tiny(dtype=torch.float32)) == "sentences.cpp, dropout.cpp"
    with fast(in_fp32 := tiny(dtype=torch.float32)):
        assert not any(isinstance(module, FastGelu) for module in in_fp32.modules())


@pytest.mark.parametrize(
    ("module", "stands_for"),
    [
        (GELUActivation(), True),
        (nn.GELU(), True),
        (nn.GELU(approximate="tanh"), False),
        (GELUActivation(use_gelu_python=True), False),
        (nn.ReLU(), False),
    ],
)
def test_which_modules_it_stands_for(module: nn.Module, stands_for: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), module)
    assert [name for name, _ in gelu.gelus_of(model)] == ["1"] * stands_for
    module.register_forward_hook(lambda *_: None)
    assert gelu.gelus_of(model) == []
