"""Rows around products in eight bits: the built kernels are the readable form, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab.layers import rows
from peftlab.layers.rows import KERNEL, rows_to_codes, scale_rows, sums_to_rows

DTYPES = [torch.float32, torch.bfloat16]


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of very unlike sizes, one of zeros, one with an outlier."""
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.logspace(-6, 6, shape[0])[:, None]
    x[1] = 0
    x[2, 0] = 1e4 * x[2].abs().max()
    return x.to(dtype)


def by_torch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows, "_is_native", lambda x: False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 770])
@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("with_columns", [True, False])
def test_codes_and_scales_are_the_same_bits(
    dtype: torch.dtype,
    width: int,
    is_signed: bool,
    with_columns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert KERNEL.is_built(), (
        "these tests need a C++ compiler and ninja: apt-get install g++ ninja-build"
    )
    x, columns = random((37, width), dtype), torch.rand(width) if with_columns else None
    built = rows_to_codes(x, columns, is_signed)
    by_torch(monkeypatch)
    for one, other in zip(built, rows_to_codes(x, columns, is_signed), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_scaled_rows_and_sums_are_the_same_bits(
    dtype: torch.dtype, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KERNEL.is_built()
    y, scales = random((37, 65), dtype), torch.rand(37, 1)
    bias = torch.randn(65).to(dtype) if with_bias else None
    sums = torch.randint(-(10**7), 10**7, (37, 65), dtype=torch.int32)
    built = scale_rows(y.clone(), scales, bias), sums_to_rows(sums, scales, dtype)
    by_torch(monkeypatch)
    found = scale_rows(y.clone(), scales, bias), sums_to_rows(sums, scales, dtype)
    assert all(torch.equal(one, other) for one, other in zip(built, found, strict=True))


def test_a_code_is_within_half_a_step_of_its_number_and_the_largest_is_127() -> None:
    x = random((9, 300))
    codes, scales = rows_to_codes(x)
    assert ((codes * scales - x).abs() <= 0.5001 * scales).all()
    largest = codes.abs().amax(dim=1)
    assert largest[1] == 0 and set(largest.tolist()) == {0, 127}
    unsigned, _ = rows_to_codes(x, is_signed=False)
    assert torch.equal(unsigned.int() - 128, codes.int())


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random((5, 12))
    expected = rows_to_codes(x)
    monkeypatch.setattr(KERNEL, "is_built", lambda: False)
    found = rows_to_codes(x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
