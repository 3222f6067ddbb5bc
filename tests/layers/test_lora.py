"""The one-pass update against the formula, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch

from peftlab.layers import add_low_rank, low_rank_update


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
