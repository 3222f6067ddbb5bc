"""What peftlab knows of a model beside its weights, in one place: where it came from, its method.

It lies in the model's own `__dict__`, so it goes where the model goes, `copy.deepcopy` included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field
from torch import nn

from peftlab.layers import Adapter, Precision, weight_precision
from peftlab.models.find import Source
from peftlab.models.targets import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "peftlab"  # in the model's __dict__


class TaskCard(BaseModel, extra="forbid", frozen=True):
    """What the model was trained to answer."""

    kind: Literal["classes", "regression"]
    labels: list[str]  # in the order of the outputs; empty for a regression
    columns: list[str]  # of the texts in the user's file; empty where they have no name
    max_length: int = Field(ge=1)  # tokens


@dataclass
class State:
    """What is known of one model.

    Attributes:
        source: where it was loaded from, if by peftlab.
        precision: what its base was held in and computes in, if that is known.
        answers: what it was trained to answer.
        method: the `peftlab.methods.Method` that it was injected with.
        targets: the layers that the method adapted, if it adapts layers.
        merged: the adapters, by name, in whose place plain layers stand now.
        own_unit: whether a regression's outputs are known to be in the label's own unit.
        fast: whether it is inside the engine's `fast`.
    """

    source: Source | None = None
    precision: Precision | None = None
    answers: TaskCard | None = None
    method: object | None = None
    targets: Targets | None = None
    merged: Mapping[str, Adapter] | None = None
    own_unit: bool = False
    fast: bool = False


def state_of(model: nn.Module) -> State:
    """The model's state, to read and to change; one that knows nothing where it had none."""
    state: State = model.__dict__.setdefault(NAME, State())
    return state


def precision_of(model: PreTrainedModel) -> Precision:
    """What the model's base is held in, and what it computes in as far as that is known."""
    base = weight_precision(model.get_submodule(model.base_model_prefix))
    known = state_of(model).precision
    return Precision(base, known.compute if known else base)
