"""Methods with hooks that only some have: a class for each kind, which such a method inherits from.

Prepared      looks at the data before the training begins (LoRA-drop)
ManyRanks     serves several ranks with one training (DyLoRA)
NeedsDevice   can't be trained everywhere (QLoRA's paged optimizer)
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from peftlab.methods.base import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """A method whose one training serves several ranks."""

    @abc.abstractmethod
    def ranks(self, model: PreTrainedModel) -> Iterator[int]:
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
