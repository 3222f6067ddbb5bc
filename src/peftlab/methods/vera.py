"""VeRA: one frozen random pair for the whole model; learn a vector on each side of it.

    y = x Wᵀ + c + b ⊙ ((d ⊙ (dropout(x) Aᵀ)) Bᵀ)        A, B shared, cut to the layer's size

Paper      Kopiczko, Blankevoort, Asano 2024, arXiv:2310.11454, eq. 2
Reference  PEFT's tuners/vera; parity test: tests/methods/test_parity_peft.py
Shapes     W (out, in), A (rank, largest in), B (largest out, rank) frozen
           d (rank,), b (out,) trained
Init       A ~ U(±sqrt(6/largest in)), then B ~ U(±sqrt(6/rank)), from one generator on the CPU
           seeded by projection_seed, or by the run's; d = d_initial, b = 0  =>  y = x Wᵀ + c at
           step 0
Cost       rank + out trained parameters a layer; the frozen pair once a model
Departs    the frozen pair is held in the base's precision, as all that is frozen, and saved in
           it. d and b, vectors, never decay
Raises     RequestError if a target matches no layer
"""

from __future__ import annotations

import math
import weakref
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.layers import (
    Adapter,
    Linear,
    PreTrainedModel,
    TensorVersion,
    WeightAdapter,
    adapter_dtype,
    base_dtype,
    device_of,
    dropout,
    features,
    scaled,
)
from peftlab.methods.base import STRICT, adapt, searched
from peftlab.methods.peft import InPeft, layers_with
from peftlab.methods.registry import register
from peftlab.models import Targets, find_targets


@dataclass(frozen=True, config=STRICT)
@register
class VeRA(InPeft):
    """Vector-based random matrix adaptation of the target layers.

    Attributes:
        rank: of the shared pair; far larger than LoRA's.
        d_initial: the value that d starts from.
        dropout: probability, on the update's input only.
        targets: which layers, see `peftlab.models.find_targets`.
        projection_seed: of the shared pair; if not given it is drawn with the run's seed, as the
            other methods' matrices are, so that spreads over seeds can be compared.
    """

    name: ClassVar[str] = "vera"
    summary: ClassVar[str] = "two vectors a layer around one shared frozen random pair"
    paper: ClassVar[str] = "arXiv:2310.11454"
    default_lr: ClassVar[float] = 3e-2
    published_lr: ClassVar[float | None] = 1e-2
    peft_type: ClassVar[str] = "VERA"
    peft_needs: ClassVar[Mapping[str, type]] = {"r": int}
    peft_names: ClassVar[Mapping[str, str]] = {  # the one pair of the model
        "shared.vera_A": "base_model.vera_A",
        "shared.vera_B": "base_model.vera_B",
    }
    peft_optional: ClassVar[tuple[str, ...]] = tuple(peft_names)  # drawn again from its seed

    rank: int = searched(1024, 64, 2048, ge=1)
    d_initial: float = Field(default=0.1)
    dropout: float = searched(0.0, 0, 0.3, log=False, ge=0, lt=1)
    targets: str = "query,value"
    projection_seed: int | None = Field(default=None, ge=0, lt=2**64)

    def inject(self, model: PreTrainedModel) -> Targets:
        layers = [model.get_submodule(name) for name in find_targets(model, self.targets).names]
        sizes = [features(layer) for layer in layers]
        shared = Projections(
            self.rank,
            max(size.inside for size in sizes),
            max(size.outside for size in sizes),
            self.projection_seed,
        ).to(device=device_of(layers[0]), dtype=base_dtype(layers[0]))
        return adapt(
            model,
            self.targets,
            lambda base: VeRALinear(base, shared, self.d_initial, self.dropout),
        )

    def peft_config(self, layers: Mapping[str, Adapter]) -> dict[str, Any]:
        return {
            "r": self.rank,
            "d_initial": self.d_initial,
            "vera_dropout": self.dropout,
            # PEFT takes the saved pair, and lets adapters of one model share it if their keys agree
            "projection_prng_key": self._projection_key(layers),
            "save_projection": True,
            "bias": "none",
        }

    def _projection_key(self, layers: Mapping[str, Adapter]) -> int:
        """The seed, from which PEFT draws the same pair; without a seed a checksum of the pair."""
        if self.projection_seed is not None:
            return self.projection_seed
        shared = cast(VeRALinear, next(iter(layers.values()))).shared
        return zlib.crc32(shared.vera_A.float().cpu().numpy().tobytes())

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self | None:
        return cls(
            rank=config["r"],
            d_initial=float(config.get("d_initial", 0.1)),
            dropout=float(config.get("vera_dropout", 0.0)),
            # without the pair in the file the key is its seed, and it is drawn as here
            projection_seed=None if _has_pair(tensors) else config.get("projection_prng_key", 0),
            targets=layers_with(tensors, ".vera_lambda_d"),
        )


def _has_pair(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("vera_A") for name in tensors)


class CachedProduct(NamedTuple):
    """The product of an `x` with the shared A, and the operands that it was made of."""

    product: Callable[[], Tensor | None]
    x: TensorVersion
    vera_A: TensorVersion
    is_cast: bool  # by autocast

    def is_of(self, x: Tensor, vera_A: Tensor, is_cast: bool) -> bool:
        return self.x.is_still(x) and self.vera_A.is_still(vera_A) and self.is_cast == is_cast


class Projections(nn.Module):
    """The frozen pair that all layers of a model share: one module, a child of each of them."""

    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, rank: int, inside: int, outside: int, seed: int | None) -> None:
        super().__init__()
        if seed is None:
            seed = int(torch.randint(2**31, (), device="cpu"))
        generator = torch.Generator().manual_seed(seed)
        for name, shape in {"vera_A": (rank, inside), "vera_B": (outside, rank)}.items():
            bound = math.sqrt(6 / shape[1])  # Kaiming uniform, gain sqrt(2)
            matrix = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, matrix)
        self.cache: CachedProduct | None = None

    def inner(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, rank): x Aᵀ, once for all layers that are given this very `x`.

        Query and value are. The cache has weak references alone, so that it keeps nothing alive.
        Where the product is gone, as it is without autograd, or `x` or A was changed in place, the
        product is made again.
        """
        is_cast = torch.is_autocast_enabled(x.device.type)
        if self.cache is not None and self.cache.is_of(x, self.vera_A, is_cast):
            cached = self.cache.product()
            if cached is not None and cached.requires_grad == x.requires_grad:
                return cached
        product = F.linear(x, self.vera_A[:, : x.shape[-1]].to(x.dtype))
        operands = TensorVersion.of(x), TensorVersion.of(self.vera_A)
        self.cache = CachedProduct(weakref.ref(product), *operands, is_cast)
        return product

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"cache": None}  # a weak reference can't be pickled


class VeRALinear(WeightAdapter):
    """A linear layer with the shared pair beside it, scaled by two vectors of its own."""

    has_gain: ClassVar[bool] = True

    def __init__(
        self, base: Linear, shared: Projections, d_initial: float, dropout_p: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base
        self.shared = shared
        self.dropout = dropout(dropout_p)
        rank = shared.vera_A.shape[0]
        options: dict[str, Any] = {"dtype": adapter_dtype(base), "device": device_of(base)}
        self.vera_lambda_d = nn.Parameter(torch.full((rank,), d_initial, **options))
        self.vera_lambda_b = nn.Parameter(torch.zeros(features(base).outside, **options))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The shared pair cut to this layer: (rank, in), (out, rank)."""
        inside, outside = features(self.base)
        return self.shared.vera_A[:, :inside], self.shared.vera_B[:outside]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        _, vera_B = self.pair
        inner = scaled(self.shared.inner(self.dropout(x)), self.vera_lambda_d)
        update = scaled(F.linear(inner, vera_B.to(x.dtype)), self.vera_lambda_b)
        out: Tensor = self.base(x) + update
        return out

    def merged_weight(self, weight: Tensor) -> Tensor:  # (out, in) -> (out, in)
        vera_A, vera_B = (matrix.to(self.vera_lambda_d.dtype) for matrix in self.pair)
        return weight + (self.vera_lambda_b[:, None] * vera_B) @ (
            self.vera_lambda_d[:, None] * vera_A
        )
