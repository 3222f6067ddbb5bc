"""A method: a frozen dataclass whose fields are its settings, and `inject`, which makes it train.

Trainable means `requires_grad`, and nothing else decides what is counted, optimised or saved. The
training loop knows no method by name: it calls the hooks, of which most methods need none. What
only a few have is in a class for each kind, which such a method inherits from:

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
    """Where trials look for a setting, both ends included."""

    low: float
    high: float
    log: bool = True
    whole: bool = False  # numbers without a fraction


def searched(default: Any, low: float, high: float, *, log: bool = True, **given: Any) -> Any:
    """A setting that trials may look for between two values, declared as by pydantic's `Field`.

    >>> from peftlab.methods import METHODS
    >>> METHODS["lora"].search_space()["rank"]
    Range(low=1.0, high=64.0, log=True, whole=True)
    """
    whole = isinstance(default, int)
    search: dict[str, Any] = {"low": low, "high": high, "log": log, "whole": whole}
    return Field(default=default, json_schema_extra={"search": search}, **given)


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


@dataclass(frozen=True, config=STRICT)
class Method(abc.ABC, metaclass=Explained):
    """What is trained and how. Its fields are the settings; a run's state is in adapter buffers.

    Attributes:
        name: as on the command line.
        summary: one line, what trains.
        paper: the source of the equation.
        default_lr: of the adapter's parameters, where none is asked for; of most methods chosen by
            a protocol on two models, 384 and 768 wide (docs/rates.md says of which).
        published_lr: its paper's, for a base-size model; trials look a factor of ten around it.
            Without one, around the default.
        default_head_lr: of the head's parameters, the same for all methods, so that what one of
            them has over `head` is what adapting the base is worth.
        head_alone: whether the head is all that is trained: its rate is then `lr`.
        mergeable: whether the adapted layers equal plain ones.
        base_precision: the precision that the base must be held in, if the method needs one.
        saves_full_weights: whether what is saved is as large as the model itself.
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
        """Where trials look: its rates, and those of its settings that are declared `searched`."""
        around = cls.published_lr or cls.default_lr
        space = {"lr": Range(around / 10, around * 10)}
        if not cls.head_alone:
            space["head_lr"] = Range(cls.default_head_lr / 10, cls.default_head_lr * 10)
        for name, field in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "search" in extra:
                space[name] = Range(**extra["search"])
        return space

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

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW with β (.9, .999), ε 1e-8; each group brings its lr and its weight decay."""
        return torch.optim.AdamW(groups, fused=True)

    @property
    def steps_alike(self) -> bool:
        """Whether every step makes the same operations on the same tensors, as CUDA graphs do.

        Yes where nothing is done before one. What is done behind it may change numbers, and must
        put no other tensor in the place of a gradient, a parameter or a buffer.
        """
        return type(self).before_step is Method.before_step

    def before_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called before the step's first forward."""

    def before_update(self, model: PreTrainedModel, step: Step) -> None:
        """Called when gradients are complete and not yet clipped."""

    def after_step(self, model: PreTrainedModel, step: Step) -> None:
        """Called after the optimizer's step."""


def train_head_only(model: PreTrainedModel) -> None:
    """Freeze all but the head: where every method starts from."""
    model.requires_grad_(False)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)


def adapt(model: PreTrainedModel, targets: str, layer: Callable[[Linear], Adapter]) -> Targets:
    """Freeze all but the head, and put `layer(base)` in the place of each target layer `base`.

    Raises:
        RequestError: if a target matches no layer.
    """
    found = find_targets(model, targets)
    adapters = make_adapters(model, found.names, layer)  # a refusal leaves the model as it was
    train_head_only(model)
    put_adapters(model, adapters)
    return found


class Batch(Protocol):
    """Examples as the model takes them: `inputs` by name, each (batch, length)."""

    @property
    def inputs(self) -> dict[str, Tensor]: ...


class Rehearsal(Protocol):
    """A short training before the real one."""

    def sample(self, share: float, least: int) -> list[Any]:
        """Batches of a share of train, stratified by label, at least `least` examples."""

    def fit(self, model: PreTrainedModel, batches: list[Any], steps: int) -> None:
        """Train `model` for `steps` updates on `batches`, at the run's learning rates.

        The method's step hooks are called, their steps counted from 0.
        """


class Prepared(Method):
    """A method that prepares itself on the data, and may change the model's structure by it."""

    @abc.abstractmethod
    def prepare(self, model: PreTrainedModel, rehearsal: Rehearsal) -> None:
        """Called once, before the training begins; its time is recorded as `prepare_s`."""

    def notes(self, model: PreTrainedModel) -> list[str]:
        """What a reader of a run's record must know of what the run has made of the method."""
        return []

    def state(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the run has made of the model's structure, as JSON; `restore` makes it again."""
        return {}

    def restore(self, model: PreTrainedModel, state: dict[str, Any]) -> None:
        """Make the structure that `state` describes, on a model that was just injected."""


class ManyRanks(Method):
    """A method whose one training serves several ranks, up to its setting `rank`."""

    @abc.abstractmethod
    def ranks(self, model: PreTrainedModel) -> Generator[int]:
        """Set `model` to each rank that it can be cut to, the trained one last."""

    @abc.abstractmethod
    def at_rank(self, state: dict[str, Tensor], rank: int) -> tuple[Method, dict[str, Tensor]]:
        """The method and the tensors of its adapter, cut to a lower rank.

        Raises:
            RequestError: if it does not have this rank.
        """


class NeedsDevice(Method):
    """A method that not every device can train; what was trained can be loaded on any."""

    @abc.abstractmethod
    def check_device(self, device: str) -> None:
        """Raise `RequestError` if this method can't be trained on `device`."""
