"""Save an adapter to a folder, and load it from one; also from a folder that HF PEFT wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftlab.adapters import peft_layout
from peftlab.adapters.card import Card, make_card, method_of, read_card, write_json
from peftlab.adapters.merge import is_merged
from peftlab.adapters.savable import check_ids, check_savable
from peftlab.atomic import CARD, PEFT_CONFIG, WEIGHTS, replace_folder
from peftlab.errors import RequestError, expanded, expect, expect_path, system_refusals
from peftlab.layers import (
    QUANTISED,
    Precision,
    PreTrainedModel,
    adapter_state,
    resolve_device,
    resolve_precision,
    skip_start,
)
from peftlab.layers.precision import DTYPES
from peftlab.methods import InPeft, ManyRanks, Prepared, inject, injected
from peftlab.models import (
    Source,
    agree_on_padding,
    check_batches,
    check_model,
    check_tokenizer,
    empty_model,
    find,
    head_parameters,
    last_layer,
    load_source,
    load_tokenizer,
    name_labels,
    precision_for,
    save_tokenizer,
    state_of,
    stored_names,
)
from peftlab.models.find import read_config
from peftlab.models.tokenizer import check_suited
from peftlab.naming import few
from peftlab.settings import DEVICE_WORDS, PRECISION_WORDS


def save(
    model: PreTrainedModel, folder: str | Path, rank: int | None = None, tokenizer: Any = None
) -> None:
    """Write the adapter of an injected model to `folder`, whole or not at all.

    Args:
        model: from `load_model` or transformers' `from_pretrained`, injected, not merged.
        folder: a new or empty one, or one that holds an adapter, which is replaced.
        rank: for DyLoRA, the rank to cut to, scaled by alpha / rank.
        tokenizer: the one that the model was trained with; if not given, that of `peftlab.train`,
            else the base's own.

    Raises:
        RequestError: if the model has no adapter, or its head is not part of it, or a tensor trains
            that its method leaves frozen, or the other way round, or its base is not known or was
            changed since it was read, or the folder holds something else.
    """
    check_model(model)
    expect_path("folder", folder)
    expect("rank", rank, (int, NoneType), "a whole number")
    if tokenizer is not None:
        check_tokenizer(tokenizer)
        check_ids(model, tokenizer)
    method = injected(model)
    if method is None:
        raise RequestError("this model has no method; inject one before saving")
    if is_merged(model):
        raise RequestError(
            "this model is merged; unmerge it to save its adapter, from which `peftlab merge` "
            "writes the whole of it"
        )
    base = check_savable(model)
    state = adapter_state(model)
    structure = method.state(model) if isinstance(method, Prepared) else {}
    if rank is not None:
        if not isinstance(method, ManyRanks):
            raise RequestError(
                f"{method.name} is trained for one rank; dylora has several to choose from"
            )
        method, state = method.at_rank(state, rank)
    card = make_card(model, method, structure, base.part)
    config = None
    if isinstance(method, InPeft):
        config = peft_layout.make_config(model, method, base)
        state = peft_layout.to_file(method, state)
    if tokenizer is None:
        tokenizer = state_of(model).tokenizer
    if tokenizer is None and base.source is not None:
        tokenizer = load_tokenizer(base.source.folder)
    replace_folder(expanded(folder), lambda place: _write(place, config, card, state, tokenizer))


def _write(
    place: Path,
    config: dict[str, Any] | None,
    card: Card,
    state: dict[str, Tensor],
    tokenizer: Any,
) -> None:
    if config is not None:
        write_json(place / PEFT_CONFIG, config)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    write_json(place / CARD, card.model_dump(mode="json"))
    if tokenizer is not None:
        save_tokenizer(tokenizer, place)


def load(
    folder: str | Path,
    base: str | Path | None = None,
    precision: str | None = None,
    device: str = "auto",
) -> tuple[PreTrainedModel, Any]:
    """The model that `save` wrote to `folder`, or HF PEFT did, and its tokenizer.

    Args:
        folder: with adapter_model.safetensors and peftlab.json or adapter_config.json.
        base: where the base lies now, if it was moved since the adapter was saved.
        precision: how to hold the base; as in training if not given.
        device: where to put the model: auto, cpu, cuda or mps.

    Raises:
        RequestError: if the folder is not complete, its base can't be found or is another one,
            or a tensor is missing, unexpected or of another shape.
    """
    expect_path("folder", folder)
    expect("base", base, (str, os.PathLike, NoneType), "a folder or a name of the hub")
    expect("precision", precision, (str, NoneType), PRECISION_WORDS)
    expect("device", device, str, DEVICE_WORDS)
    device = resolve_device(device).value
    resolved = None if precision is None else resolve_precision(precision, device)[0]
    model, tokenizer = load_in(
        expanded(folder), None if base is None else str(base), resolved, device
    )
    return model.to(torch.device(device)), tokenizer  # type: ignore[arg-type]


def load_in(
    folder: Path, base: str | None, precision: Precision | None, device: str = "cpu"
) -> tuple[PreTrainedModel, Any]:
    """As `load`, onto the CPU, with a resolved precision.

    Without one the base of HF PEFT's adapter is held as suits `device`.
    """
    check_adapter(folder)
    card = read_card(folder)
    tensors = _read_weights(folder)
    if card is None:
        return _load_peft(folder, tensors, base, precision, device)
    method = method_of(card)
    source = _find_base_of_card(card, base)
    precision = precision or _precision_of(card, folder)
    model = load_source(source, card.num_labels, precision, seed=0)
    with skip_start():
        inject(model, method)
    if isinstance(method, Prepared):
        method.restore(model, card.method.state)
    if isinstance(method, InPeft):
        tensors = peft_layout.from_file(method, tensors, list(adapter_state(model)))
    fill(model, tensors, optional=set())
    state_of(model).own_unit = True
    _name_outputs(model, card)
    return model.eval(), _tokenizer(model, folder, source)


def _load_peft(
    folder: Path,
    tensors: dict[str, Tensor],
    base: str | None,
    precision: Precision | None,
    device: str,
) -> tuple[PreTrainedModel, Any]:
    """The model of a folder that HF PEFT wrote: its tensors tell what its config does not."""
    config = peft_layout.read_config(folder, needs_base=base is None)
    source = _find_base(base, config.get("base_model_name_or_path", ""), config.get("revision"))
    if read_config(source.folder).problem_type == "multi_label_classification":
        raise RequestError(
            f"{folder} is of a base that gives several labels at once; answers here are one label "
            "or a number"
        )
    check_suited(source.name, source)
    method = peft_layout.read_method(config, tensors)
    precision = precision or precision_for(source, "auto", device)[0]
    model = load_source(source, _num_labels(source, tensors), precision, seed=0)
    peft_layout.check_head(model, tensors)
    with skip_start():
        inject(model, method)
    # PEFT leaves a pretrained pooler in the base
    optional = stored_names(model, source, head_parameters(model))
    names = list(adapter_state(model))
    optional |= {name for name in names if name.endswith(method.peft_optional)}
    fill(model, peft_layout.from_file(method, tensors, names), optional)
    state_of(model).own_unit = True
    tokenizer = _tokenizer(model, folder, source)
    check_batches(model, tokenizer)
    return model.eval(), tokenizer


def _num_labels(source: Source, tensors: Mapping[str, Tensor]) -> int:
    """The number of outputs: of the last layer that the adapter has, else of its base's."""
    n_of_base = int(read_config(source.folder).num_labels)
    empty = empty_model(source.folder, n_of_base)
    head = head_parameters(empty)
    weight = last_layer(empty).weight
    (name,) = (name for name, parameter in head.items() if parameter is weight)
    n_of_adapter = peft_layout.num_labels(tensors, name)
    if n_of_adapter is None and not stored_names(empty, source, {name: weight}):
        raise RequestError(
            f"the adapter has no head ({', '.join(head)}), nor has its base: it was saved without "
            "modules_to_save, and a head drawn anew would answer at random"
        )
    return n_of_base if n_of_adapter is None else n_of_adapter


def _precision_of(card: Card, folder: Path) -> Precision:
    if card.precision not in (*DTYPES, *QUANTISED) or card.compute not in DTYPES:
        raise RequestError(
            f"the adapter in {folder} was trained on a base in {card.precision}, computing in "
            f"{card.compute}; say how to hold it: precision={PRECISION_WORDS}"
        )
    return Precision(card.precision, card.compute)


def _find_base_of_card(card: Card, base: str | None) -> Source:
    source = _find_base(base, card.base.folder or card.base.name, card.base.revision)
    if card.base.sha256 not in (None, source.sha256):
        raise RequestError(
            f"this adapter belongs to another base: {card.base.name} with sha256 "
            f"{str(card.base.sha256)[:12]}…, and {source.name} has {source.sha256[:12]}…; "
            "a different base would give other answers without a word"
        )
    return source


def _find_base(base: str | None, name: str, revision: str | None) -> Source:
    """The base at `base` if it is given, else the one that the adapter names."""
    if base:
        return find(base)
    try:
        return find(name, revision)
    except RequestError as error:
        raise RequestError(
            f"the adapter's base is not where it was ({error}); say where it lies now with --base "
            "(in Python: load(folder, base=...))"
        ) from error


def _name_outputs(model: PreTrainedModel, card: Card) -> None:
    state_of(model).task_card = card.task
    state_of(model).has_learnt = card.task is not None
    if card.task:
        card.task.name_outputs(model.config)
    name_labels(model.config, card.labels)


def _tokenizer(model: PreTrainedModel, folder: Path, source: Source) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json")
    has_tokenizer = any((folder / name).is_file() for name in files)
    tokenizer = load_tokenizer(folder if has_tokenizer else source.folder)
    agree_on_padding(model, tokenizer)
    return tokenizer


def check_adapter(folder: Path) -> None:
    """Raise `RequestError` unless `folder` is there and has an adapter's weights."""
    with system_refusals(f"{folder} can't be read"):
        exists = folder.is_dir()
    if not exists:
        raise RequestError(f"there is no folder {folder}; give one that an adapter was saved to")
    if not (folder / WEIGHTS).is_file():
        why = "has none"
        if (folder / "adapter_model.bin").is_file():
            why = "has only pickle weights, which can run code when opened"
        raise RequestError(f"{folder} is no adapter: {WEIGHTS} is wanted, and it {why}")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path} is not a readable safetensors file: {error}") from error


def fill(model: PreTrainedModel, tensors: dict[str, Tensor], optional: set[str]) -> None:
    """Copy the tensors of a folder into an injected model; those in `optional` may be missing.

    Raises:
        RequestError: for a tensor that is missing, unexpected, or of another shape; it is named.
    """
    state = adapter_state(model)
    missing = [name for name in state if name not in tensors and name not in optional]
    unexpected = [name for name in tensors if name not in state]
    if missing or unexpected:
        raise RequestError(
            f"the adapter's tensors are not this model's: missing {few(missing)}; "
            f"unexpected {few(unexpected)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(state[name].shape)} is wanted"
            raise RequestError(f"the adapter's {name} is of shape {shapes}")
        state[name].copy_(tensor)
