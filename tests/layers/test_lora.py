"""The one-pass update against the formula, in value and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from peftlab.layers import add_low_rank, low_rank_update, new_pair


def tensors() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 6), (2, 3, 5), (4, 5), (6, 4)]  # onto, x, A, B
    return [
        torch.randn(shape, generator=draws, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def test_equals_the_formula() -> None:
    onto, x, a, b = tensors()
    wanted = onto + low_rank_update(x, a, b, 1.7)
    got = add_low_rank(onto, x, a, b, 1.7)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(wanted)
    given = (onto, x, a, b)
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), given),
        torch.autograd.grad((wanted * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradcheck(lambda *t: add_low_rank(*t, 1.7), given)


class Draws(TorchDispatchMode):
    """Notes the device of what is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.uniform_.default:
            self.devices.append(args[0].device.type)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("device", "drawn"), [("cpu", "cpu"), ("cuda", "cpu"), ("meta", "meta")])
def test_a_seed_gives_one_start_on_any_device(device: str, drawn: str) -> None:
    """`compare` injects on the CPU and `train` where the model lies: their A's differed on CUDA."""
    base = nn.Linear(6, 4, device="meta")
    with FakeTensorMode():
        base.weight = nn.Parameter(torch.empty(4, 6, device=device))
        with Draws() as draws:
            pair = new_pair(base, 2)
    assert {parameter.device.type for parameter in pair} == {device}
    assert draws.devices == [drawn]


@pytest.mark.parametrize("frozen", range(4))
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    given = tensors()
    given[frozen].requires_grad_(False)
    add_low_rank(*given, 1.7).sum().backward()
    assert [t.grad is None for t in given] == [index == frozen for index in range(4)]


def test_no_examples_have_no_outputs_and_gradients_of_nothing() -> None:
    _, _, a, b = tensors()
    onto, x = (torch.zeros(0, 3, n, dtype=torch.float64).requires_grad_() for n in (6, 5))
    add_low_rank(onto, x, a, b, 1.7).sum().backward()
    assert x.grad.shape == x.shape
    assert not a.grad.any() and not b.grad.any()


def test_pairs_in_fp32_on_a_bf16_layer_get_gradients_in_fp32() -> None:
    onto, x, a, b = (t.detach().float() for t in tensors())
    pair = [a.requires_grad_(), b.requires_grad_()]
    out = add_low_rank(onto.bfloat16(), x.bfloat16(), *pair, 1.7)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert [t.grad.dtype for t in pair] == [torch.float32] * 2


def test_computes_in_bf16_under_autocast() -> None:
    onto, x, a, b = (t.detach().float() for t in tensors())
    with torch.autocast("cpu", torch.bfloat16):
        got = add_low_rank(onto, x, a, b, 1.7)
        assert torch.equal(got, onto + low_rank_update(x, a, b, 1.7))
