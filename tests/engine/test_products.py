"""products.cpp against float64: whole numbers to the bit, others within a rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from peftlab.engine import fast, kernels_of, products
from peftlab.engine.weights import FrozenWeight
from peftlab.layers.cpuinfo import processor_words
from peftlab.methods import inject, make
from tiny import batch, passes, tiny

ROWS = [1, 15, 16, 17, 32, 33, 385, 2048, 2065]  # of tiles, pairs of tiles and bands, and beyond
# 800 and more along the sum are several slices; 384 and more beside, several groups of panels
SHAPES = [(32, 32), (96, 64), (64, 288), (800, 320), (96, 1056), (1600, 1312), (32, 2080)]
BF16 = torch.bfloat16

pytestmark = pytest.mark.skipif(
    "amx_bf16" not in processor_words(), reason="no AMX here: oneDNN multiplies"
)


@pytest.fixture(autouse=True)
def built(threads: None) -> None:
    """Else what follows would test nothing; with two threads, whatever the machine has."""
    torch.set_num_threads(2)
    assert products.KERNEL.is_built()
    if not torch.ops.peftlab.has_tiles():
        pytest.skip("the system lends no tiles")
    assert products.serves([torch.zeros(32, 32, dtype=BF16)])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def whole(*shape: int, largest: int = 2) -> Tensor:
    """Whole numbers, whose sums of products are exact in fp32."""
    return torch.randint(-largest, largest + 1, shape).to(BF16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_sums_of_whole_numbers_are_exact_and_rounded_once(
    rows: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight, bias = whole(*shape), whole(shape[0], largest=100)
    x, g = whole(rows, shape[1]), whole(rows, shape[0])
    expected = x.double() @ weight.double().T
    assert torch.equal(products.product(x, weight), expected.to(BF16))
    assert torch.equal(products.product(x, weight, bias), (expected + bias.double()).to(BF16))
    assert torch.equal(products.gradient(g, weight), (g.double() @ weight.double()).to(BF16))


def test_any_numbers_are_within_a_rounding() -> None:
    torch.manual_seed(0)
    weight, bias = (torch.randn(768, 3072) / 50).to(BF16), torch.randn(768).to(BF16)
    x, g = torch.randn(2, 190, 3072).to(BF16), torch.randn(2, 190, 768).to(BF16)
    for found, exact in (
        (products.product(x, weight, bias), x.double() @ weight.double().T + bias.double()),
        (products.gradient(g, weight), g.double() @ weight.double()),
    ):
        assert found.shape == exact.shape
        error = (found.double() - exact).abs()
        assert (error <= 2**-8 * exact.abs() + 1e-5).all()  # half of bf16's last place; fp32's sum


def test_a_row_depends_on_no_other_and_on_no_number_of_threads() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(1600, 1312).to(BF16), torch.randn(401, 1312).to(BF16)
    g = torch.randn(401, 1600).to(BF16)
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append((products.product(x, weight), products.gradient(g, weight)))
    for y, g_x in found:
        assert torch.equal(y, found[0][0]) and torch.equal(g_x, found[0][1])
    for row in (0, 200, 400):
        assert torch.equal(products.product(x[row : row + 1], weight)[0], found[0][0][row])
        assert torch.equal(products.gradient(g[row : row + 1], weight)[0], found[0][1][row])


def test_what_is_not_finite_stays_in_its_row() -> None:
    weight, x = torch.ones(64, 64, dtype=BF16), torch.ones(40, 64, dtype=BF16)
    x[3, 5], x[20, 0] = float("nan"), float("inf")
    y = products.product(x, weight)
    assert y[3].isnan().all() and y[20].isposinf().all()
    assert (y.isfinite().all(dim=1)).sum() == 38
    assert products.product(x[:0], weight).shape == (0, 64)


def test_its_shapes_are_known_without_numbers() -> None:
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    weight, operations = whole(64, 32), torch.ops.peftlab
    torch.library.opcheck(operations.product, (whole(5, 32), weight, whole(64)), **checks)
    torch.library.opcheck(operations.product_gradient, (whole(5, 64), weight), **checks)


def test_weights_that_it_can_t_take_are_onednn_s(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.zeros(32, 32, dtype=BF16)
    for wrong in (
        [torch.zeros(32, 32)],
        [torch.zeros(48, 32, dtype=BF16)],
        [torch.zeros(32, 48, dtype=BF16)],
        [torch.zeros(64, 32, dtype=BF16).T],
        [torch.zeros(32, 32, dtype=BF16, device="meta")],
        [right, torch.zeros(16, 32, dtype=BF16)],
    ):
        assert not products.serves(wrong)
    assert products.serves([torch.zeros(48, 32, dtype=BF16), torch.zeros(16, 32, dtype=BF16)])
    torch.set_num_threads(products.MOST_THREADS + 1)
    assert not products.serves([right])
    torch.set_num_threads(1)
    assert products.serves([right])
    monkeypatch.setattr(torch.ops.peftlab, "has_tiles", lambda: False)
    assert not products.serves([right])
    with pytest.raises(RuntimeError, match="multiples of 32"):
        torch.ops.peftlab.product(whole(4, 48), whole(32, 48), None)
    with pytest.raises(RuntimeError, match="rows of its width"):
        torch.ops.peftlab.product_gradient(whole(4, 32), whole(64, 32))
    with pytest.raises(RuntimeError, match="bias"):
        torch.ops.peftlab.product(whole(4, 32), whole(32, 32), whole(64))
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.peftlab.product(whole(32, 4).T, whole(32, 32), None)


def test_a_frozen_weight_is_multiplied_by_either_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64, dtype=BF16)
    x, g = torch.randn(5, 7, 96).to(BF16), torch.randn(5, 7, 64).to(BF16)
    found = []
    for is_built in (True, False):
        monkeypatch.setattr(products.KERNEL, "is_built", lambda is_built=is_built: is_built)
        weight = FrozenWeight.of([layer])
        assert weight.is_native == is_built
        found.append((weight.product(x, layer.bias.detach()), weight.gradient(g)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=2**-7, atol=1e-3)


def test_it_multiplies_in_the_engine() -> None:
    model = inject(tiny(), make("lora"))
    assert "products.cpp" not in kernels_of(tiny())
    assert "products.cpp" in kernels_of(model)
    assert "products.cpp" not in kernels_of(inject(tiny(dtype=torch.float32), make("lora")))
    with fast(model), torch.profiler.profile() as profile:
        passes(model, batch())
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::product", "peftlab::product_gradient"} <= calls
    assert "mkldnn::_linear_pointwise" not in calls
