"""low_rank.cpp against the formula in float64, and beside what torch's products give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from peftlab.engine import fast, kernels_of, low_rank
from peftlab.engine.low_rank import LARGEST_RANK, NativeUpdates, StackedUpdates
from peftlab.engine.weights import onednn_multiplies
from peftlab.methods import inject, make
from tiny import batch, passes, tiny

HALF_STEP = 2**-8  # of bf16: the relative error of rounding
IN_FP32 = 1e-5  # of sums of some hundred numbers about 1


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Else what follows would test nothing: apt-get install g++, and ninja comes with peftlab."""
    assert low_rank.KERNEL.is_built()


class Case(NamedTuple):
    """Updates of a product's output, and what they work on."""

    pairs: list[Tensor]
    columns: list[slice]
    scalings: list[float]
    y: Tensor
    x: Tensor
    g: Tensor
    g_x: Tensor

    def native(self) -> NativeUpdates:
        return NativeUpdates(self.pairs, self.columns, self.scalings)


def case(rows: int, inside: int, sizes: Sequence[int], ranks: Sequence[int], seed: int = 0) -> Case:
    """A layer of rank 0 has no update."""
    torch.manual_seed(seed)
    pairs: list[Tensor] = []
    for size, rank in zip(sizes, ranks, strict=True):
        if rank:
            pairs += [torch.randn(rank, inside) / inside**0.5, torch.randn(size, rank)]
    bf16 = torch.bfloat16
    return Case(
        pairs,
        [column for column, rank in zip(low_rank.slices(sizes), ranks, strict=True) if rank],
        [1.5, 0.25, -2.0][: len(pairs) // 2],
        torch.randn(rows, sum(sizes), dtype=bf16),
        torch.randn(rows, inside, dtype=bf16),
        torch.randn(rows, sum(sizes), dtype=bf16),
        torch.randn(rows, inside, dtype=bf16),
    )


CASES = {
    "query and value": (368, 384, (384, 384, 384), (8, 0, 8)),
    "ranks that differ": (40, 48, (32, 16, 64), (5, 4, 3)),
    "one layer": (19, 64, (48,), (16,)),
    "one row": (1, 16, (16,), (1,)),
    "wider than a chunk": (33, 1040, (528, 16), (3, 0)),
    "more than a batch": (1715, 48, (32, 32), (2, 8)),
}


def exact(given: Case) -> tuple[Tensor, Tensor, list[Tensor]]:
    """In float64: y and g_x with the updates, and the gradients of all A and B."""
    y, x, g, g_x = (tensor.double() for tensor in (given.y, given.x, given.g, given.g_x))
    gradients = []
    pairs = [matrix.double() for matrix in given.pairs]
    for lora_A, lora_B, columns, s in zip(
        pairs[::2], pairs[1::2], given.columns, given.scalings, strict=True
    ):
        y[:, columns] += s * x @ lora_A.T @ lora_B.T
        g_x += s * g[:, columns] @ lora_B @ lora_A
        gradients += [
            s * (g[:, columns] @ lora_B).T @ x,
            s * g[:, columns].T @ (x @ lora_A.T),
        ]
    return y, g_x, gradients


def close(got: Tensor, wanted: Tensor) -> bool:
    """Within one rounding to bf16, or within sums in fp32 where it is held so."""
    rounding = HALF_STEP * wanted.abs() if got.dtype == torch.bfloat16 else 0
    scale = wanted.abs().max() if wanted.numel() else 0
    return bool(((got.double() - wanted).abs() <= rounding + IN_FP32 * scale).all())


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula_rounded_once(name: str) -> None:
    given = case(*CASES[name])
    y, g_x, gradients = exact(given)
    updates = given.native()
    added = updates.add(given.y, given.x, given.pairs)
    found = updates.gradients(given.g, given.x, given.g_x, added)
    assert close(given.y, y)
    assert close(given.g_x, g_x)
    assert [one.shape for one in found if one is not None] == [p.shape for p in given.pairs]
    assert all(close(one, wanted) for one, wanted in zip(found, gradients, strict=True))


def test_columns_without_an_update_stay_as_they_are() -> None:
    given = case(*CASES["query and value"])
    before = given.y.clone()
    given.native().add(given.y, given.x, given.pairs)
    assert torch.equal(given.y[:, 384:768], before[:, 384:768])


def test_it_is_what_torchs_products_give() -> None:
    given = case(*CASES["query and value"])
    by_torch = case(*CASES["query and value"])
    updates, stacked = given.native(), StackedUpdates(*given[:3])
    found = updates.gradients(
        given.g, given.x, given.g_x, updates.add(given.y, given.x, given.pairs)
    )
    wanted = stacked.gradients(
        by_torch.g, by_torch.x, by_torch.g_x, stacked.add(by_torch.y, by_torch.x, by_torch.pairs)
    )
    for one, other in zip(
        [given.y, given.g_x, *found], [by_torch.y, by_torch.g_x, *wanted], strict=True
    ):
        assert one is not None and other is not None
        # torch rounds A, B, x Aᵀ and g B to bf16 as well
        assert (one.float() - other.float()).norm() < 0.01 * other.float().norm()


def test_what_needs_no_gradient_gets_none() -> None:
    given = case(*CASES["ranks that differ"])
    *_, gradients = exact(given)
    updates = given.native()
    found = updates.gradients(given.g, None, None, updates.add(given.y, given.x, given.pairs))
    assert found[::2] == [None] * 3
    assert all(close(one, wanted) for one, wanted in zip(found[1::2], gradients[1::2], strict=True))


def test_rows_may_lie_apart() -> None:
    given, apart = case(*CASES["one layer"]), case(*CASES["one layer"])
    updates = given.native()
    wanted = updates.gradients(
        given.g, given.x, given.g_x, updates.add(given.y, given.x, given.pairs)
    )
    x, g = (torch.cat([one, one], 1)[:, : one.shape[1]] for one in (apart.x, apart.g))
    assert not x.is_contiguous()
    found = updates.gradients(g, x, apart.g_x, updates.add(apart.y, x, apart.pairs))
    assert torch.equal(apart.y, given.y) and torch.equal(apart.g_x, given.g_x)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    before = torch.get_num_threads()

    def run(threads: int) -> list[Tensor | None]:
        given = case(*CASES[name])
        updates = given.native()
        torch.set_num_threads(threads)
        try:
            added = updates.add(given.y, given.x, given.pairs)
            found = updates.gradients(given.g, given.x, given.g_x, added)
        finally:
            torch.set_num_threads(before)
        return [given.y, given.g_x, *found]

    for one, other in zip(run(1), run(3), strict=True):
        assert one is not None and other is not None
        assert torch.equal(one, other)


def test_nan_is_not_hidden() -> None:
    given = case(*CASES["one layer"])
    given.x[3, 5] = torch.nan
    given.g[4, 6] = torch.nan
    updates = given.native()
    found = updates.gradients(
        given.g, given.x, given.g_x, updates.add(given.y, given.x, given.pairs)
    )
    assert given.y.isnan().any(1).nonzero().flatten().tolist() == [3]
    assert given.g_x.isnan().any(1).nonzero().flatten().tolist() == [4]
    assert all(one.isnan().any() for one in found)


def matrices(rank: int, inside: int, outside: int) -> list[Tensor]:
    return [torch.zeros(rank, inside), torch.zeros(outside, rank)]


def test_only_what_it_takes_is_given_to_it() -> None:
    bf16 = torch.bfloat16
    pairs = matrices(8, 32, 48)
    assert low_rank.serves(pairs, 96, bf16)
    assert low_rank.serves(matrices(LARGEST_RANK, 32, 32), 32, bf16)
    assert not low_rank.serves(pairs, 96, torch.float32)
    assert not low_rank.serves(pairs, 100, bf16)
    assert not low_rank.serves(matrices(8, 36, 48), 96, bf16)
    assert not low_rank.serves(matrices(8, 32, 44), 96, bf16)
    assert not low_rank.serves([matrix.bfloat16() for matrix in pairs], 96, bf16)
    assert not low_rank.serves([matrix.to("meta") for matrix in pairs], 96, bf16)
    assert not low_rank.serves([matrix.T for matrix in matrices(8, 48, 32)[::-1]], 96, bf16)
    assert not low_rank.serves(matrices(LARGEST_RANK + 1, 32, 32), 32, bf16)
    assert not low_rank.serves(pairs + matrices(LARGEST_RANK - 7, 32, 48), 96, bf16)


@pytest.mark.parametrize(
    ("pairs", "columns", "reason"),
    [
        (matrices(3, 64, 48), [16], "columns of y"),
        (matrices(3, 64, 42), [0], "columns of y"),
        (matrices(3, 48, 48), [0], "A .rank, 64. and B"),
        ([torch.zeros(3, 64), torch.zeros(48, 4)], [0], "A .rank, 64. and B"),
        ([torch.zeros(64, 3).T, torch.zeros(48, 3)], [0], "contiguous"),
        ([torch.zeros(3, 64), torch.zeros(3, 48).T], [0], "contiguous"),
        ([matrix.bfloat16() for matrix in matrices(3, 64, 48)], [0], "fp32"),
        ([], [], "of each update"),
    ],
)
def test_what_it_cannot_read_is_refused(
    pairs: list[Tensor], columns: list[int], reason: str
) -> None:
    y, x = torch.zeros(2, 48).bfloat16(), torch.zeros(2, 64).bfloat16()
    with pytest.raises(RuntimeError, match=reason):
        torch.ops.peftlab.low_rank(y, x, pairs, columns, [1.0] * len(columns))


@pytest.mark.parametrize("is_A_trained", [True, False])
def test_without_numbers_it_has_the_same_shapes(is_A_trained: bool) -> None:
    given = case(*CASES["ranks that differ"])
    options = ([columns.start for columns in given.columns], given.scalings)
    operations, both = torch.ops.peftlab, (given.pairs, *options)
    inner = operations.low_rank(given.y, given.x, *both)
    x = given.x if is_A_trained else None
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(operations.low_rank, (given.y, given.x, *both), **checks)
    torch.library.opcheck(
        operations.low_rank_gradient, (given.g, x, inner, given.g_x, *both), **checks
    )


@pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2, dtype=torch.bfloat16)),
    reason="oneDNN multiplies no bf16 here",
)
def test_inside_the_engine_it_computes_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inject(tiny(), make("lora"))
    assert "low_rank.cpp" in kernels_of(model)
    assert "low_rank.cpp" not in kernels_of(tiny())
    assert "low_rank.cpp" not in kernels_of(inject(tiny(), make("lora", {"rank": 16})))
    assert "low_rank.cpp" not in kernels_of(inject(tiny(dtype=torch.float32), make("lora")))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # it begins with zeros
            nn.init.normal_(parameter, std=0.1)
    with torch.profiler.profile() as profile, fast(model):
        native = passes(model, batch())
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::low_rank", "peftlab::low_rank_gradient"} <= calls
    monkeypatch.setattr(low_rank.KERNEL, "is_built", lambda: False)
    assert "low_rank.cpp" not in kernels_of(model)
    with fast(model):
        stacked = passes(model, batch())
    assert native.keys() == stacked.keys()
    for name, one in native.items():
        assert (one - stacked[name]).norm() <= 0.03 * stacked[name].norm() + 1e-3, name
