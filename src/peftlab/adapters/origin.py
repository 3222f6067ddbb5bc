"""The base that an adapter belongs to: where a model came from, and what exactly lies there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from peftlab.adapters.card import BasePart
from peftlab.errors import RequestError
from peftlab.layers import PreTrainedModel
from peftlab.models import Source, find, looks_like_folder, state_of


class Base(NamedTuple):
    """A base as the card tells of it, where it lies, and the name that other libraries load."""

    part: BasePart
    folder: Path | None  # None where its files are not at hand
    loadable: str  # a folder, or a name of the hub


def base_of(model: PreTrainedModel) -> Base:
    """The base of a model that `load_model` or transformers' `from_pretrained` gave.

    Raises:
        RequestError: if the model came from neither, or its folder can't be loaded from again.
    """
    source = state_of(model).source
    if source is not None:
        return _found(source)
    name = model.name_or_path
    if not name:
        raise RequestError(
            "this model's base is not known: it was made from a configuration, and an adapter "
            "must say what it belongs to; save the model with model.save_pretrained(folder), its "
            "tokenizer too, and load it from there"
        )
    if Path(name).is_dir():
        return _found(find(str(Path(name).resolve())))
    if looks_like_folder(name):  # it is gone
        return _unseen(BasePart(name=Path(name).name, folder=name, revision=None))
    revision: str | None = getattr(model.config, "_commit_hash", None)
    try:
        return _found(find(name, revision))
    except RequestError:  # the hub is out of reach, or has pickle weights only
        return _unseen(BasePart(name=name, folder=None, revision=revision))


def _found(source: Source) -> Base:
    folder = source.folder.resolve()
    part = BasePart(
        name=source.name,
        folder=None if source.is_named else str(folder),
        revision=source.revision,
        sha256=source.sha256,
    )
    return Base(part, folder, source.name if source.revision else str(folder))


def _unseen(part: BasePart) -> Base:
    return Base(part, None, part.folder or part.name)
