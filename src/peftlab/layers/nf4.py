"""NF4: a frozen weight in four bits, with the scales of its blocks quantised in turn.

    w ≈ code[q] · absmax[block]                     64 weights a block, q of 4 bits
    absmax ≈ map[p] · absmax2[block] + offset       256 scales a block, p of 8 bits

Paper      Dettmers et al. 2023, arXiv:2305.14314, section 3 (NormalFloat, double quantisation)
Reference  bitsandbytes: the same codes bit for bit; codes of scales, too, except where the table of
           its CPU kernel (steps of 2⁻¹⁶) can't tell two apart (tests/layers/test_nf4.py)
Cost       4 + 8/64 + 32/(64·256) = 4.127 bits a weight; every product dequantises the weight anew
Departs    scales in the signed 8-bit dynamic map of the authors' code, not in the paper's FP8

bitsandbytes' own kernels are used where 0.50 or later is installed (extra `qlora`), elsewhere the
plain torch below, in the same layout.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import re
from importlib import metadata
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.layers.linear import QuantisedLinear

# bitsandbytes, which transformers imports too, warns of optional kernels that nothing here uses
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

CPU = torch.device("cpu")
BLOCK = 64
SCALE_BLOCK = 256
# quantiles of a normal distribution, scaled to ±1, an exact 0 among them (paper, appendix E)
CODES = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


class Quantised(NamedTuple):
    """A weight in four bits.

    Attributes:
        codes: two a byte, the first in the high half: uint8 (⌈n / 2⌉,).
        scales: of the blocks, quantised: uint8 (⌈n / 64⌉,).
        scale_of_scales: fp32 (⌈n / 64 / 256⌉,).
        offset: the mean of the scales, fp32 ().
    """

    codes: Tensor
    scales: Tensor
    scale_of_scales: Tensor
    offset: Tensor


@functools.cache
def dynamic_map(device: torch.device = CPU) -> Tensor:
    """The 256 values of the signed dynamic 8-bit type: seven decades, finer towards 1.

    Cached by device: a copy to CUDA in every product would wait for all work under way.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        decade = (10.0 ** (exponent - 6) * _midpoints(edges)).tolist()
        values += decade + [-value for value in decade]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def quantise(weight: Tensor) -> Quantised:
    """Quantise a weight of any shape, row by row."""
    scaled, scales = _divide_blocks(weight.detach().float().flatten(), BLOCK)
    codes = torch.bucketize(scaled, _midpoints(torch.tensor(CODES, device=weight.device)))
    packed = F.pad(codes.to(torch.uint8), (0, len(codes) % 2), value=CODES.index(0.0))
    offset = scales.mean()
    scaled, scale_of_scales = _divide_blocks(scales - offset, SCALE_BLOCK)
    table = dynamic_map(weight.device)
    quantised_scales = torch.bucketize(scaled, _midpoints(table)).to(torch.uint8)
    return Quantised(packed[::2] << 4 | packed[1::2], quantised_scales, scale_of_scales, offset)


def dequantise(weight: Quantised, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight of this shape, computed in fp32 and rounded to `dtype`."""
    size, device = math.prod(shape), weight.codes.device
    scales = dynamic_map(device)[weight.scales.int()]
    scales = _multiply_blocks(scales, weight.scale_of_scales, SCALE_BLOCK)
    values = F.embedding(weight.codes.int(), _pairs(device)).flatten()[:size]
    return _multiply_blocks(values, scales + weight.offset, BLOCK).to(dtype).view(shape)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The values of the two codes in each byte, (256, 2): one lookup a byte, not one a code."""
    codes = torch.tensor(CODES, device=device)
    return torch.cartesian_prod(codes, codes)


def _divide_blocks(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Each of `values` (n,) over its block's largest magnitude, and these magnitudes.

    The last block may be short.
    """
    blocks = F.pad(values, (0, -len(values) % block)).view(-1, block)
    largest = blocks.abs().amax(dim=1)
    # a block of zeros is not divided by zero
    scaled = blocks * (1 / largest.clamp(min=1e-38))[:, None]
    return scaled.clamp(-1, 1).flatten()[: len(values)], largest


def _multiply_blocks(values: Tensor, scales: Tensor, block: int) -> Tensor:
    blocks = F.pad(values, (0, -len(values) % block)).view(-1, block)
    return (blocks * scales[:, None]).flatten()[: len(values)]


def _midpoints(table: Tensor) -> Tensor:
    return (table[:-1] + table[1:]) / 2


class NF4Linear(QuantisedLinear):
    """A frozen linear layer whose weight is in four bits; it multiplies in its input's dtype."""

    held: ClassVar[str] = "nf4"

    def quantise(self, weight: Tensor) -> None:
        quantised = _empty(weight) if weight.is_meta else _quantise(weight)
        for name, tensor in quantised._asdict().items():
            self.register_buffer(name, tensor)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        weight = Quantised(*(getattr(self, name) for name in Quantised._fields))
        return _dequantise(weight, (self.out_features, self.in_features), dtype)

    def product(self, x: Tensor) -> Tensor:
        result: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    """x Wᵀ that dequantises W once more in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


def _empty(weight: Tensor) -> Quantised:
    """The shapes alone, for a weight on "meta"."""
    size = weight.numel()
    blocks = -(-size // BLOCK)
    byte: dict[str, Any] = {"dtype": torch.uint8, "device": weight.device}
    return Quantised(
        torch.empty(-(-size // 2), **byte),
        torch.empty(blocks, **byte),
        torch.empty(-(-blocks // SCALE_BLOCK), device=weight.device),
        torch.empty((), device=weight.device),
    )


@functools.cache
def has_bitsandbytes() -> bool:
    """Whether bitsandbytes is installed, 0.50 or later.

    Older ones quantise only whole blocks on a CPU, or nothing. It is not imported, which takes more
    than a second.
    """
    try:
        version = re.match(r"(\d+)\.(\d+)", metadata.version("bitsandbytes"))
    except metadata.PackageNotFoundError:
        return False
    return version is not None and (int(version[1]), int(version[2])) >= (0, 50)


def quantiser() -> str:
    """The library that quantises here: "bitsandbytes VERSION", or "peftlab"."""
    return f"bitsandbytes {metadata.version('bitsandbytes')}" if has_bitsandbytes() else "peftlab"


def _kernels(device: torch.device) -> Any | None:
    """The functions of bitsandbytes, where it is installed with kernels for `device`."""
    if not has_bitsandbytes():
        return None
    functions: Any = importlib.import_module("bitsandbytes.functional")
    return functions if device.type != "cuda" or functions.lib.compiled_with_cuda else None


def _quantise(weight: Tensor) -> Quantised:
    functions = _kernels(weight.device)
    if functions is None:
        return quantise(weight)
    codes, state = functions.quantize_4bit(
        weight.detach().float().contiguous(), blocksize=BLOCK, compress_statistics=True,
        quant_type="nf4",
    )  # fmt: skip
    return Quantised(codes.flatten(), state.absmax, state.state2.absmax, state.offset)


def _dequantise(weight: Quantised, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    functions = _kernels(weight.codes.device)
    if functions is None or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return dequantise(weight, shape, dtype)
    inner = functions.QuantState(
        absmax=weight.scale_of_scales,
        code=dynamic_map(weight.codes.device),
        blocksize=SCALE_BLOCK,
        dtype=torch.float32,
    )
    state = functions.QuantState(
        absmax=weight.scales, shape=torch.Size(shape), dtype=dtype, blocksize=BLOCK,
        quant_type="nf4", offset=weight.offset, state2=inner,
    )  # fmt: skip
    dense: Tensor = functions.dequantize_4bit(weight.codes[:, None], state)
    return dense
