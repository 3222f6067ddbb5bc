"""Frozen linear layers as bare products; layers with the same input joined, low-rank updates added.

    product_with_updates   low-rank updates, added to the output of a joined product
    FrozenLinear           y = x Wᵀ + c, and backward g W alone: W's gradient is not computed
    Joined                 query, key and value (or gate and up): one product forward, one backward

The products are those of weights.py, the updates those of low_rank.py. A state dict has the
replaced layers' own names and tensors. Gradients that lie side by side in memory, as those of a
joined product do, are used as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftlab.engine import low_rank
from peftlab.engine.low_rank import NativeUpdates, StackedUpdates, Updates, slices
from peftlab.engine.weights import FrozenCodesWeight, FrozenWeight, Weight
from peftlab.errors import RequestError
from peftlab.layers.int8 import Int8Linear
from peftlab.layers.linear import BaseLinear, base_dtype, features, not_a_view, weight_of
from peftlab.layers.lora import LowRank, Pair
from peftlab.layers.version import TensorVersion
from peftlab.models.state import not_inside


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`parts` (*batch, nᵢ) joined along the last dimension; not copied if they lie so in memory."""
    first = parts[0]
    if len(parts) == 1:
        return first
    width = sum(part.shape[-1] for part in parts)
    storage = first.untyped_storage()._cdata  # fakes have one, too
    offset = first.storage_offset()
    for part in parts:
        if (
            part.dim() < 2
            or part.untyped_storage()._cdata != storage
            or part.storage_offset() != offset
            or part.stride() != first.stride()
            or part.stride()[-2] != width
        ):
            return torch.cat(list(parts), dim=-1)
        offset += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride())


def product_with_updates(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    sizes: Sequence[int],
    pairs: Sequence[Pair | None],
) -> tuple[Tensor, ...]:
    """The outputs (*batch, nᵢ) of all layers, with the update of each that has a pair.

    y = x [W₁; W₂; …]ᵀ + c,    yᵢ += x Aᵢᵀ (sᵢ Bᵢᵀ)        i: the layers that have an update
    """
    places, matrices = places_and_matrices(sizes, pairs)
    outputs: tuple[Tensor, ...] = _UpdatedProduct.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, sizes, places, *matrices
    )
    return outputs


class Places(NamedTuple):
    """Where the updates of a joined product are added to its output, and the factor of each."""

    columns: list[slice]
    scalings: list[float]


def places_and_matrices(
    sizes: Sequence[int], pairs: Sequence[Pair | None]
) -> tuple[Places, list[Tensor]]:
    """The places and the matrices A₁, B₁, A₂, … of the updates of layers with `sizes` outputs."""
    there = [(columns, pair) for columns, pair in zip(slices(sizes), pairs, strict=True) if pair]
    places = Places([columns for columns, _ in there], [pair.scaling for _, pair in there])
    return places, [matrix for _, pair in there for matrix in pair[:2]]


def multiply(
    x: Tensor, weight: Weight, bias: Tensor | None, places: Places, matrices: Sequence[Tensor]
) -> tuple[Tensor, Updates | None, tuple[Tensor, ...]]:
    """The joined product with its updates, and what `multiply_gradients` needs of both.

    Never inside autograd, as `multiply_gradients`.
    """
    y = weight.product(x, bias)
    if not matrices:
        return y, None, ()
    rows, flat = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    is_native = low_rank.serves(matrices, y.shape[-1], y.dtype)
    updates = (NativeUpdates if is_native else StackedUpdates)(matrices, *places)
    return y, updates, updates.add(flat, rows, matrices)


def multiply_gradients(
    g: Tensor,
    x: Tensor | None,
    weight: Weight,
    updates: Updates | None,
    added: Sequence[Tensor],
    needs_x: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x, if it `needs_x` one, and of A₁, B₁, A₂, B₂, …; x is None if no A does."""
    with torch.autocast(g.device.type, enabled=False):
        g_x = weight.gradient(g) if needs_x else None
        if updates is None:
            return g_x, []
        flat_g_x = None if g_x is None else g_x.view(-1, g_x.shape[-1])
        rows = None if x is None else x.reshape(-1, x.shape[-1])
        return g_x, updates.gradients(g.reshape(-1, g.shape[-1]), rows, flat_g_x, added)


class _UpdatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        sizes: Sequence[int],
        places: Places,
        *matrices: Tensor,
    ) -> tuple[Tensor, ...]:
        y, ctx.updates, added = multiply(x, weight, bias, places, matrices)
        ctx.weight = weight
        # x is saved only if an A is trained: those of LoRA-FA are constants
        ctx.save_for_backward(x if any(ctx.needs_input_grad[5::2]) else None, *added)
        return split_outputs(y, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *added = ctx.saved_tensors
        g_x, g_matrices = multiply_gradients(
            side_by_side(gradients), x, ctx.weight, ctx.updates, added, ctx.needs_input_grad[0]
        )
        return (g_x, None, None, None, None, *g_matrices)


def split_outputs(y: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`y` cut along its last dimension: no copies, and no views to autograd (`not_a_view`)."""
    if len(sizes) == 1:
        return (not_a_view(y),)
    parts: tuple[Tensor, ...] = tuple(torch.unsafe_split_with_sizes(y, list(sizes), -1))
    return parts


class _Product(torch.autograd.Function):
    """x Wᵀ + c, cut along its last dimension; only x has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        y = weight.product(x, bias)
        return split_outputs(y, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.weight.gradient(side_by_side(gradients)), None, None, None


class FrozenLinear(BaseLinear):
    """Stands in for a frozen linear layer inside the engine, alone or joined with its siblings.

    Args:
        joined: computes the layer's output.
        index: the layer's number among the joined ones.
    """

    def __init__(self, joined: Joined, index: int) -> None:
        super().__init__()
        self.joined, self.index = joined, index
        self.in_features, self.out_features = joined.features[index]
        plain = self.plain
        self.bias = plain.bias
        self.compute = base_dtype(plain)
        self.plain_kind = plain.plain_kind if isinstance(plain, BaseLinear) else type(plain)
        self.train(plain.training)

    @property
    def plain(self) -> Any:
        """The layer itself; no attribute, which would make it a submodule of this one."""
        return self.joined.layers[self.index]

    @property
    def weight(self) -> Tensor:
        """The layer's own weight: some models read its dtype."""
        weight: Tensor = self.plain.weight
        return weight

    @property
    def tensors(self) -> list[Tensor]:
        """The layer's parameters and buffers, and the packed copies of the joined weight."""
        return [*self.plain.parameters(), *self.plain.buffers(), *self.joined.weight.packed]

    def __getstate__(self) -> Any:
        raise not_inside("copied")

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        if self.joined.adapters[self.index] is not None:  # its adapter calls `updated` instead
            return self.joined.outputs(x)[self.index]
        return self.joined.output(x, self.index)

    def updated(self, x: Tensor) -> Tensor | None:
        if self.joined.adapters[self.index] is None:
            return None
        return self.joined.output(x, self.index)

    def _save_to_state_dict(self, *args: Any, **options: Any) -> None:
        self.plain._save_to_state_dict(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.plain._load_from_state_dict(*args, **options)
        self.joined.refresh()

    def product(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""
        if isinstance(self.joined.weight, FrozenCodesWeight):  # there is no dense weight
            return self.joined.outputs(x, with_bias=False)[self.index]
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        """The weight (out, in)."""
        weight: Tensor = weight_of(self.plain)
        return weight


def refuse_assigning(model: nn.Module, undo: ExitStack) -> None:
    """Refuse `model.load_state_dict(assign=True)` before anything is loaded.

    It would replace the model's weights, which the engine shares, instead of copying into them.
    """

    def check(module: nn.Module, state: Any, prefix: str, metadata: Any, *more: Any) -> None:
        if metadata.pop("assign_to_params_buffers", False):  # torch leaves it in the caller's dict
            raise RequestError(
                "inside `with peftlab.engine.fast(model)` weights can't be assigned; leave out "
                "assign=True, or load them before it or after it"
            )

    undo.callback(model.register_load_state_dict_pre_hook(check).remove)


class Joined:
    """Frozen linear layers with the same input, computed together when the first is called.

    The others take their pending outputs if they are called with the very same tensor, unchanged
    (as far as it tells: in inference mode tensors don't), and autograd is on or off as before;
    otherwise all are computed anew. So results never depend on the order of calls.

    Args:
        layers: the plain layers.
        adapters: each layer's low-rank adapter, None where it has none to be computed with it.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        adapters: Sequence[LowRank | None] | None = None,
    ) -> None:
        self.layers = list(layers)
        self.adapters = list(adapters or [None] * len(layers))
        self.features = [features(layer) for layer in layers]
        self.sizes = [size.outside for size in self.features]
        weight_class = FrozenCodesWeight if isinstance(layers[0], Int8Linear) else FrozenWeight
        self.weight = weight_class.of(layers)
        self.bias = _joined_bias(layers, self.sizes, base_dtype(layers[0]))
        self.pending: dict[int, Tensor] = {}
        self.input: TensorVersion | None = None
        self.grad_enabled = True  # whether autograd was on for `input`
        self.parameters = [p for layer in layers for p in layer.parameters()]

    def share(self) -> None:
        """Make the layers' own weights parts of the joined one."""
        if len(self.layers) > 1:
            self.weight.share(self.layers, self.sizes)

    def output(self, x: Tensor, index: int) -> Tensor:
        """The output of one layer, with its update."""
        if len(self.layers) == 1:
            return self.updated_outputs(x)[0]
        grad_enabled = torch.is_grad_enabled()
        is_same = self.input is not None and self.input.is_still(x)
        is_pending = is_same and index in self.pending
        if not is_pending or grad_enabled != self.grad_enabled:
            wanted = set(self.pending) if is_pending else range(len(self.layers))
            self.input, self.grad_enabled = TensorVersion.of(x), grad_enabled
            self.pending = {i: y for i, y in enumerate(self.updated_outputs(x)) if i in wanted}
        y = self.pending.pop(index)
        if not self.pending:
            self.input = None
        return y

    def updated_outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every layer's output, with its update."""
        if all(adapter is None for adapter in self.adapters):
            return self.outputs(x)
        self.check_frozen()
        return product_with_updates(x, self.weight, self.bias, self.sizes, self.pairs())

    def pairs(self) -> list[Pair | None]:
        """Each layer's update as it is now."""
        return [None if adapter is None else adapter.pair() for adapter in self.adapters]

    def check_frozen(self) -> None:
        """Raise `RequestError` if a parameter was unfrozen meanwhile: none has a gradient here."""
        if any(p.requires_grad for p in self.parameters):
            raise not_inside("unfrozen")

    def outputs(self, x: Tensor, with_bias: bool = True) -> tuple[Tensor, ...]:
        """Every layer's output, without updates."""
        self.check_frozen()
        bias = self.bias if with_bias else None
        outputs: tuple[Tensor, ...] = _Product.apply(x, self.weight, bias, self.sizes)  # type: ignore[no-untyped-call]
        return outputs

    def refresh(self) -> None:
        """Follow a load into one of the layers: the weights are shared, all else is remade."""
        self.bias = _joined_bias(self.layers, self.sizes, base_dtype(self.layers[0]))
        self.weight.refresh()
        self.input, self.pending = None, {}

    def separate(self) -> None:
        """Give every layer a weight of its own again."""
        if len(self.layers) > 1:
            with torch.inference_mode(False):
                self.weight.separate(self.layers)


def _joined_bias(layers: Sequence[Any], sizes: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            torch.zeros(size, dtype=dtype) if layer.bias is None else layer.bias.detach()
            for layer, size in zip(layers, sizes, strict=True)
        ]
    )
