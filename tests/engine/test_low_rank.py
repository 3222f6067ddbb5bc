"""low_rank.cpp against the formula in float64, and beside what torch's products give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

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
    assert low_rank.is_built()


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
    "no row": (0, 32, (32,), (2,)),
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


def test_only_what_it_takes_is_given_to_it() -> None:
    pairs = case(*CASES["query and value"]).pairs
    assert low_rank.serves(pairs, 1152, torch.bfloat16)
    assert not low_rank.serves(pairs, 1152, torch.float32)
    assert not low_rank.serves(pairs, 1156, torch.bfloat16)
    assert not low_rank.serves([p.bfloat16() for p in pairs], 1152, torch.bfloat16)
    assert not low_rank.serves([p.T for p in pairs[::-1]], 1152, torch.bfloat16)
    wide = [torch.zeros(LARGEST_RANK + 1, 32), torch.zeros(32, LARGEST_RANK + 1)]
    assert not low_rank.serves(wide, 32, torch.bfloat16)
    given = case(*CASES["one layer"])
    with pytest.raises(RuntimeError, match="columns of y"):
        NativeUpdates(given.pairs, [slice(16, 64)], [1.0]).add(given.y, given.x, given.pairs)


def test_without_numbers_it_has_the_same_shapes() -> None:
    given = case(*CASES["ranks that differ"])
    updates = given.native()
    added = updates.add(given.y, given.x, given.pairs)
    found = updates.gradients(given.g, given.x, given.g_x, added)
    with FakeTensorMode() as mode:
        y, x, g, g_x, *pairs = (mode.from_tensor(one) for one in (*given[3:], *given.pairs))
        fakes = updates.add(y, x, pairs)
        fake_gradients = updates.gradients(g, x, g_x, fakes)
    for one, fake in zip([*added, *found], [*fakes, *fake_gradients], strict=True):
        assert one is not None and fake is not None
        assert (one.shape, one.dtype) == (fake.shape, fake.dtype)


@pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2, dtype=torch.bfloat16)),
    reason="oneDNN multiplies no bf16 here",
)
def test_inside_the_engine_it_computes_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    model = inject(tiny(), make("lora"))
    assert "low_rank.cpp" in kernels_of(model)
    assert "low_rank.cpp" not in kernels_of(tiny())
    assert "low_rank.cpp" not in kernels_of(inject(tiny(dtype=torch.float32), make("lora")))
    with torch.profiler.profile() as profile, fast(model):
        native = passes(model, batch())
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::low_rank", "peftlab::low_rank_gradient"} <= calls
    monkeypatch.setattr(low_rank, "is_built", lambda: False)
    assert "low_rank.cpp" not in kernels_of(model)
    with fast(model):
        stacked = passes(model, batch())
    assert native.keys() == stacked.keys()
    for name, one in native.items():
        assert (one - stacked[name]).norm() <= 0.03 * stacked[name].norm() + 1e-3, name
