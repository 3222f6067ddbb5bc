"""Gradients of every layer a method makes against finite differences, in float64.

The layers are not square (7 in, 5 out), have a bias and parameters that are not the initial
ones; dropout's mask is held fixed by drawing it from the same seed each time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from peftlab.layers import Linear, LoRALinear, NF4Linear, weight_of
from peftlab.methods.delta_lora import DeltaLoRALinear
from peftlab.methods.dora import DoRALinear
from peftlab.methods.dylora import DyLoRALinear
from peftlab.methods.houlsby import Bottleneck
from peftlab.methods.vera import Projections, VeRALinear

DROPOUT = 0.4


def lora(base: Linear) -> nn.Module:
    return LoRALinear(base, 3, 1.5, DROPOUT)


def lora_fa(base: Linear) -> nn.Module:
    layer = LoRALinear(base, 3, 1.5, DROPOUT)
    layer.lora_A.requires_grad_(False)
    return layer


def dora(base: Linear) -> nn.Module:
    layer = DoRALinear(base, 3, 1.5, DROPOUT)
    layer.magnitude.data = layer.magnitude.data.double()  # fp32 of an nf4 base
    return layer


def vera(base: Linear) -> nn.Module:
    return VeRALinear(base, Projections(4, 9, 8, seed=0).double(), 0.1, DROPOUT)


def dylora(base: Linear) -> nn.Module:
    layer = DyLoRALinear(base, 3, 4.0, DROPOUT)
    layer.train_rank = 2
    return layer


def delta_lora(base: Linear) -> nn.Module:
    """Before it follows: afterwards part of it is a constant to autograd, see test_delta_lora."""
    return DeltaLoRALinear(base, 3, 1.5, 0.5)


def houlsby(base: Linear) -> nn.Module:
    return Bottleneck(base, width=5, size=3, init_std=0.5, dtype=torch.float64)


LAYERS: list[Callable[[Linear], nn.Module]] = [
    lora, lora_fa, dora, vera, dylora, delta_lora, houlsby,
]  # fmt: skip


def base_of(kind: str) -> Linear:
    torch.manual_seed(0)
    plain = (Conv1D(5, 7) if kind == "conv1d" else nn.Linear(7, 5)).double().requires_grad_(False)
    nn.init.normal_(plain.bias)
    if kind == "nf4":
        return NF4Linear(weight_of(plain), plain.bias, torch.float64, nn.Linear)
    return plain


@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
@pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.__name__)
def test_gradients_are_those_of_finite_differences(
    make: Callable[[Linear], nn.Module], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(base_of(kind)).train()
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if isinstance(layer, DoRALinear):  # a constant in the backward pass, so to be held as one
        norm = layer.norm()
        monkeypatch.setattr(layer, "norm", lambda: norm)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        output: Tensor = functional_call(layer, dict(zip(trained, parameters, strict=True)), (x,))
        return output

    x = torch.randn(1, 3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (x, *trained.values()))
    assert len(trained) == {lora_fa: 1, dora: 3, houlsby: 4}.get(make, 2)
    gradients = torch.autograd.grad(run(x, *trained.values()).square().sum(), trained.values())
    assert all(gradient.any() for gradient in gradients)
