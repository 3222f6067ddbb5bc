"""Products in eight bits with a frozen weight: forward, and for the input's gradient.

    y  ≈ s_x ∘ (q(x) Qᵀ) ∘ s        W ≈ s ∘ Q    Q int8 (out, in), s of each output channel
    gₓ ≈ s_g ∘ (q(g ∘ s) Q)         q(r) = round(r / s_r), s_r = max|r| / 127 of each row r

The rows of x and of g ∘ s are quantised where they are multiplied (rows.py); sums are exact, in
int32. A frozen weight has no gradient, so all of its products are in eight bits. Both directions
use the same weight, s ∘ Q.

Paper      Wortsman et al. 2023, arXiv:2304.13013, SwitchBack (which leaves the weight's gradient in
           16 bits; here there is none)
Cost       8 bits a weight, and as many packed for the processor, with AVX2 alone twice as many, but
           nothing packed where products.cpp multiplies (products.py)

AVX2 without VNNI adds two products in 16 bits before it adds in 32. `Int7Linear` is for it: codes
of at most 64, seven bits, so that 2 · 255 · 64 < 2¹⁵, and sums are exact all the same.
A device without such products multiplies the same codes in fp32: slowly, and exactly up to sums of
2²⁴, which rows of more than 1,040 numbers may pass.
On CUDA, from Ampere on, cuBLAS has them; only their shapes were tested, none was run or measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.errors import RequestError
from peftlab.layers import products
from peftlab.layers.cpuinfo import processor_words
from peftlab.layers.linear import QuantisedLinear, not_a_view
from peftlab.layers.rows import LARGEST, rows_to_codes, scale_rows, sums_to_rows

Way = Literal["forward", "back"]


class Int8Linear(QuantisedLinear):
    """A frozen linear layer whose weight and inputs are multiplied in eight bits."""

    held: ClassVar[str] = "int8"
    largest: ClassVar[int] = LARGEST  # of a code's magnitude
    codes: Tensor
    scales: Tensor

    def quantise(self, weight: Tensor) -> None:
        codes, scales = rows_to_codes(weight.float(), largest=self.largest)
        self.set_codes(codes, scales.flatten())

    def set_codes(self, codes: Tensor, scales: Tensor) -> None:
        """Hold the weight scales (out,) ∘ codes (out, in)."""
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.drop_packed()

    def drop_packed(self) -> None:
        """Drop the packed codes; the next product packs them again."""
        self.packed: dict[Way, Tensor] = {}

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        largest = int(self.codes.short().abs().max())  # |-128| is no int8
        if largest > self.largest:
            raise RequestError(f"codes of {largest} are no weight in {self.held}")
        self.drop_packed()

    @classmethod
    def stacked(cls, layers: Sequence[Int8Linear]) -> Int8Linear:
        """One layer without a bias that has the outputs of all `layers`, which have the same input.

        Scales are per output channel, so its forward gives exactly the numbers of the layers.
        """
        first = layers[0]
        stack = cls.__new__(cls)
        nn.Module.__init__(stack)  # nothing is quantised again
        stack.in_features = first.in_features
        stack.out_features = sum(layer.out_features for layer in layers)
        stack.compute, stack.plain_kind, stack.bias = first.compute, first.plain_kind, None
        codes = torch.cat([layer.codes for layer in layers])
        stack.set_codes(codes, torch.cat([layer.scales for layer in layers]))
        return stack

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.drop_packed()  # they are for a CPU
        return self

    @property
    def unregistered(self) -> list[Tensor]:
        return list(self.packed.values())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return (self.codes * self.scales[:, None]).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        result: Tensor = _Product.apply(x, self, None)  # type: ignore[no-untyped-call]
        return result

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        if self.bias is not None and self.bias.requires_grad:  # BitFit's has a gradient
            return super().forward(x)
        result: Tensor = _Product.apply(x, self, self.bias)  # type: ignore[no-untyped-call]
        return result

    def outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ + bias, without autograd."""
        return self._outputs(x.reshape(-1, x.shape[-1]), bias).view(
            *x.shape[:-1], self.out_features
        )

    def _outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:  # (n, in) -> (n, out)
        bias = None if bias is None else bias.to(x.dtype)
        if self._by_tiles(x.dtype):
            return products.product_of_codes(*rows_to_codes(x), self.codes, self.scales, bias)
        if not self._by_onednn("forward", x):
            codes, scales = rows_to_codes(x)
            y = (_sums(codes, self.codes.T) * self.scales).to(x.dtype)
            return scale_rows(y, scales, bias)
        codes, scales = rows_to_codes(x, is_signed=False)
        y = _scaled(codes, self._packed("forward"), self.scales, x.dtype)
        return scale_rows(y, scales, bias)

    def gradients(self, g: Tensor) -> Tensor:
        """(*batch, out) -> (*batch, in): g W, without autograd."""
        gradients = self._gradients(g.reshape(-1, g.shape[-1]))
        return gradients.view(*g.shape[:-1], self.in_features)

    def _gradients(self, g: Tensor) -> Tensor:  # (n, out) -> (n, in)
        if self._by_tiles(g.dtype):
            return products.gradient_of_codes(*rows_to_codes(g, self.scales), self.codes)
        if not self._by_onednn("back", g):
            codes, scales = rows_to_codes(g, self.scales)
            return sums_to_rows(_sums(codes, self.codes), scales, g.dtype)
        codes, scales = rows_to_codes(g, self.scales, is_signed=False)
        sums = _scaled(codes, self._packed("back"), torch.ones(self.in_features), g.dtype)
        return scale_rows(sums, scales, None)

    @property
    def is_native(self) -> bool:
        """Whether products.cpp multiplies what comes in this layer's own precision."""
        return self._by_tiles(self.compute)

    def _by_tiles(self, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16 and products.serves([self.codes])

    def packings(self, device: str) -> tuple[Way, ...]:
        """The directions in which codes will be packed on `device`, in the layer's own precision.

        The codes themselves may lie elsewhere, or nowhere.
        """
        may_tile = device == "cpu" and self.compute == torch.bfloat16
        by_tiles = may_tile and products.fits(torch.int8, *self.codes.shape)
        return () if by_tiles else self._ways(device)

    def _ways(self, device: str) -> tuple[Way, ...]:
        """The directions in which oneDNN multiplies packed codes on `device`.

        Forward, packing gains. Back, plain codes are as fast, except where two products are added
        in 16 bits: there plain codes take fifty times as long (LOG.md). Codes that are too large
        for such sums are multiplied in fp32.
        """
        kind = product_kind(device) if device == "cpu" else None
        if kind == "narrow" and self.largest <= NARROW:
            return ("forward", "back")
        return ("forward",) if kind == "wide" else ()

    def _by_onednn(self, way: Way, x: Tensor) -> bool:
        return way in self._ways(x.device.type) and x.dtype in OUTPUT_DTYPES

    def _packed(self, way: Way) -> Tensor:
        if way not in self.packed:
            codes = self.codes if way == "forward" else self.codes.T.contiguous()
            self.packed[way] = torch.ops.onednn.qlinear_prepack(codes, None)
        return self.packed[way]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": {}}  # a copy packs anew


OUTPUT_DTYPES = (torch.bfloat16, torch.float32)  # of oneDNN's products
NARROW = 64  # the largest code of a weight where two products are added in 16 bits


class Int7Linear(Int8Linear):
    """The same with weights of seven bits, whose sums are exact on every processor."""

    held: ClassVar[str] = "int7"
    largest: ClassVar[int] = NARROW


# the least for cuBLAS's products in eight bits: below, torch's own tests know of refusals
MIN_CAPABILITY, MIN_CUDA = (8, 0), (12, 3)
CUDA_ROWS, CUDA_STEP = 32, 8  # cuBLAS takes multiples: of so many rows, of so much in other sizes


def _sums(codes: Tensor, weight: Tensor) -> Tensor:
    """(n, k) · (k, m) -> (n, m) in int32; in fp32 where the device has no eight-bit products."""
    n, device = len(codes), codes.device.type
    misfits = device == "cuda" and any(size % CUDA_STEP for size in weight.shape)
    if misfits or product_kind(device) != "wide":
        with torch.autocast(device, enabled=False):  # sums in 16 bits would be wrong
            return codes.float() @ weight.float()
    if device == "cuda":
        codes = torch.cat([codes, codes.new_zeros(-n % CUDA_ROWS, codes.shape[1])])
        weight = weight.t().contiguous().t()  # by columns, as cuBLAS promises to take it
    return torch._int_mm(codes, weight).narrow(0, 0, n)


def _scaled(codes: Tensor, packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (n, m) ∘ scales (m,) in `dtype`, of codes (n, k) with 128 for 0, by oneDNN."""
    scaled: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(codes, 1.0, 128),
        *(packed, scales, _no_zero_points(len(scales))),
        *(None, 1.0, 0, dtype, "none", [], ""),
    )
    return scaled


@functools.cache
def product_kind(device: str) -> Literal["wide", "narrow"] | None:
    """The products in eight bits that torch has on `device`, by how they are added.

    "wide" in 32 bits, "narrow" first in pairs in 16; None where there are none.
    """
    if device == "cuda":
        cuda = tuple(map(int, (torch.version.cuda or "0").split(".")))  # None where for ROCm
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
        return "wide" if cuda >= MIN_CUDA and capability >= MIN_CAPABILITY else None
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    words = processor_words()
    if {"avx512_vnni", "avx_vnni", "amx_int8"} & words:
        return "wide"
    return "narrow" if "avx2" in words else None


@functools.cache
def _no_zero_points(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


class _Product(torch.autograd.Function):
    """x Wᵀ + bias and the gradient of x. Nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return not_a_view(layer.outputs(x, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        g_x: Tensor = ctx.layer.gradients(g)
        return g_x, None, None
