"""Four-bit weights against bitsandbytes, the paper's construction, and the bounds of both."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from importlib import metadata
from typing import Any

import bitsandbytes.functional as theirs
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftlab.layers import NF4Linear, nf4
from peftlab.layers.nf4 import CODES, Quantised, dequantise, dynamic_map, quantise

# whole blocks and short last ones, an odd number of weights, odd rows, several blocks of scales
SHAPES = [(5, 7), (1, 1), (3, 64), (12, 20), (33, 65), (300, 130), (320, 256)]
STEP = 2.0**-16  # of the table in which bitsandbytes' CPU kernel looks a scale's code up


def random(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def quantised_by_bitsandbytes(weight: Tensor) -> Quantised:
    codes, state = theirs.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return Quantised(codes.flatten(), state.absmax, state.state2.absmax, state.offset)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("0.45.0", False), ("0.49.2", False), ("0.50.0", True), ("1.2.dev0", True), (None, False)],
)
def test_versions_that_lose_a_last_part_of_a_block_are_left_alone(
    version: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    assert nf4.has_bitsandbytes.__wrapped__() is wanted


class HostCopies(TorchDispatchMode):
    """Notes what is copied from a CPU to elsewhere, which on CUDA waits for all under way."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.found.append(str(result.device))
        return result


def test_a_product_copies_no_table_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "has_bitsandbytes", lambda: False)
    weight = torch.empty(64, 192, device="meta")
    layer = NF4Linear(weight, None, torch.bfloat16, nn.Linear)
    x = torch.empty(3, 192, device="meta", dtype=torch.bfloat16)
    layer(x)
    with HostCopies() as copies:
        assert layer(x).shape == (3, 64)
    assert copies.found == []


def test_a_bitsandbytes_without_cuda_is_not_asked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs.lib, "compiled_with_cuda", False, raising=False)
    assert nf4._kernels(torch.device("cuda")) is None
    assert nf4._kernels(torch.device("cpu")) is theirs
    monkeypatch.setattr(theirs.lib, "compiled_with_cuda", True, raising=False)
    assert nf4._kernels(torch.device("cuda")) is theirs


def largest(weight: Tensor) -> Tensor:
    """The largest magnitude of each block, said once more: (blocks,)."""
    flat = weight.flatten().abs()
    return torch.stack([block.max() for block in flat.split(64)])


def largest_saved(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """The numbers in the largest tensor that `run` keeps for its backward pass; its result."""
    sizes = [0]

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = run()
    return max(sizes), out


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_bitsandbytes_bit_for_bit(shape: tuple[int, int]) -> None:
    for seed in range(3):
        ours, reference = (f(random(shape, seed)) for f in (quantise, quantised_by_bitsandbytes))
        assert torch.equal(ours.codes, reference.codes)
        assert torch.equal(ours.scale_of_scales, reference.scale_of_scales)
        assert torch.equal(ours.offset, reference.offset)
        assert (ours.codes.dtype, ours.scales.dtype) == (torch.uint8, torch.uint8)


@pytest.mark.parametrize("shape", [(3, 64), (300, 130), (768, 768)])
def test_codes_of_scales_are_bitsandbytes_but_where_its_table_is_too_coarse(
    shape: tuple[int, int],
) -> None:
    """Ours are the nearest; bitsandbytes' are the nearest of a value at most one step away."""
    weight = random(shape)
    ours, reference = quantise(weight), quantised_by_bitsandbytes(weight)
    middles = (dynamic_map()[1:] + dynamic_map()[:-1]) / 2
    scales = largest(weight) - largest(weight).mean()
    scaled = torch.cat([block / block.abs().max() for block in scales.split(256)])
    low, high = (torch.bucketize(scaled + shift, middles) for shift in (-STEP, STEP))
    assert ((low <= ours.scales) & (ours.scales <= high)).all()
    assert ((low <= reference.scales) & (reference.scales <= high)).all()
    assert torch.equal(ours.scales[low == high], reference.scales[low == high])
    assert (low == high).float().mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_stand_for_the_same_weight(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    held = quantise(random(shape))
    ours, reference = dequantise(held, shape, dtype), nf4._dequantise(held, shape, dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, reference)
    assert ours.unique().numel() > 1 or ours.numel() == 1


def test_one_block_alone_stands_for_what_bitsandbytes_does() -> None:
    """Its scale is the mean of all scales, so the code of their difference, 0, is any."""
    weight = random((5, 7))
    values = {
        tuple(dequantise(f(weight), (5, 7), torch.float32).flatten().tolist())
        for f in (quantise, quantised_by_bitsandbytes)
    }
    assert len(values) == 1


def test_blocks_of_zeros_stay_zeros() -> None:
    weight = random((6, 64))
    weight[[1, 5]] = 0.0
    held = quantise(weight)
    assert torch.equal(held.codes, quantised_by_bitsandbytes(weight).codes)
    assert torch.equal(held.scales, quantised_by_bitsandbytes(weight).scales)
    assert dequantise(held, (6, 64), torch.float32)[[1, 5]].abs().max() == 0
    nothing = torch.zeros(5, 7)
    assert torch.equal(dequantise(quantise(nothing), (5, 7), torch.float32), nothing)


def test_map_of_scales_is_bitsandbytes() -> None:
    assert torch.equal(dynamic_map(), theirs.create_dynamic_map(signed=True))


def test_codebook_is_the_papers_construction() -> None:
    """Quantiles of the normal distribution on each side of an exact zero, scaled to one."""
    positive = norm.ppf(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -norm.ppf(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    expected = sorted([*positive, 0.0, *negative])
    assert pytest.approx([value / max(expected) for value in expected], abs=1e-6) == CODES
    assert torch.equal(torch.tensor(CODES), theirs.get_4bit_type("nf4", device="cpu"))


def test_error_is_at_most_half_the_widest_gap_and_that_of_the_scales() -> None:
    weight = random((768, 256))
    held = quantise(weight)
    error = (dequantise(held, (768, 256), torch.float32) - weight).abs().view(-1, 64)
    absmax = largest(weight)[:, None]
    widest = (dynamic_map()[1:] - dynamic_map()[:-1]).max()
    of_scales = (widest / 2 * held.scale_of_scales).repeat_interleave(256)[:, None]
    assert (error <= 0.152 * absmax + of_scales).all()
    assert (error > 0.14 * absmax).any()  # the bound is not idle


def test_codes_are_fixed_points() -> None:
    weight = (2.5 * torch.tensor(CODES)).repeat(20)[torch.randperm(320)].view(5, 64)
    weight[:, 0] = 2.5  # the largest of each block, so that the scales are equal and exact
    assert torch.equal(dequantise(quantise(weight), (5, 64), torch.float32), weight)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_multiplies_with_the_dequantised_weight_and_so_does_its_gradient(bias: bool) -> None:
    plain = nn.Linear(20, 12, bias=bias)
    layer = NF4Linear(plain.weight, plain.bias, torch.float32, nn.Linear)
    x = torch.randn(3, 20, requires_grad=True)
    out = layer(x)
    weight = layer.dequantised(torch.float32)
    torch.testing.assert_close(out, nn.functional.linear(x, weight, plain.bias))
    gradient = torch.randn_like(out)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ weight)
    assert not any(p.requires_grad for p in layer.parameters())
    assert 0 < (weight - plain.weight).abs().max() < 0.2 * plain.weight.abs().max()


def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = NF4Linear(random((48, 32)), None, torch.float32, nn.Linear)
    plain = nn.Linear(32, 48, bias=False).requires_grad_(False)
    made: list[weakref.ref[Tensor]] = []
    dequantised = layer.dequantised

    def watched(dtype: torch.dtype) -> Tensor:
        weight = dequantised(dtype)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(layer, "dequantised", watched)
    x = torch.randn(2, 32, requires_grad=True)
    held, out = largest_saved(lambda: layer(x))
    assert held < 48 * 32 == largest_saved(lambda: plain(x))[0]
    assert [reference() for reference in made] == [None]
    out.sum().backward()
    assert len(made) == 2  # it was made anew


def test_a_layer_takes_4_127_bits_a_weight() -> None:
    layer = NF4Linear(random((768, 768)), None, torch.float32, nn.Linear)
    held = sum(b.numel() * b.element_size() for b in layer.buffers())
    assert 8 * held / 768**2 == pytest.approx(4.127, abs=5e-4)
    assert not list(layer.parameters())


def test_without_bitsandbytes_the_same_bits_are_made_and_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, x = random((12, 20)), torch.randn(3, 20)
    layer = NF4Linear(weight, None, torch.float32, nn.Linear)
    expected = layer(x)
    monkeypatch.setattr(nf4, "has_bitsandbytes", lambda: False)
    alone = NF4Linear(weight, None, torch.float32, nn.Linear)
    for name, buffer in layer.named_buffers():
        assert torch.equal(alone.get_buffer(name), buffer), name
    assert torch.equal(alone(x), expected)


def test_a_layer_without_memory_has_the_shapes_of_one_with() -> None:
    empty = NF4Linear(torch.empty(33, 65, device="meta"), None, torch.float32, nn.Linear)
    full = NF4Linear(random((33, 65)), None, torch.float32, nn.Linear)
    shapes = {name: (b.shape, b.dtype) for name, b in full.named_buffers()}
    assert {name: (b.shape, b.dtype) for name, b in empty.named_buffers()} == shapes
    assert all(b.is_meta for b in empty.buffers())
