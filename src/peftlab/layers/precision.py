"""How the frozen base is held, and on which device: a request resolved, with the reason.

auto -> bf16 where it multiplies faster than fp32 (AMX, AMD's AVX512-BF16, CUDA >= 8.0), else fp32
nf4  -> the backbone's linear layers in four bits, the rest and the products as auto
int8 -> the backbone's linear layers and their products in eight bits, the rest as auto
int7 -> the same with weights of seven bits: int8 means this on a processor of AVX2 without VNNI

A method may need its base in another precision: full fine-tuning's is fp32 and computes in bf16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import nf4, rows
from peftlab.layers.cpuinfo import processor_words
from peftlab.layers.int8 import Int7Linear, Int8Linear, product_kind
from peftlab.layers.linear import QuantisedLinear, weight_of
from peftlab.layers.nf4 import NF4Linear
from peftlab.settings import DEVICE_WORDS, PRECISION_WORDS, DeviceName, PrecisionName

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTISED: dict[str, type[Int8Linear] | type[NF4Linear]] = {
    kind.held: kind for kind in (Int8Linear, Int7Linear, NF4Linear)
}
IN_EIGHT_BITS = (Int8Linear.held, Int7Linear.held)  # products too, not only weights


@dataclass(frozen=True)
class Precision:
    """How a base is held, and what it computes in."""

    base: str  # fp32, bf16, int8, int7 or nf4
    compute: str  # fp32 or bf16: of all that is not multiplied in eight bits

    def of_base(self, base: str | None) -> Precision:
        """The same with the base held in `base`; None changes nothing."""
        return replace(self, base=base or self.base)

    @property
    def autocast(self) -> bool:
        """Whether products are in bf16 on a base that is held in fp32."""
        return (self.base, self.compute) == ("fp32", "bf16")


class Choice(NamedTuple):
    """A resolved setting and why it was chosen."""

    value: str
    reason: str


def resolve_device(name: str = "auto") -> Choice:
    """The device of this name; auto is cuda where there is one, else cpu.

    Raises:
        RequestError: for a device that is unknown or not on this machine.
    """
    obstacle = _cuda_obstacle()
    if name == "auto":
        return Choice("cpu", obstacle) if obstacle else Choice("cuda", torch.cuda.get_device_name())
    if name not in get_args(DeviceName):
        raise RequestError(f"device must be {DEVICE_WORDS}, got {name!r}")
    if name not in devices():
        allowed = ", ".join(devices())
        why = f" ({obstacle})" if name == "cuda" else ""
        raise RequestError(
            f"device {name!r} is not available{why}; on this machine: auto, {allowed}"
        )
    return Choice(name, "asked for")


def devices() -> list[str]:
    """The kinds of device on this machine."""
    available = {"cuda": not _cuda_obstacle(), "mps": torch.backends.mps.is_available()}
    return [name for name in get_args(DeviceName) if available.get(name, name != "auto")]


def _cuda_obstacle() -> str | None:
    """Why nothing can be trained on CUDA here; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    found = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in torch.cuda.get_arch_list()]
    built = [(match[1], (int(match[2]), int(match[3]))) for match in found if match]
    capability = torch.cuda.get_device_capability()
    # sm: of one generation; compute: compiled for later ones as it is loaded
    if not built or any(
        oldest <= capability and (kind == "compute" or oldest[0] == capability[0])
        for kind, oldest in built
    ):
        return None
    words = ".".join(map(str, capability))
    name = torch.cuda.get_device_name()
    return f"torch {torch.__version__} has no kernels for {name}, of CUDA capability {words}"


def resolve_precision(name: str = "auto", device: str = "cpu") -> tuple[Precision, str]:
    """The precision of this name for a base on `device`, and the reason.

    Raises:
        RequestError: for an unknown name.
    """
    if name not in get_args(PrecisionName):
        raise RequestError(f"precision must be {PRECISION_WORDS}, got {name!r}")
    fastest, reason = _fastest_precision(device)
    if name == "auto":
        return Precision(fastest, fastest), reason
    if name in IN_EIGHT_BITS:
        held = "int7" if product_kind(device) == "narrow" else name
        return Precision(held, fastest), _reason_for_eight_bits(device, name, held)
    return Precision(name, fastest if name in QUANTISED else name), "asked for"


def _reason_for_eight_bits(device: str, name: str, held: str) -> str:
    """The reason, with the code that quantises rows on `device`; builds it where it is used."""
    if product_kind(device) is None:
        return "asked for; slow, without products in eight bits here"
    reason = (
        "asked for" if name == held else f"{name} asked for; with AVX2 alone weights have 7 bits"
    )
    return f"{reason}, rows by {quantiser(held, device)}"


def quantiser(precision: str | None, device: str = "cpu") -> str | None:
    """The code that quantises for a base in this precision here; None if it has no codes.

    For nf4 "peftlab" or "bitsandbytes VERSION", for int8 and int7 "rows.cpp" or "torch".
    """
    if precision in IN_EIGHT_BITS:
        return "rows.cpp" if device == "cpu" and rows.KERNEL.is_built() else "torch"
    return nf4.quantiser() if precision == "nf4" else None


def _fastest_precision(device: str) -> Choice:
    """The one of bf16 and fp32 that `device` multiplies faster."""
    if device == "cuda" and torch.version.hip:
        name = torch.cuda.get_device_properties().gcnArchName
        has_fast_bf16 = not name.startswith(("gfx10", "gfx900", "gfx906"))  # RDNA 1 and 2, Vega
        return Choice("bf16" if has_fast_bf16 else "fp32", f"ROCm, {name}")
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        has_fast_bf16 = (major, minor) >= (8, 0)
        return Choice("bf16" if has_fast_bf16 else "fp32", f"CUDA capability {major}.{minor}")
    if device == "cpu":
        return _fastest_on_processor(processor_words())
    return Choice("fp32", f"bf16 is not tried on {device}")


def _fastest_on_processor(words: set[str]) -> Choice:
    if "amx_bf16" in words:
        return Choice("bf16", "the processor has AMX")
    if not words:
        return Choice("fp32", "only Linux tells whether the processor multiplies bf16 faster")
    if "avx512_bf16" not in words:
        return Choice("fp32", "the processor has neither AMX nor AVX512-BF16")
    # a Xeon's products at 352 rows: 84 GFLOP/s a core in bf16, 157 in fp32 (LOG, 2026-11-26)
    if "GenuineIntel" in words:
        return Choice("fp32", "without AMX an Intel processor multiplies bf16 half as fast")
    return Choice("bf16", "the processor has AVX512-BF16")


def quantise_linears(
    model: nn.Module, names: Iterable[str], compute: str, held: str = "nf4"
) -> None:
    """Quantise the linear layers of `model` named in `names`; hold all else in `compute`.

    Buffers stay as they are: rotary frequencies are fp32 in every precision.
    """
    dtype = DTYPES[compute]
    names = list(names)
    matrices = {
        id(parameter)
        for name in names
        for parameter in model.get_submodule(name).parameters(recurse=False)
        if parameter.ndim > 1
    }
    # A tensor that stays in a mapped file keeps its pages: so the others are copied, also in fp32,
    # and before the first matrix is read.
    for parameter in model.parameters():
        if id(parameter) not in matrices:
            parameter.data = parameter.data.to(dtype, copy=True)
    for name in names:
        layer: Any = model.get_submodule(name)
        quantised = QUANTISED[held](weight_of(layer), layer.bias, dtype, type(layer))
        model.set_submodule(name, quantised.train(layer.training))
    for parameter in model.parameters():  # what else has one of those matrices
        parameter.data = parameter.data.to(dtype)


def weight_precision(module: nn.Module) -> str:
    """The precision of `module`'s weights: its quantised layers', else the lowest of all."""
    for layer in module.modules():
        if isinstance(layer, QuantisedLinear):
            return layer.held
    lowest = min((p.dtype for p in module.parameters()), key=lambda dtype: dtype.itemsize)
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(lowest, str(lowest).removeprefix("torch."))


def keep_in_fp32(module: nn.Module, inside: bool = False) -> None:
    """Keep `module` in fp32, and let it compute in fp32: on a base in bf16, and under autocast.

    A layer that is kept so already gets no second pair of hooks.

    Args:
        module: of any kind.
        inside: whether the base continues behind it: its outputs are then cast back to the
            precision of its inputs.
    """
    module.float()
    back = _CastBack()
    if inside:  # before the other hooks, which cast the inputs
        module.register_forward_pre_hook(back.enter, with_kwargs=True)
    for layer in module.modules():
        is_kept = any(isinstance(_owner(hook), _LayerPrecision) for hook in hooks_of(layer))
        if not is_kept and any(True for _ in layer.parameters(recurse=False)):
            hooks = _LayerPrecision()
            layer.register_forward_pre_hook(hooks.enter)
            layer.register_forward_hook(hooks.leave, always_call=True)
    if inside:
        module.register_forward_hook(back.leave)


def is_unmodified(module: nn.Module) -> bool:
    """Whether a call of `module` is its class's `forward` alone: no hook, no other `forward`."""
    return not ("forward" in vars(module) or list(hooks_of(module)))


def output_dtype(norm: nn.Module, input_dtype: torch.dtype) -> torch.dtype | None:
    """The precision of `norm`'s outputs for inputs in `input_dtype`.

    None if it has hooks of others than `keep_in_fp32`, or another `forward`.
    """
    owners = [_owner(hook) for hook in hooks_of(norm)]
    has_others = not all(isinstance(owner, _LayerPrecision | _CastBack) for owner in owners)
    if "forward" in vars(norm) or has_others:
        return None
    is_cast_back = any(isinstance(owner, _CastBack) for owner in owners)
    return norm.get_parameter("weight").dtype if owners and not is_cast_back else input_dtype


def _owner(hook: Any) -> object:
    return getattr(hook, "__self__", None)


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """The hooks of `module` and those that were put on all of torch's modules."""
    for hooks in _hook_dicts(module):
        yield from hooks.values()


def _hook_dicts(module: nn.Module) -> Iterator[Mapping[int, Any]]:
    """Where hooks are put: these dicts stay the same as long as the module is there."""
    module_globals = vars(torch.nn.modules.module)
    for name in ("forward_pre", "forward", "backward_pre", "backward"):
        yield module_globals[f"_global_{name}_hooks"]
        yield getattr(module, f"_{name}_hooks")


class Untouched:
    """Whether a module has the submodules that it had at first, and some below it are as they were.

    Those have no hooks, and the `forward` and submodules that they had.

    It is asked before each pass of each block, so it reads nothing but dicts.

    Args:
        parent: the module; its own hooks and `forward` may change.
        modules: those below it.
        known: hooks that they may have.
    """

    def __init__(
        self, parent: nn.Module, modules: Sequence[nn.Module], *known: Callable[..., Any]
    ) -> None:
        self.known = known
        self.hooks = [hooks for module in modules for hooks in _hook_dicts(module)]
        self.attributes = [(vars(module), vars(module).get("forward")) for module in modules]
        self.children = [(m._modules, list(m._modules.values())) for m in (parent, *modules)]

    def __call__(self) -> bool:
        return (
            all(hook in self.known for hooks in filter(None, self.hooks) for hook in hooks.values())
            and all(own.get("forward") is forward for own, forward in self.attributes)
            and all(list(now.values()) == before for now, before in self.children)
        )


class _CastBack:
    """The hooks around a module that cast its outputs to the precision that its inputs came in."""

    def __init__(self) -> None:
        self.input_dtype: torch.dtype | None = None

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.input_dtype = next(iter([*inputs, *named.values()])).dtype

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):  # I-BERT's also return a scale
            raise RequestError(
                f"{type(layer).__name__} can't be kept in fp32 inside a base of 16 bits: it "
                f"returns a {type(output).__name__}, not a tensor; take precision fp32"
            )
        return output.to(self.input_dtype)


class _LayerPrecision:
    """Hooks around a layer: inputs cast to its precision, autocast off inside and restored."""

    def __init__(self) -> None:
        self.autocast: list[tuple[str, bool]] = []  # a stack: a layer may be called inside itself

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        weight = next(layer.parameters(recurse=False))
        device = weight.device.type
        self.autocast.append((device, torch.is_autocast_enabled(device)))
        torch.set_autocast_enabled(device, False)
        return tuple(
            x.to(weight.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs
        )

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        torch.set_autocast_enabled(*self.autocast.pop())
