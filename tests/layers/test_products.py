"""products.cpp against float64: whole numbers to the bit, others within a rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor

from peftlab.engine import fast, kernels_of
from peftlab.engine.weights import FrozenWeight
from peftlab.layers import Int8Linear, products, quantise_linears
from peftlab.layers.cpuinfo import processor_words
from peftlab.methods import inject, make
from peftlab.models import linear_names
from tiny import batch, passes, tiny

ROWS = [1, 15, 16, 17, 32, 33, 385, 2048, 2065]  # of tiles, pairs of tiles and bands, and beyond
# 800 and more along the sum are several slices; 384 and more beside, several groups of panels
SHAPES = [(32, 32), (96, 64), (64, 288), (800, 320), (96, 1056), (1600, 1312), (32, 2080)]
CODES_SHAPES = [(64, 64), (128, 1600), (448, 192), (1600, 3136), (64, 2048)]
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


def codes(*shape: int, largest: int = 20) -> Tensor:
    return torch.randint(-largest, largest + 1, shape, dtype=torch.int8)


def powers(n: int) -> Tensor:
    """Scales by which a sum is multiplied exactly."""
    return 2.0 ** torch.randint(-3, 3, (n,))


@pytest.mark.parametrize("shape", CODES_SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_sums_of_codes_are_exact_scaled_and_rounded_once(rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, columns, bias = codes(*shape), powers(shape[0]), whole(shape[0], largest=100)
    x, x_scales = codes(rows, shape[1]), powers(rows)[:, None]
    g, g_scales = codes(rows, shape[0]), powers(rows)[:, None]
    expected = (x.double() @ weight.double().T) * columns * x_scales
    for of_bias, offset in ((None, 0), (bias, bias.double())):
        y = products.product_of_codes(x, x_scales, weight, columns, of_bias)
        assert torch.equal(y, (expected + offset).to(BF16))
    g_x = products.gradient_of_codes(g, g_scales, weight)
    assert torch.equal(g_x, (g.double() @ weight.double() * g_scales).to(BF16))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_of_the_longest_rows_overflow_nothing(sign: int) -> None:
    x = torch.full((3, products.LONGEST), 127, dtype=torch.int8)
    weight = torch.full((64, products.LONGEST), sign * 127, dtype=torch.int8)
    ones = torch.ones(64)
    y = products.product_of_codes(x, ones[:3], weight, ones, None)
    assert torch.equal(y, torch.full((3, 64), sign * 127.0**2 * products.LONGEST).to(BF16))
    longer = torch.zeros(64, products.LONGEST + 64, dtype=torch.int8)
    assert products.serves([weight]) and not products.serves([longer])
    with pytest.raises(RuntimeError, match="sums of at most"):
        products.product_of_codes(longer[:3], ones[:3], longer, ones, None)


def test_a_layer_in_eight_bits_is_the_same_by_tiles_and_packs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both paths quantise alike and sum integers; they differ by the rounding of the result."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(192, 448)
    found = []
    for fits in (products.fits, lambda dtype, outside, inside: False):
        monkeypatch.setattr(products, "fits", fits)
        layer = Int8Linear(plain.weight, plain.bias, BF16, torch.nn.Linear)
        x = torch.linspace(-2, 3, 5 * 7 * 192).reshape(5, 7, 192).to(BF16).requires_grad_()
        y = layer(x)
        (g_x,) = torch.autograd.grad(y, x, torch.cos(torch.arange(5.0 * 7 * 448)).view_as(y))
        assert layer.is_native == fits(torch.int8, 448, 192) == (not layer.packed)
        assert set(layer.packed) == set(layer.packings("cpu"))
        found.append((y.detach(), g_x))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == BF16
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7 * float(other.abs().max()))


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
    q, Q, ones = codes(401, 1600), codes(1600, 1600), torch.ones(1600)
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        of_codes = products.product_of_codes(q, ones[:401], Q, ones, None)
        back = products.gradient_of_codes(q, ones[:401], Q)
        found.append((products.product(x, weight), products.gradient(g, weight), of_codes, back))
    for results in found:
        assert all(torch.equal(one, first) for one, first in zip(results, found[0], strict=True))
    for row in (0, 200, 400):
        of_codes = products.product_of_codes(q[row : row + 1], ones[:1], Q, ones, None)
        assert torch.equal(of_codes[0], found[0][2][row])
        back = products.gradient_of_codes(q[row : row + 1], ones[:1], Q)
        assert torch.equal(back[0], found[0][3][row])
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


def test_operations_on_codes_are_what_they_say() -> None:
    checks, ones = {"test_utils": "test_schema"}, torch.ones(64)
    q, Q, operations = codes(5, 64), codes(64, 64), torch.ops.peftlab
    of_product = (q, ones[:5], Q, ones, whole(64))
    torch.library.opcheck(operations.codes_product, of_product, **checks)
    torch.library.opcheck(operations.codes_gradient, (q, ones[:5], Q), **checks)


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
    assert products.serves([codes(64, 128)])
    assert not products.serves([codes(32, 64)]) and not products.serves([codes(64, 96)])
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
    with pytest.raises(RuntimeError, match="one for each row"):
        torch.ops.peftlab.codes_gradient(codes(4, 64), torch.ones(3), codes(64, 64))
    with pytest.raises(RuntimeError, match="multiples of 64"):
        torch.ops.peftlab.codes_gradient(codes(4, 32), torch.ones(4), codes(32, 64))
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
    assert "products.cpp" not in kernels_of(model, enabled=False)
    with fast(model), torch.profiler.profile() as profile:
        passes(model, batch())
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::product", "peftlab::product_gradient"} <= calls
    assert "mkldnn::_linear_pointwise" not in calls


@pytest.mark.parametrize("enabled", [True, False])
def test_codes_are_multiplied_in_the_engine_and_without(enabled: bool) -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    quantise_linears(model, linear_names(model), "bf16", "int8")
    model = inject(model, make("lora"))
    assert "products.cpp" in kernels_of(model, enabled)
    with fast(model, enabled), torch.profiler.profile() as profile:
        passes(model, batch())
    calls = {event.key for event in profile.key_averages()}
    assert {"peftlab::codes_product", "peftlab::codes_gradient"} <= calls
    assert not any("onednn::q" in call or "_int_mm" in call for call in calls)
