"""What the loop needs to know of a run, and what it asks of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from peftlab.settings import Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Plan:
    """A run, all of it decided.

    Attributes:
        settings: of the training.
        kind: "classes" or "regression".
        seed: of data order and dropout.
        autocast: whether fp32 weights compute in bf16.
        weights: what an example of each class counts; none for 1 each.
    """

    settings: Resolved
    kind: str
    seed: int
    autocast: bool = False
    weights: tuple[float, ...] = ()

    @property
    def device(self) -> str:
        return self.settings.device

    @property
    def by_tokens(self) -> bool:
        """Whether the tokens of a batch decide on its parts: on a CPU, for every method."""
        return self.settings.parts and self.settings.fast and self.device == "cpu"


@dataclass(frozen=True)
class Step:
    """Where in the run a method's hook is called: `index` from 0, `warmup` and `total` in steps."""

    index: int
    warmup: int
    total: int
    seed: int


class Trainee(Protocol):
    """What the loop asks of a method."""

    def parameter_groups(
        self, model: PreTrainedModel, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]: ...
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...
    def before_step(self, model: PreTrainedModel, step: Step) -> None: ...
    def before_update(self, model: PreTrainedModel, step: Step) -> None: ...
    def after_step(self, model: PreTrainedModel, step: Step) -> None: ...
