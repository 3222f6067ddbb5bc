"""Products in eight bits: what they come to, what they leave, and that both paths are one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from peftlab.errors import RequestError
from peftlab.layers import Int8Linear, int8, products, rows, weight_of
from peftlab.layers.int8 import Int7Linear

DTYPES = [torch.float32, torch.bfloat16]
KINDS = [Int8Linear, Int7Linear]


@pytest.fixture(params=[80, 128], autouse=True)
def outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The outputs of `layer`: on AMX products.cpp multiplies by 128, oneDNN by 80."""
    monkeypatch.setitem(globals(), "OUTSIDE", request.param)
    return int(request.param)


OUTSIDE = 80


def layer(
    dtype: torch.dtype = torch.float32, bias: bool = True, kind: type[Int8Linear] = Int7Linear
) -> Int8Linear:
    torch.manual_seed(0)
    plain = nn.Linear(192, OUTSIDE, bias=bias)
    return kind(plain.weight, plain.bias, dtype, nn.Linear)


def both(made: Int8Linear, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient of x."""
    x = x.clone().requires_grad_()
    y = made(x)
    y.backward(g)
    assert x.grad is not None
    return y.detach(), x.grad


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_weight_it_stands_for(
    kind: type[Int8Linear], dtype: torch.dtype, bias: bool
) -> None:
    """Codes of 127 steps and 192 numbers: each operand's rounding is some .7 % of the product."""
    made = layer(dtype, bias, kind)
    x, g = torch.randn(4, 33, 192, dtype=dtype), torch.randn(4, 33, OUTSIDE, dtype=dtype)
    y, gradient = both(made, x, g)
    weight = made.dequantised(torch.float32)
    offset = 0 if made.bias is None else made.bias.float()
    assert y.dtype == gradient.dtype == dtype
    assert 1e-3 < distance(y, x.float() @ weight.T + offset) < 0.015
    assert 1e-3 < distance(gradient, g.float() @ weight) < 0.015


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("native", [True, False])
def test_a_weight_may_lie_in_memory_as_it_likes(
    kind: type[Int8Linear], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's Conv1D holds it transposed; its codes were packed as if they did not."""
    if not native:
        monkeypatch.setattr(rows, "_is_native", lambda x: False)
    wanted = layer(torch.float32, kind=kind)
    torch.manual_seed(0)
    straight, plain = nn.Linear(192, OUTSIDE), Conv1D(OUTSIDE, 192)
    plain.weight = nn.Parameter(straight.weight.detach().T.contiguous())
    made = kind(weight_of(plain), straight.bias, torch.float32, Conv1D)
    x, g = torch.randn(33, 192), torch.randn(33, OUTSIDE)
    assert torch.equal(made.codes, wanted.codes)
    for one, other in zip(both(made, x, g), both(wanted, x, g), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_processors_products_are_the_exact_sums(
    kind: type[Int8Linear], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths quantise alike and sum integers; they differ by the rounding of the result."""
    made = layer(dtype, kind=kind)
    x, g = torch.randn(33, 192, dtype=dtype), torch.randn(33, OUTSIDE, dtype=dtype)
    quick = both(made, x, g)
    monkeypatch.setattr(int8, "product_kind", lambda device: None)
    monkeypatch.setattr(products, "serves", lambda weights: False)
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    for one, other in zip(quick, both(made, x, g), strict=True):
        torch.testing.assert_close(
            one, other, rtol=rounding, atol=rounding * float(other.abs().max())
        )


@pytest.mark.parametrize("native", [True, False])
def test_rows_may_lie_in_memory_as_they_like(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(rows, "_is_native", lambda x: False)
    made = layer(torch.bfloat16)
    x, g = torch.randn(192, 5).bfloat16().T, torch.randn(OUTSIDE, 5).bfloat16().T
    assert not (x.is_contiguous() or g.is_contiguous())
    for found, wanted in (
        (made.outputs(x, None), made.outputs(x.contiguous(), None)),
        (made.gradients(g), made.gradients(g.contiguous())),
    ):
        assert torch.equal(found, wanted)


def test_what_will_be_packed_is_told_of_a_layer_without_memory() -> None:
    for dtype in DTYPES:
        made = layer(dtype, kind=Int8Linear)
        empty = Int8Linear(torch.empty(OUTSIDE, 192, device="meta"), None, dtype, nn.Linear)
        assert empty.packings("cpu") == made.packings("cpu")
        both(made, torch.randn(5, 192, dtype=dtype), torch.randn(5, OUTSIDE, dtype=dtype))
        assert set(made.packed) == set(made.packings("cpu"))


def test_a_row_that_is_large_spoils_no_other() -> None:
    made, x = layer(), torch.randn(8, 192)
    before = made(x)
    x[3] *= 1e6
    torch.testing.assert_close(made(x)[:3], before[:3])


@pytest.mark.parametrize(("kind", "largest"), [(Int8Linear, 127), (Int7Linear, 64)])
def test_weights_are_within_half_a_step(kind: type[Int8Linear], largest: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(80, 192) * torch.logspace(-3, 3, 80)[:, None]
    made = kind(weight, None, torch.float32, nn.Linear)
    error = (made.dequantised(torch.float32) - weight).abs()
    assert (error <= 0.5001 * weight.abs().amax(dim=1, keepdim=True) / largest).all()
    assert int(made.codes.abs().max()) == largest


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"avx2"}, "narrow"),
        ({"avx2", "avx512f"}, "narrow"),
        ({"avx2", "avx_vnni"}, "wide"),
        ({"avx2", "avx512f", "avx512_vnni"}, "wide"),
        ({"sse4_2"}, None),
        (set(), None),
    ],
)
def test_how_the_processor_adds_is_told_by_its_instructions(
    words: set[str], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "processor_words", lambda: words)
    assert int8.product_kind.__wrapped__("cpu") == kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_is_too_large_where_two_products_are_added_in_16_bits(
    kind: type[Int8Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All codes the largest: without VNNI those of eight bits would come to next to nothing."""
    if int8.product_kind("cpu"):
        monkeypatch.setattr(int8, "product_kind", lambda device: "narrow")
    made = kind(torch.ones(80, 192), None, torch.float32, nn.Linear)
    y, g_x = both(made, torch.ones(5, 192), torch.ones(5, 80))
    torch.testing.assert_close(y, torch.full((5, 80), 192.0))
    torch.testing.assert_close(g_x, torch.full((5, 192), 80.0))
    assert set(made.packed) == set(made.packings("cpu"))


def test_what_is_packed_for_a_cpu_does_not_move_with_the_layer() -> None:
    made = layer(kind=Int8Linear)
    made(torch.ones(1, made.in_features))
    assert not made.to("meta").unregistered


def test_codes_of_eight_bits_are_not_loaded_into_seven() -> None:
    """Their sums would be wrong, without a word."""
    with pytest.raises(RequestError, match="codes of 127 are no weight in int7"):
        layer(kind=Int7Linear).load_state_dict(layer(kind=Int8Linear).state_dict())


def test_the_lowest_code_whose_magnitude_is_no_int8_is_not_loaded() -> None:
    state = layer(kind=Int7Linear).state_dict()
    state["codes"][3, 5] = -128
    with pytest.raises(RequestError, match="codes of 128 are no weight in int7"):
        layer(kind=Int7Linear).load_state_dict(state)


def test_nothing_is_kept_for_the_backward_pass_and_nothing_of_it_trains() -> None:
    made, saved = layer(), list[Tensor]()
    x = torch.randn(5, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        made(x)
    assert saved == []
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_a_copy_is_the_same_layer_and_packs_its_own() -> None:
    made, x = layer(), torch.randn(5, 192)
    y = made(x)
    again = copy.deepcopy(made)
    assert torch.equal(again(x), y)
    assert set(dict(made.named_buffers())) == {"codes", "scales"}


def test_a_layer_without_memory_has_the_shapes_of_one_with() -> None:
    empty = Int8Linear(torch.empty(33, 65, device="meta"), None, torch.float32, nn.Linear)
    full = Int8Linear(torch.randn(33, 65), None, torch.float32, nn.Linear)
    shapes = {name: (b.shape, b.dtype) for name, b in full.named_buffers()}
    assert {name: (b.shape, b.dtype) for name, b in empty.named_buffers()} == shapes


@pytest.mark.parametrize(
    ("n", "outside", "multiplied"), [(5, 80, 2), (17, 80, 2), (32, 80, 2), (33, 80, 2), (33, 79, 0)]
)
def test_on_cuda_all_stays_there_in_shapes_that_cublas_takes(
    n: int, outside: int, multiplied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shapes alone: rows of 32, and a weight by columns."""
    monkeypatch.setattr(int8, "product_kind", lambda device: "wide")
    products: list[tuple[torch.Size, torch.Size, tuple[int, ...]]] = []
    own = torch._int_mm

    def noted(one: Tensor, other: Tensor) -> Tensor:
        products.append((one.shape, other.shape, other.stride()))
        return own(one, other)

    monkeypatch.setattr(torch, "_int_mm", noted)
    # torch's own copies, which shapes on a GPU that is not there do not
    laid_out = lambda x: x if x.is_contiguous() else x.new_empty(x.shape)  # noqa: E731
    monkeypatch.setattr(Tensor, "contiguous", laid_out)
    with FakeTensorMode(), torch.no_grad():
        weight = torch.empty(outside, 192, device="cuda")
        made = Int8Linear(weight, torch.empty(outside, device="cuda"), torch.bfloat16, nn.Linear)
        x = torch.empty(n, 192, device="cuda", dtype=torch.bfloat16)
        y, g_x = made.outputs(x, made.bias), made.gradients(x.new_empty(n, outside))
    for found, shape in ((y, (n, outside)), (g_x, (n, 192))):
        assert found.device.type == "cuda" and found.dtype == torch.bfloat16
        assert found.shape == shape
    assert len(products) == multiplied
    for one, other, strides in products:
        assert one[0] % 32 == 0 and other[0] % 8 == other[1] % 8 == 0
        assert strides == (1, other[0])


def test_sums_are_as_exact_under_a_caller_s_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no products in eight bits they are made in fp32, and not in bf16."""
    monkeypatch.setattr(int8, "product_kind", lambda device: None)
    made, x, g = layer(kind=Int8Linear), torch.randn(33, 192), torch.randn(33, OUTSIDE)
    wanted = both(made, x, g)
    with torch.autocast("cpu", torch.bfloat16):
        found = both(made, x, g)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
