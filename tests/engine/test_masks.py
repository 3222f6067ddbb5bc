"""Masks: their keep rate, their independence, and that (seed, step) alone decides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from peftlab.engine.masks import Bits, FastDropout
from peftlab.training.loop import step_seed

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
