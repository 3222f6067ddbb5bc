"""peftlab.json: an adapter's method, its task, and the base that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, model_validator

from peftlab.atomic import CARD
from peftlab.errors import JSON_ERRORS, RequestError, one_line, unknown
from peftlab.layers import PreTrainedModel
from peftlab.methods import METHODS, Method, make
from peftlab.models import Source, TaskCard, find, looks_like_folder, precision_of, state_of

SCHEMA_VERSION = 1


class BasePart(BaseModel, extra="forbid", frozen=True):
    name: str
    folder: str | None  # where it lay; null for a name that finds it on any machine
    revision: str | None
    sha256: str | None = None  # of its files; null if they were not at hand


class MethodCard(BaseModel, extra="forbid", frozen=True):
    name: str
    settings: dict[str, Any]
    state: dict[str, Any] = {}  # the structure that `prepare` decided, such as LoRA-drop's sharing


class Card(BaseModel, extra="forbid", frozen=True):
    """The content of peftlab.json."""

    schema_version: int = SCHEMA_VERSION
    method: MethodCard
    base: BasePart
    num_labels: int
    labels: list[str] = []  # the outputs' names; empty in a card written before they were kept
    precision: str  # the one that the base was held in
    compute: str  # the precision of products
    task: TaskCard | None

    @model_validator(mode="after")
    def _known_version(self) -> Card:
        if self.schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"it is of version {self.schema_version}, and this peftlab reads up to "
                f"{SCHEMA_VERSION}: a later one wrote it"
            )
        return self

    @model_validator(mode="after")
    def _one_label_an_output(self) -> Card:
        for labels in (self.labels, self.task.labels if self.task else []):
            if labels and len(labels) != self.num_labels:
                raise ValueError(f"{len(labels)} labels for {self.num_labels} outputs")
        return self


def make_card(
    model: PreTrainedModel, method: Method, state: dict[str, Any], base: BasePart
) -> Card:
    """The card of an injected model on `base`."""
    precision = precision_of(model)
    labels = label_names(model)
    task = state_of(model).task_card
    if task is not None and task.labels and task.labels != labels:  # they were renamed since
        task = task.model_copy(update={"labels": labels, "label_type": "str"})
    return Card(
        method=MethodCard(name=method.name, settings=method.settings, state=state),
        base=base,
        num_labels=model.config.num_labels,
        labels=labels,
        precision=precision.base,
        compute=precision.compute,
        task=task,
    )


def label_names(model: PreTrainedModel) -> list[str]:
    """The names of the outputs, in their order, as the model's config has them."""
    names: dict[Any, str] = model.config.id2label or {}
    n_outputs: int = model.config.num_labels or 0
    return [str(names.get(index, names.get(str(index), index))) for index in range(n_outputs)]


def write_json(path: Path, content: Any) -> None:
    """Write one of the JSON files of an adapter's folder."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card of a folder, or None if it has none.

    Raises:
        RequestError: if it can't be read.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        return None
    try:
        return Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (*JSON_ERRORS, OSError) as error:  # ValidationError is a ValueError
        raise RequestError(f"{path} can't be read: {one_line(error)}") from None


def method_of(card: Card) -> Method:
    """The method that the card names.

    Raises:
        RequestError: if the method is not known here, or has other settings.
    """
    if card.method.name not in METHODS:
        hint = "One of your own is made known by peftlab.register, or by --plugin FILE."
        raise unknown("method", card.method.name, METHODS, hint)
    return make(card.method.name, card.method.settings)


class Base(NamedTuple):
    """A base: its part of the card, its files, and the name that others load it by."""

    part: BasePart
    source: Source | None  # None if its files are not at hand
    loadable: str  # a folder, or a name of the hub


def base_of(model: PreTrainedModel) -> Base:
    """The base of a model that `load_model` or transformers' `from_pretrained` gave.

    Raises:
        RequestError: if the model came from neither, or its folder can't be loaded from again.
    """
    source = state_of(model).source
    if source is not None:
        return _with_files(source)
    name = model.name_or_path
    if not name:
        raise RequestError(
            "this model's base is not known: it was made from a configuration, and an adapter "
            "must say what it belongs to; save the model with model.save_pretrained(folder), its "
            "tokenizer too, and load it from there"
        )
    if Path(name).is_dir():
        return _with_files(find(str(Path(name).resolve())))
    if looks_like_folder(name):  # it is gone
        return _without_files(BasePart(name=Path(name).name, folder=name, revision=None))
    revision: str | None = getattr(model.config, "_commit_hash", None)
    try:
        return _with_files(find(name, revision))
    except RequestError:  # the hub is out of reach, or has pickle weights only
        return _without_files(BasePart(name=name, folder=None, revision=revision))


def _with_files(source: Source) -> Base:
    folder = source.folder.resolve()
    part = BasePart(
        name=source.name,
        folder=None if source.is_named else str(folder),
        revision=source.revision,
        sha256=source.sha256,
    )
    return Base(part, source, source.name if source.revision else str(folder))


def _without_files(part: BasePart) -> Base:
    return Base(part, None, part.folder or part.name)
