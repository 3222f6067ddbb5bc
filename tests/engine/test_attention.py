"""Plain products against eager attention, forward and backward; masks that (seed, step) decides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.models.bert.modeling_bert import eager_attention_forward

from peftlab.engine.attention import (
    BITS,
    LAYOUT,
    _Attention,
    _product,
    _softmax,
    _softmax_gradient,
    attend,
)
from peftlab.engine.bits import Bits
from peftlab.engine.dropout import FastDropout
from peftlab.engine.packing import N_QUERIES, Layout
from peftlab.training.loop import step_seed

OURS = {BITS: Bits(), LAYOUT: Layout()}  # as a module of attention carries inside `fast`


def inputs(length: int, requires_grad: bool = True) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(length)
    return [
        torch.randn(3, 4, length, 8, generator=draws, dtype=torch.float64).requires_grad_(
            requires_grad
        )
        for _ in range(3)
    ]


def padding(length: int) -> torch.Tensor:
    mask = torch.zeros(3, 1, 1, length, dtype=torch.float64)
    mask[1, ..., length // 2 :] = torch.finfo(torch.float64).min
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_equals_eager_attention(length: int, masked: bool) -> None:
    qkv = inputs(length)
    mask = padding(length) if masked else None
    module = SimpleNamespace(training=False, num_key_value_groups=1, **OURS)
    wanted, _ = eager_attention_forward(module, *qkv, mask, scaling=0.3)
    got, _ = attend(module, *qkv, mask, scaling=0.3)
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(wanted)
    for x, y in zip(
        torch.autograd.grad((got * weights).sum(), qkv),
        torch.autograd.grad((wanted * weights).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_queries_that_were_rotated_in_fp32_meet_values_in_bf16() -> None:
    """As Nomic's and Jina's under autocast: forward it would convert, and not on the way back."""
    q, k, v = (x.detach().float().requires_grad_() for x in inputs(5))
    module = SimpleNamespace(training=False, **OURS)
    found, _ = attend(module, q, k, v.bfloat16(), None, scaling=0.3)
    wanted, _ = attend(module, q, k, v, None, scaling=0.3)
    assert found.dtype == torch.bfloat16
    for one, other in zip(
        torch.autograd.grad(found.float().sum(), [q, k, v]),
        torch.autograd.grad(wanted.sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(("n_queries", "width"), [(5, 8), (7, 3)])
def test_other_lengths_or_widths_are_left_to_sdpa(n_queries: int, width: int) -> None:
    """Their gradients would take the query's shape."""
    q, k, v = inputs(7)
    q, v = q[:, :, :n_queries], v[..., :width]
    module = SimpleNamespace(training=False, is_causal=False, **OURS)
    got, _ = attend(module, q, k, v, None, scaling=0.3)
    wanted = ((q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v).transpose(1, 2)
    torch.testing.assert_close(got, wanted)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), [q, k, v]),
        torch.autograd.grad(wanted.square().sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_dropout_acts_on_the_shares_and_its_gradient_is_exact() -> None:
    torch.manual_seed(1)
    drop = Bits().mask(torch.Size([3, 4, 5, 5]), 0.4, torch.float64)
    q, k, v = inputs(5)
    shares = (q @ k.transpose(2, 3) * 0.3).softmax(-1) * drop
    got = _Attention.apply(q, k, v, None, 0.3, drop, 5)
    torch.testing.assert_close(got, (shares @ v).transpose(1, 2))
    assert torch.autograd.gradcheck(lambda *x: _Attention.apply(*x, None, 0.3, drop, 5), [q, k, v])


@pytest.mark.parametrize("masked", [False, True])
def test_one_query_is_answered_as_among_all(masked: bool) -> None:
    qkv = inputs(6)
    mask = padding(6) if masked else None
    module = SimpleNamespace(training=False, **OURS, **{N_QUERIES: 1})
    whole, _ = attend(SimpleNamespace(training=False, **OURS), *qkv, mask, scaling=0.3)
    got, _ = attend(module, *qkv, mask, scaling=0.3)
    assert got.shape == whole.shape
    torch.testing.assert_close(got[:, 0], whole[:, 0])
    weights = torch.randn_like(whole[:, 0])
    for one, other in zip(
        torch.autograd.grad((got[:, 0] * weights).sum(), qkv),
        torch.autograd.grad((whole[:, 0] * weights).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("rows", "inner"), [(1, 7), (1, 1), (7, 1), (7, 7)])
@pytest.mark.parametrize(
    ("dtype", "summed"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_products_are_summed_wide_and_rounded_once(
    dtype: torch.dtype, summed: torch.dtype, rows: int, inner: int
) -> None:
    torch.manual_seed(rows)
    a, b = torch.randn(6, rows, inner).to(dtype), torch.randn(6, 5, inner).to(dtype)
    exact = a.double() @ b.double().transpose(1, 2)
    most = a.double().abs() @ b.double().abs().transpose(1, 2)
    got = _product(a, b.transpose(1, 2))
    assert got.dtype == dtype
    bound = exact.abs() * torch.finfo(dtype).eps / 2 + inner * most * torch.finfo(summed).eps
    assert bool(((got.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("length", [1, 5, 11, 31, 32, 40])
def test_softmax_of_short_rows_is_as_exact_as_torchs(length: int) -> None:
    """Ours computes in fp32 and rounds once, so it is within half of bf16's ε of float64.

    So does torch's, which long rows take; the gradient of torch 2.6 is off by more.
    """
    torch.manual_seed(length)
    scores = (5 * torch.randn(8, 7, length)).bfloat16()
    if length > 2:
        scores[::2, :, -2:] = torch.finfo(torch.bfloat16).min  # padding
    exact = scores.double().softmax(-1)
    shares = _softmax(scores)
    torch.testing.assert_close(shares.double(), exact, rtol=2**-8, atol=1e-20)
    g = torch.randn(shares.shape).bfloat16()
    wanted = shares.double() * (g.double() - (shares.double() * g.double()).sum(-1, keepdim=True))
    error = (_softmax_gradient(g, shares).double() - wanted).abs()
    torchs = torch.ops.aten._softmax_backward_data(g, shares, -1, shares.dtype).double() - wanted
    assert bool((error <= torch.maximum(2**-8 * wanted.abs() + 1e-6, torchs.abs())).all())


def test_a_bias_that_is_trained_gets_its_gradient() -> None:
    """T5's relative positions come as the mask; its gradient is sdpa's to give."""
    qkv = inputs(5, requires_grad=False)
    bias = torch.zeros(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    module = SimpleNamespace(training=False, is_causal=False, **OURS)
    attend(module, *qkv, bias, scaling=0.3)[0].square().sum().backward()
    assert bias.grad is not None and bool(bias.grad.any())


N = 2**20


def mask(p: float, dtype: torch.dtype = torch.bfloat16, seed: int = 0, n: int = N) -> torch.Tensor:
    torch.manual_seed(seed)
    return Bits().mask(torch.Size([n]), p, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_kept_with_probability_one_minus_p_and_scaled_by_its_inverse(
    p: float, dtype: torch.dtype
) -> None:
    values = mask(p, dtype)
    scale = torch.tensor(1 / (1 - p), dtype=dtype)
    assert set(values.unique().tolist()) <= {0.0, scale.item()}
    kept = int((values != 0).sum())
    # two-sided: both a rate too high and one too low is found; p itself is exact to 2⁻¹⁷
    assert stats.binomtest(kept, N, 1 - p).pvalue > 1e-4 if p else kept == N


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_for_sure_is_dropped(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert not Bits().mask(torch.Size([4, 16]), 1.0, dtype).any()


def test_two_precisions_keep_the_same_elements() -> None:
    wide, narrow = mask(0.1, torch.float64), mask(0.1, torch.bfloat16)
    assert torch.equal(wide != 0, narrow != 0)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 7, 64, 768])
def test_neighbours_are_independent(apart: int) -> None:
    """Of a 2×2 table of each element and the one `apart` from it, a χ² test finds nothing."""
    kept = (mask(0.3) != 0).numpy()
    table = np.histogram2d(kept[:-apart], kept[apart:], bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_lanes_are_uniform() -> None:
    torch.manual_seed(0)
    counts = np.bincount(Bits().lanes(N).numpy().view(np.uint16) >> 6, minlength=1024)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_steps_and_masks_of_a_step_are_independent() -> None:
    bits = Bits()
    drawn = []
    for seed, step in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        torch.manual_seed(step_seed(seed, step))
        drawn += [bits.mask(torch.Size([N]), 0.5, torch.float32) != 0 for _ in range(2)]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            assert stats.binomtest(int((one == other).sum()), N, 0.5).pvalue > 1e-4


def test_a_step_needs_nothing_of_the_steps_before_it() -> None:
    through, resumed = Bits(), Bits()
    for step in range(3):
        torch.manual_seed(step_seed(7, step))
        last = through.mask(torch.Size([100]), 0.5, torch.float32)
    torch.manual_seed(step_seed(7, 2))
    assert torch.equal(resumed.mask(torch.Size([100]), 0.5, torch.float32), last)


def test_the_layer_drops_in_training_only_and_its_gradient_has_the_same_mask() -> None:
    layer = FastDropout(0.5, Bits())
    x = torch.ones(64, 64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y.detach(), x.grad)
    assert 0 < int((y == 0).sum()) < y.numel()
    assert layer.eval()(x) is x
