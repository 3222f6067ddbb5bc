"""A method: a frozen dataclass whose fields are its settings, and the hooks that make it train.

`inject` makes a model trainable: trainable means `requires_grad`, and nothing else decides what
is counted, optimised or saved. The other hooks are called by the training loop, which knows no
method by name; most methods need none of them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from peftlab.errors import Explained, RequestError, expect, unknown
from peftlab.layers import NF4Linear, keep_in_fp32, weight_precision
from peftlab.layers.precision import DTYPES
from peftlab.models import Targets, check_model, head_names, head_parameters, state_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# Where rates come from, and why they follow a model's width so: docs/rates.md
HEAD_LR = 1e-3
REFERENCE_WIDTH = 768
NARROWEST = 384  # that was measured: a narrower model gets this one's rate
WIDTH_EXPONENT = 2


class Step(Protocol):
    """Where in the run a hook is called. Draws come from a generator seeded by (seed, index)."""

    @property
    def index(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Batch(Protocol):
    """Examples as the model takes them: `inputs` by name, each (batch, length)."""

    @property
    def inputs(self) -> dict[str, torch.Tensor]: ...


class Rehearsal(Protocol):
    """A short training before the real one, for a method that prepares itself."""

    def sample(self, share: float, least: int) -> list[Any]:
        """Batches of a share of train, stratified by label, at least `least` examples."""

    def fit(self, model: PreTrainedModel, steps: int) -> None:
        """Train `model` for `steps` updates on the sample, at the run's learning rates."""


@dataclass(frozen=True, config=STRICT)
class Method(abc.ABC, metaclass=Explained):
    """What is trained and how. Its fields are the settings; a run's state is in adapter buffers.

    Attributes:
        name: as on the command line.
        summary: one line, what trains.
        paper: the source of the equation.
        default_lr: of the adapter's parameters on a model 768 wide, where none is asked for.
        default_head_lr: of the head's parameters, the same for all methods, so that what one of
            them has over `head` is what adapting the base is worth.
        head_alone: whether the head is all that is trained: its rate is then `lr`.
        mergeable: whether the adapted layers equal plain ones.
        base_precision: the precision that the base must be held in, if the method needs one.
        keeps_whole_model: whether what is saved is as large as the model itself.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    default_lr: ClassVar[float]
    default_head_lr: ClassVar[float] = HEAD_LR
    head_alone: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    base_precision: ClassVar[str | None] = None
    keeps_whole_model: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def lr_at(self, width: int) -> float:
        """The default rate on a model whose hidden states are `width` wide, of three digits.

        >>> [make("lora").lr_at(width) for width in (1024, 768, 384, 128)]
        [0.000281, 0.0005, 0.002, 0.002]
        >>> make("head").lr_at(384) == make("head").lr_at(768)
        True
        """
        if self.head_alone:
            return self.default_lr
        ratio = REFERENCE_WIDTH / max(NARROWEST, width)
        return float(f"{self.default_lr * ratio**WIDTH_EXPONENT:.3g}")

    @abc.abstractmethod
    def inject(self, model: PreTrainedModel) -> Targets | None:
        """Make `model` trainable by this method, and say which layers were adapted, if any.

        Raises:
            RequestError: if a target matches no layer, or the model can't be trained so.
        """

    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """The optimizer's groups: adapter and head, each split by decay. Vectors never decay."""
        head = {id(p) for p in head_parameters(model).values()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                key = (id(parameter) in head, parameter.ndim > 1)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": head_lr if is_head else lr,
                "weight_decay": weight_decay if is_matrix else 0.0,
            }
            for (is_head, is_matrix), parameters in groups.items()
        ]

    def check_device(self, device: str) -> None:
        """Raise `RequestError` if this method can't be trained on `device`."""

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW with β (.9, .999), ε 1e-8; each group brings its lr and its weight decay."""
        return torch.optim.AdamW(groups, fused=True)

    def prepare(self, model: PreTrainedModel, rehearsal: Rehearsal) -> None:
        """Called once, before the training begins; its time is recorded as `prepare_s`."""

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called before the step's first forward."""

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        """Called when gradients are complete and not yet clipped."""

    def after_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called after the optimizer's step."""

    def idle(self, model: PreTrainedModel) -> list[str]:
        """What should have had a gradient by now and had none, in parts of a tensor."""
        return []

    def excused(self, model: PreTrainedModel) -> set[str]:
        """Trainable tensors that can't have had a gradient by now."""
        return set()

    def ranks(self, model: PreTrainedModel) -> Iterator[int]:
        """Set `model` to each rank that it can be cut to, the trained one last."""
        return iter(())

    def at_rank(self, state: dict[str, torch.Tensor], rank: int) -> tuple[Method, Any]:
        """The method and the tensors of its adapter, cut to a lower rank.

        Raises:
            RequestError: if the method has no ranks to choose from, or not this one.
        """
        raise RequestError(
            f"{self.name} is trained for one rank; dylora has several to choose from"
        )

    def notes(self, model: PreTrainedModel) -> list[str]:
        """What a reader of a run's record must know of what the run has made of the method."""
        return []

    def state(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the run has made of the model's structure, as JSON; `restore` makes it again."""
        return {}

    def restore(self, model: PreTrainedModel, state: dict[str, Any]) -> None:
        """Make the structure that `state` describes, on a model that was just injected."""

    def peft_config(self) -> dict[str, Any] | None:
        """HF PEFT's own settings for this method, or None where PEFT does not have it."""
        return None


METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def is_built_in(method: type[Method]) -> bool:
    """Whether the method is one of peftlab's own."""
    return method.__module__.startswith("peftlab.methods.")


def register(method: M) -> M:
    """Class decorator: make a method known by its name, wherever a name is asked for.

    Raises:
        RequestError: if the name is a built-in method's and the class is not.
    """
    needed = ("name", "summary", "paper", "default_lr")
    lacking = [name for name in needed if not hasattr(method, name)]
    if lacking:
        raise RequestError(
            f"{method.__name__} lacks {', '.join(lacking)}; a method has the class variables "
            f"{', '.join(needed)}"
        )
    taken = METHODS.get(method.name)
    if taken is not None and is_built_in(taken) and not is_built_in(method):
        raise RequestError(
            f"{method.__name__} can't be called {method.name!r}, as peftlab's {taken.__name__} is; "
            "give it a class variable name of its own"
        )
    METHODS[method.name] = method
    return method


def make(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called `name` with these settings.

    Raises:
        RequestError: for an unknown name or setting, or a value out of range.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name](**(settings or {}))


def resolve_method(method: Method | str) -> Method:
    """A method by its name, or as it is.

    Raises:
        RequestError: for an unknown name, or what is no method.
    """
    if isinstance(method, type) and issubclass(method, Method):
        raise RequestError(f"method must be a value, got the class; call it: {method.__name__}()")
    expect("method", method, (str, Method), "a name, or a Method such as LoRA(rank=8)")
    return make(method) if isinstance(method, str) else method


def inject(model: PreTrainedModel, method: Method | str) -> PreTrainedModel:
    """Make a loaded model trainable by `method`, in place; returns it.

    Raises:
        RequestError: if a target matches no layer, the base is held in a precision that the
            method can't train, or the model has been injected before.
    """
    check_model(model)
    method = resolve_method(method)
    if injected(model) is not None:
        raise RequestError(f"this model is already injected with {injected(model)}; load it again")
    _check_precision(model, method)
    _raise_head(model)
    state = state_of(model)
    state.targets = method.inject(model)
    frozen = [name for name, p in head_parameters(model).items() if not p.requires_grad]
    assert not frozen, f"{method.name} leaves the head frozen: {frozen[0]}"
    state.method = method
    return model


def injected(model: PreTrainedModel) -> Method | None:
    """The method that `model` was injected with, if any."""
    method = state_of(model).method
    return method if isinstance(method, Method) else None


def _check_precision(model: PreTrainedModel, method: Method) -> None:
    held = weight_precision(model.get_submodule(model.base_model_prefix))
    if any(isinstance(part, NF4Linear) for part in _head(model)):
        raise RequestError("the head is quantised, and every method trains it; load the model anew")
    if held not in (*DTYPES, "nf4", "float64"):
        raise RequestError(
            f"the base is held in {held}; load it in fp32 or bf16, as with dtype=torch.bfloat16"
        )
    if method.base_precision == "fp32" and held not in ("fp32", "float64"):
        raise RequestError(
            f"{method.name} updates the base itself and needs it in fp32, but it is held in "
            f"{held}; load it with precision='fp32' "
            "(it then computes in bf16 by autocast where that is fast)"
        )
    if method.base_precision == "nf4" and held != "nf4":
        raise RequestError(
            f"{method.name} is made for a base in four bits, and this one is held in {held}; "
            "load it with precision='nf4', or take lora"
        )


def _raise_head(model: PreTrainedModel) -> None:
    """Hold the head in fp32 where it is in less, as in a model that transformers loaded in bf16."""
    for name in head_names(model):
        part = model.get_submodule(name)
        if any(p.dtype.itemsize < torch.float32.itemsize for p in part.parameters()):
            keep_in_fp32(part)


def _head(model: PreTrainedModel) -> Iterator[nn.Module]:
    for name in head_names(model):
        yield from model.get_submodule(name).modules()


def train_head_only(model: PreTrainedModel) -> None:
    """Freeze all but the head: where every method starts from."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def split_variants(text: str) -> list[str]:
    """Split a list of methods at the commas outside brackets.

    >>> split_variants("lora, lora[rank=16,lr=1e-3],head")
    ['lora', 'lora[rank=16,lr=1e-3]', 'head']
    >>> split_variants("lora[targets=layer.[01].query,rank=2],head")
    ['lora[targets=layer.[01].query,rank=2]', 'head']
    """
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
