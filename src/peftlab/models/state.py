"""Check a model that a caller hands over, and keep what peftlab knows of it beside its weights.

That knowledge, such as the model's source and method, lies in one place, the model's own
`__dict__`, so it goes where the model goes, `copy.deepcopy` included.
"""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, model_validator
from torch import nn

from peftlab.errors import RequestError
from peftlab.labels import Kind, LabelType, check_names
from peftlab.layers import Adapter, Precision, PreTrainedModel, weight_precision
from peftlab.models.find import Source
from peftlab.models.targets import Targets

COMPILED = "_orig_mod"  # the name of the wrapped module in torch.compile's wrapper
REMEDY = "give what peftlab.load_model or transformers' from_pretrained returned, got"


def check_model(model: Any) -> None:
    """Raise `RequestError` unless `model` is a model of transformers with a head to train."""
    if isinstance(model, nn.Module) and hasattr(model, "peft_config"):
        raise RequestError(
            "model is HF PEFT's own wrapper; give the plain model in it: model.unload()"
        )
    if isinstance(model, nn.Module) and COMPILED in dict(model.named_children()):
        raise RequestError(
            "model is torch.compile's wrapper; give the model itself, which was compiled"
        )
    prefix = getattr(model, "base_model_prefix", None)
    if not (isinstance(model, nn.Module) and isinstance(prefix, str)):
        raise RequestError(f"model must be a model of transformers': {REMEDY} {_describe(model)}")
    if not hasattr(model, prefix) or not hasattr(model, "config"):
        raise RequestError(
            f"model must have a head for classification, and {type(model).__name__} has none; "
            "load it with AutoModelForSequenceClassification"
        )
    if not getattr(model.config, "return_dict", True):
        raise RequestError(
            "model.config.return_dict is false, so its outputs have no names; set it to True"
        )


def check_compiled(model: nn.Module) -> None:
    """Raise `RequestError` if a part of `model` is in torch.compile's wrapper.

    Such a model answers as before, but the names of its parameters differ, so that no adapter would
    be found again.
    """
    for name, _ in model.named_modules():
        part, _, child = name.rpartition(".")
        if child == COMPILED:
            raise RequestError(
                f"{part} in the model is torch.compile's wrapper; put the part itself back, and "
                f'compile it in place: model.get_submodule("{part}").compile()'
            )


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `RequestError` unless `tokenizer` is one of transformers' fast tokenizers."""
    if not (callable(tokenizer) and hasattr(tokenizer, "model_max_length")):
        raise RequestError(
            f"tokenizer must be the model's own, of transformers': {REMEDY} {_describe(tokenizer)}"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(
            f"tokenizer must be of the tokenizers library, which says what it has cut; "
            f"{type(tokenizer).__name__} is written in Python alone: choose a model whose folder "
            "has a tokenizer.json"
        )


def _describe(value: object) -> str:
    return value.__name__ if isinstance(value, type) else reprlib.repr(value)


class TaskCard(BaseModel, extra="forbid", frozen=True):
    """The task that the model was trained for, as far as its answers depend on it."""

    kind: Kind
    labels: list[str]  # in the order of the outputs; empty for a regression
    label_type: LabelType = "str"  # what labels were in the data
    columns: list[str]  # of the texts in the user's file; empty where they have no name
    max_length: int = Field(ge=1)  # tokens
    # of an example: 2 for pairs; null in a card from before it was recorded
    n_texts: int | None = Field(None, ge=1, le=2)

    @model_validator(mode="after")
    def _labels_of_their_type(self) -> TaskCard:
        check_names(self.labels, self.label_type)
        return self

    def name_outputs(self, config: Any) -> None:
        """Name the outputs in a model's configuration, as transformers' pipelines read it."""
        name_labels(config, self.labels)
        classes = "single_label_classification"
        config.problem_type = "regression" if self.kind == "regression" else classes


def name_labels(config: Any, labels: Sequence[str]) -> None:
    """Name the classes in a model's configuration; no labels leave it as it is."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}


@dataclass
class State:
    """What peftlab knows of one model.

    Attributes:
        source: where it was loaded from, if by peftlab.
        precision: what its base was held in and computes in, if that is known.
        task_card: the task that it was trained for.
        has_learnt: whether a training step has changed it, here or before it was saved.
        method: the `peftlab.methods.Method` that it was injected with.
        targets: the layers that the method adapted, if it adapts layers.
        merged: the adapters, by name, that plain layers have replaced.
        own_unit: whether a regression's outputs are known to be in the label's own unit.
        fast: whether it is inside the engine's `fast`.
        trained: the full names of the parameters that the method made trainable.
        tokenizer: the tokenizer of its training, if `peftlab.train` trained it.
        turn: held by the thread that it answers in.
    """

    source: Source | None = None
    precision: Precision | None = None
    task_card: TaskCard | None = None
    has_learnt: bool = False
    method: object | None = None
    targets: Targets | None = None
    merged: Mapping[str, Adapter] | None = None
    own_unit: bool = False
    fast: bool = False
    trained: frozenset[str] = frozenset()
    tokenizer: Any = field(default=None, compare=False, repr=False)
    turn: Any = field(default_factory=threading.RLock, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, for a copy or pickle, without the lock.

        Raises:
            RequestError: inside the engine, whose layers replace the model's.
        """
        self.check_plain("copied")
        return {name: value for name, value in self.__dict__.items() if name != "turn"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes, turn=threading.RLock())

    def check_plain(self, action: str) -> None:
        """Raise `RequestError` inside the engine, where `action`, such as "merged", is refused."""
        if self.fast:
            raise not_inside(action)


def not_inside(action: str) -> RequestError:
    """The refusal of `action`, such as "merged", inside the engine."""
    return RequestError(
        f"inside `with peftlab.engine.fast(model)` a model can't be {action}, since other layers "
        "stand in for its own; do that before it or after it"
    )


def state_of(model: nn.Module) -> State:
    """The model's state, to read and to change; a new one with the defaults if it had none."""
    state: State = model.__dict__.setdefault("peftlab", State())
    return state


def precision_of(model: PreTrainedModel) -> Precision:
    """What the model's base is held in, and what it computes in as far as that is known."""
    base = weight_precision(model.get_submodule(model.base_model_prefix))
    recorded = state_of(model).precision
    if recorded is not None and recorded.base == base:
        return recorded
    return Precision(base, base)  # nothing is recorded, or the model was cast since
