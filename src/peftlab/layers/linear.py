"""The frozen linear layers of a base, seen as one kind, and the adapters that stand on them.

    nn.Linear    holds its weight as (out, in)
    Conv1D       GPT-2's, holds it transposed
    BaseLinear   multiplies in a way of its own: in four bits (layers/nf4.py), in eight
                 (layers/int8.py), or in the engine

An adapter is such a layer and the part that a method adds to it:

    forward(x)   the layer in training and evaluation
    merged()     the plain layer that it equals: the paper's equation, written once

The two are readings of one formula, and a test compares them away from the initial values.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel as PreTrainedModel
else:
    PreTrainedModel = Any  # only annotations name it, and its import takes 2 s

Linear: TypeAlias = Any  # an nn.Linear, a Conv1D or a BaseLinear: what `is_linear` accepts


class BaseLinear(nn.Module, abc.ABC):
    """A frozen linear layer that is neither an `nn.Linear` nor a `Conv1D`.

    Attributes:
        in_features, out_features: its sizes.
        bias: (out,), or None.
        compute: the precision of its inputs and its bias.
        plain_kind: the class that the layer had, `nn.Linear` or GPT-2's `Conv1D`.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    compute: torch.dtype
    plain_kind: type[nn.Module]

    @abc.abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """The weight (out, in), as exact as the layer holds it."""

    def updated(self, x: Tensor) -> Tensor | None:
        """(*batch, in) -> (*batch, out): the output with its adapter's low-rank update.

        None, unless the engine has joined the layer with its adapter.
        """
        return None


class QuantisedLinear(BaseLinear):
    """A frozen linear layer whose weight is held in less than bf16.

    The gradient flows through the weight to the input, never to the weight; nothing of the size
    of the weight is kept for it.

    Args:
        weight: (out, in), quantised row by row.
        bias: (out,), or None.
        compute: the precision of the base's other tensors, and so of its inputs and its bias.
        plain_kind: the class that the layer had, `nn.Linear` or GPT-2's `Conv1D`.

    Attributes:
        held: the name of its precision.
    """

    held: ClassVar[str]

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        compute: torch.dtype,
        plain_kind: type[nn.Module],
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.compute, self.plain_kind = compute, plain_kind
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().to(compute), requires_grad=False)
        )
        self.quantise(weight.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Cast the precision of the inputs with the model, and not the scales of the codes."""
        scales = {name: b for name, b in self.named_buffers() if b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, scale in scales.items():
            setattr(self, name, scale.to(self.get_buffer(name).device))
        self.compute = fn(torch.empty(0, dtype=self.compute)).dtype
        return self

    @abc.abstractmethod
    def quantise(self, weight: Tensor) -> None:
        """Hold `weight` (out, in) in buffers; of a weight on "meta" their shapes alone."""

    @abc.abstractmethod
    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the codes stand for."""

    @property
    def weight(self) -> Tensor:
        """A tensor on "meta", (out, in) in the inputs' precision: some models read its dtype."""
        return torch.empty(self.out_features, self.in_features, dtype=self.compute, device="meta")

    @property
    def unregistered(self) -> list[Tensor]:
        """The tensors that it holds beside its parameters and buffers."""
        return []

    def dense(self) -> Tensor:
        return self.dequantised(torch.float32)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, in) -> (*batch, out)
        out = self.product(x)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Features(NamedTuple):
    """The sizes of a linear layer's input and output."""

    inside: int
    outside: int


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's Conv1D. By name: importing transformers' own takes 2 s."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_stored_transposed(layer: Linear) -> bool:
    """Whether a file stores the layer's weight as (in, out), as GPT-2's does."""
    kind = layer.plain_kind if isinstance(layer, BaseLinear) else type(layer)
    return bool(kind.__name__ == "Conv1D")


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is x Wᵀ + c, so that an adapter can stand on it.

    A subclass with a forward of its own may compute anything: PhiMoE's router gives a tuple.
    Falcon's is known: a product and a sum in two steps.
    """
    kind: Any = type(module)
    is_plain = isinstance(module, nn.Linear) and (
        kind.forward is nn.Linear.forward or kind.__name__ == "FalconLinear"
    )
    return is_plain or isinstance(module, BaseLinear) or is_conv1d(module)


def features(layer: Linear) -> Features:
    """The sizes of the layer's input and output."""
    if is_conv1d(layer):
        inside, outside = layer.weight.shape
        return Features(inside, outside)
    return Features(layer.in_features, layer.out_features)


def weight_of(layer: Linear) -> Tensor:
    """The layer's weight (out, in) as it is held; codes are dequantised to fp32."""
    if isinstance(layer, BaseLinear):
        return layer.dense()
    weight: Tensor = layer.weight
    return weight.T if is_conv1d(layer) else weight


def product(layer: Linear, x: Tensor) -> Tensor:
    """(*batch, in) -> (*batch, out): x Wᵀ without the bias."""
    if isinstance(layer, BaseLinear):
        return layer.product(x)
    return F.linear(x, weight_of(layer))


def not_a_view(y: Tensor) -> Tensor:
    """`y` as a tensor that is no view to autograd; not copied.

    A view that a custom Function returns can't be changed in place, as some models do with their
    outputs (Longformer, Falcon).
    """
    alias: Tensor = torch.ops.aten._unsafe_view(y, y.shape)
    return alias


def linear_like(base: Linear, weight: Tensor, bias: Tensor | None) -> Linear:
    """A frozen layer of `base`'s kind, dtype and device with this weight (out, in) and bias (out,).

    For a `BaseLinear` it is of its `plain_kind`, in the precision that it computes in.
    """
    outside, inside = weight.shape
    kind: Any = base.plain_kind if isinstance(base, BaseLinear) else type(base)
    weight = weight.detach().to(base_dtype(base), copy=True)  # BitFit's is the base's own
    with torch.device("meta"):
        if issubclass(kind, nn.Linear):
            layer: Any = nn.Linear(inside, outside, bias=bias is not None)
        else:
            layer = kind(outside, inside)  # Conv1D
            weight = weight.T.contiguous()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weight.dtype, copy=True), requires_grad=False)
    return layer.train(base.training)


def base_dtype(layer: Linear) -> torch.dtype:
    """The precision of the layer's inputs: its weight's, or the one that codes compute in."""
    if isinstance(layer, BaseLinear):
        return layer.compute
    dtype: torch.dtype = layer.weight.dtype
    return dtype


def adapter_dtype(module: nn.Module) -> torch.dtype:
    """The precision of adapters on `module`: fp32, or float64 where the base is (in tests)."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    return torch.promote_types(dtype, torch.float32)


def device_of(module: nn.Module) -> torch.device:
    """The device that `module` lies on."""
    tensor = next(iter([*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def where_drawn(device: torch.device) -> torch.device:
    """Where an adapter's start is drawn: on the CPU, so that a seed gives one start on any device.

    A structure without memory, on "meta", draws nothing.
    """
    return device if device.type == "meta" else torch.device("cpu")


class Wrapper(nn.Module):
    """A module of the base, `base`, and the part that a method puts around it."""

    base: nn.Module

    def idle(self, name: str) -> list[str]:
        """The parts of tensors that should have had a gradient by now and had none, in words.

        `name` is the wrapper's full name in the model.
        """
        return []

    def excused(self, name: str) -> set[str]:
        """The trainable tensors, by full name, that can't have had a gradient by now."""
        return set()


def is_added(model: nn.Module) -> Callable[[str], bool]:
    """A test of full names in `model`: whether one is a wrapper's own, and not its base's."""
    wrappers = [name for name, module in model.named_modules() if isinstance(module, Wrapper)]
    added, bases = (tuple(f"{name}{part}." for name in wrappers) for part in ("", ".base"))
    return lambda name: name.startswith(added) and not name.startswith(bases)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors, by full name, that turn the base into this model. Shared ones are there once.

    They are all trainable parameters, the head's among them, and all tensors of a wrapper that are
    not its base's: LoRA-FA's frozen A, VeRA's shared pair, Delta-LoRA's constants.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    is_of_method = is_added(model)
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (is_of_method(name) or name in trainable) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


class Adapter(Wrapper, abc.ABC):
    """A frozen linear layer `base` plus the part that a method, by its subclass, adds to it.

    `base` is an `nn.Linear`, a `Conv1D` or a `BaseLinear`; see `peftlab.layers.linear`.
    """

    has_gain: ClassVar[bool] = False  # whether `forward` scales by learned gains (gain.py)

    base: Linear

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(*batch, in) -> (*batch, out)."""

    @abc.abstractmethod
    def merged_weight(self, weight: Tensor) -> Tensor:
        """The paper's equation: the plain layer's weight (out, in), from the base's `weight`."""

    @abc.abstractmethod
    def merged_bias(self) -> Tensor | None:
        """The bias (out,) of the plain layer, None if it has none."""

    @final
    def merged(self, weight: Tensor | None = None) -> Linear:
        """The plain layer this adapter equals in eval mode. A new layer; `self` is not touched.

        `weight` (out, in) is the base's, for a caller that knows it more exactly than it is held.
        """
        if weight is None:
            weight = exact(weight_of(self.base))
        with torch.no_grad():
            return linear_like(self.base, self.merged_weight(weight), self.merged_bias())

    @property
    @final
    def weight(self) -> Tensor:
        """The base's weight as it is held: some models, T5 among them, read its dtype."""
        weight: Tensor = self.base.weight
        return weight


class WeightAdapter(Adapter):
    """An adapter that changes the weight alone and leaves the bias as it is."""

    @final
    def merged_bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return bias


def exact(weight: Tensor) -> Tensor:
    """A weight in the precision that merging computes in: fp32, or float64 if it is held so."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def make_adapters(
    model: nn.Module, names: Iterable[str], make: Callable[[Linear], Adapter]
) -> dict[str, Adapter]:
    """`make(layer)` of every linear layer of `model` named in `names`, by name.

    Raises:
        TypeError: if a name is not that of a linear layer.
        RequestError: if a layer can't be adapted so; it is named.
    """
    adapters: dict[str, Adapter] = {}
    for name in names:
        layer = model.get_submodule(name)
        if not is_linear(layer):
            raise TypeError(f"{name} is a {type(layer).__name__}; adapters go on linear layers")
        try:
            with torch.no_grad():  # the layer may not be frozen yet, and stays out of autograd
                adapters[name] = make(layer).train(layer.training)
        except RequestError as error:
            raise RequestError(f"{error} ({name})") from None
    return adapters


def replace_linears(
    model: nn.Module, names: Iterable[str], make: Callable[[Linear], Adapter]
) -> None:
    """Replace every linear layer of `model` named in `names` by `make(layer)`.

    Raises:
        TypeError: if a name is not that of a linear layer.
        RequestError: if a layer can't be adapted so; it is named, and the model is as it was.
    """
    put_adapters(model, make_adapters(model, names, make))


def put_adapters(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Replace the layer of each name by the adapter."""
    for name, adapter in adapters.items():
        model.set_submodule(name, adapter)
