"""A gradient's own gradient is right or refused, never wrong without a word."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

import peftlab
from peftlab.layers import LoRALinear, NF4Linear
from peftlab.methods.dora import DoRALinear
from peftlab.methods.ia3 import ScaledInput, ScaledOutput
from peftlab.methods.vera import Projections, VeRALinear

# those whose backward pass is of products with constants, in torch's own operations
TWICE = {"peftlab.engine.packing._Pack", "peftlab.layers.nf4._Product"}


def functions() -> dict[str, type]:
    """Every autograd function of peftlab's, by its full name."""
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(peftlab.__path__, "peftlab."):
        if module.name.startswith(("peftlab.engine", "peftlab.layers", "peftlab.methods")):
            for _, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(one, torch.autograd.Function) and one.__module__ == module.name:
                    found[f"{module.name}.{one.__name__}"] = one
    return found


def test_every_backward_pass_refuses_to_be_differentiated_but_those_that_can_be() -> None:
    found = functions()
    assert found.keys() >= TWICE and len(found) > 8
    differentiable = {n for n, one in found.items() if not hasattr(one.backward, "__wrapped__")}
    assert differentiable == TWICE


def vera(base: nn.Linear) -> VeRALinear:
    layer = VeRALinear(base, Projections(4, 32, 16, seed=0), 0.1)
    nn.init.ones_(layer.vera_lambda_b)
    return layer


@pytest.mark.parametrize(
    "adapted",
    [
        lambda base: LoRALinear(base, 3, 1.5),
        lambda base: DoRALinear(base, 3, 1.5),
        vera,
        ScaledInput,
        ScaledOutput,
    ],
)
def test_a_layer_s_second_gradient_is_refused(adapted: Callable[[nn.Linear], nn.Module]) -> None:
    layer = adapted(nn.Linear(32, 16).requires_grad_(False))
    if hasattr(layer, "lora_B"):
        nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 32, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_that_of_a_layer_in_four_bits_is_right() -> None:
    layer = NF4Linear(torch.randn(5, 64), None, torch.float32, nn.Linear)
    x = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: layer.product(x).square(), (x,))
