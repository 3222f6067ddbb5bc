"""`Method`: a frozen dataclass whose fields are its settings, and the hooks of a training.

Trainable means `requires_grad`, and nothing else decides what is counted, optimised or saved. The
training loop knows no method by name: it calls the hooks, and most methods need `inject` alone.
Hooks that only a few methods have are in a base class for each kind:

    Prepared      looks at the data before the training begins (LoRA-drop)
    ManyRanks     serves several ranks with one training (DyLoRA)
    NeedsDevice   can't be trained everywhere (QLoRA's paged optimizer)
    InPeft        has a counterpart in HF PEFT (peft.py)
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from peftlab.errors import Explained
from peftlab.layers import Adapter, Linear, PreTrainedModel, make_adapters, put_adapters
from peftlab.models import Targets, find_targets, head_parameters

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
HEAD_LR = 1e-3


@dataclass(frozen=True)
class Range:
    """The interval that trials search for a setting, both ends included."""

    low: float
    high: float
    log: bool = True
    whole: bool = False  # integers only


def searched(default: Any, low: float, high: float, *, log: bool = True, **constraints: Any) -> Any:
    """A field that trials search from `low` to `high`; `constraints` are pydantic's, as of `Field`.

    >>> from peftlab.methods import METHODS
    >>> METHODS["lora"].search_space()["rank"]
    Range(low=1.0, high=64.0, log=True, whole=True)
    """
    whole = isinstance(default, int)
    search: dict[str, Any] = {"low": low, "high": high, "log": log, "whole": whole}
    return Field(default=default, json_schema_extra={"search": search}, **constraints)


class Step(Protocol):
    """The step that a hook is called in. Hooks draw from a generator seeded by (seed, index)."""

    @property
    def index(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, config=STRICT)
class Method(abc.ABC, metaclass=Explained):
    """What is trained and how. Its fields are the settings; a run's state is in adapter buffers.

    Attributes:
        name: as on the command line.
        summary: one line, what is trained.
        paper: the source of the equation.
        default_lr: learning rate of the adapter's parameters if none is given; for most methods
            chosen by a protocol on two models, 384 and 768 wide (docs/rates.md says for which).
        published_lr: a published rate, the paper's own or the one that the method's file names;
            trials search a factor of ten around it, else around the default.
        default_head_lr: learning rate of the head's parameters, the same for all methods, so that
            a method's lead over `head` is what adapting the base is worth.
        head_alone: whether the head alone is trained; its learning rate is then `lr`.
        mergeable: whether each adapted layer equals a plain one.
        base_precision: the precision that the base must be held in, if the method needs one.
        saves_full_weights: whether a saved adapter is as large as the model itself.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    default_lr: ClassVar[float]
    published_lr: ClassVar[float | None] = None
    default_head_lr: ClassVar[float] = HEAD_LR
    head_alone: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    base_precision: ClassVar[str | None] = None
    saves_full_weights: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, as they are recorded."""
        return asdict(self)

    @classmethod
    def search_space(cls) -> dict[str, Range]:
        """What trials search: the learning rates, and the settings that are declared `searched`."""
        center = cls.published_lr or cls.default_lr
        space = {"lr": Range(center / 10, center * 10)}
        if not cls.head_alone:
            space["head_lr"] = Range(cls.default_head_lr / 10, cls.default_head_lr * 10)
        for name, field in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "search" in extra:
                space[name] = Range(**extra["search"])
        return space

    @abc.abstractmethod
    def inject(self, model: PreTrainedModel) -> Targets | None:
        """Make `model` trainable by this method; returns the layers that it adapted, if any.

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

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW with β (.9, .999), ε 1e-8; each group brings its lr and its weight decay."""
        return torch.optim.AdamW(groups, fused=True)

    @property
    def steps_alike(self) -> bool:
        """Whether every step runs the same operations on the same tensors, as a CUDA graph does.

        True for a method without `before_step`. The later hooks may change values in place, and
        must not replace a gradient, a parameter or a buffer by another tensor.
        """
        return type(self).before_step is Method.before_step

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called before the step's first forward."""

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        """Called when gradients are complete and not yet clipped."""

    def after_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called after the optimizer's step."""


def train_head_only(model: PreTrainedModel) -> None:
    """Freeze all but the head, as every method does first."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def adapt(model: PreTrainedModel, targets: str, layer: Callable[[Linear], Adapter]) -> Targets:
    """Freeze all but the head, and replace each target layer `base` by `layer(base)`.

    Raises:
        RequestError: if a target matches no layer.
    """
    matches = find_targets(model, targets)
    adapters = make_adapters(model, matches.names, layer)  # a refusal leaves the model as it was
    train_head_only(model)
    put_adapters(model, adapters)
    return matches


class Batch(Protocol):
    """A batch as the model takes it: `inputs` by name, each (batch, length)."""

    @property
    def inputs(self) -> dict[str, Tensor]: ...


class Rehearsal(Protocol):
    """A short training before the real one."""

    def sample(self, share: float, least: int) -> list[Any]:
        """Batches of a share of train, stratified by label, at least `least` examples in all."""

    def fit(self, model: PreTrainedModel, batches: list[Any], steps: int) -> None:
        """Train `model` for `steps` updates on `batches`, at the run's learning rates.

        The method's step hooks are called, with steps counted from 0.
        """


class Prepared(Method):
    """A method that looks at the data before training, and may fit the model's structure to it."""

    @abc.abstractmethod
    def prepare(self, model: PreTrainedModel, rehearsal: Rehearsal) -> None:
        """Called once, before the training begins; its time is recorded as `prepare_s`."""

    def notes(self, model: PreTrainedModel) -> list[str]:
        """Notes for the run's record: what its reader must know about the outcome of `prepare`."""
        return []

    def state(self, model: PreTrainedModel) -> dict[str, Any]:
        """The structure that `prepare` gave the model, as JSON; `restore` builds it again."""
        return {}

    def restore(self, model: PreTrainedModel, state: dict[str, Any]) -> None:
        """Build the structure that `state` describes, in a model that was just injected."""


class ManyRanks(Method):
    """A method of which one training serves several ranks, up to its setting `rank`."""

    @abc.abstractmethod
    def ranks(self, model: PreTrainedModel) -> Generator[int]:
        """Set `model` to each rank that it can be cut to, the trained one last, and yield it."""

    @abc.abstractmethod
    def at_rank(self, state: dict[str, Tensor], rank: int) -> tuple[Method, dict[str, Tensor]]:
        """The method and its adapter's tensors, cut to a lower rank.

        Raises:
            RequestError: if the method does not have this rank.
        """


class NeedsDevice(Method):
    """A method that not every device can train; its adapters can be loaded on any."""

    @abc.abstractmethod
    def check_device(self, device: str) -> None:
        """Raise `RequestError` if this method can't be trained on `device`."""
