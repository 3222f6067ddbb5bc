"""Loading: the base in its precision, the head in fp32, the same head for every method.

What the checkpoint has of the head is kept, a pretrained pooler for one; the rest is drawn from
a generator of its own, seeded by the cell's seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers  # its classes are looked up when used: importing them takes 2 s
from safetensors import safe_open

from peftlab.errors import RequestError, check_seed, expect, expect_path, one_line
from peftlab.layers import (
    QUANTISED,
    Precision,
    PreTrainedModel,
    keep_in_fp32,
    quantise_linears,
    resolve_device,
    resolve_precision,
)
from peftlab.layers.precision import DTYPES
from peftlab.models.architectures import architecture_of, head_names, head_parameters
from peftlab.models.find import Source, find, quiet, read_config, weight_files
from peftlab.models.state import state_of
from peftlab.models.targets import linear_names
from peftlab.models.tokenizer import (
    agree_on_padding,
    answered,
    check_batches,
    check_suited,
    load_tokenizer,
)
from peftlab.models.unit import last_layer
from peftlab.settings import DEVICE_WORDS, PRECISION_WORDS

READ_TOGETHER = 16  # tensors of a file


def empty_model(folder: Path, num_labels: int, precision: str = "fp32") -> PreTrainedModel:
    """The model's structure without memory for its weights: to check names, shapes and counts."""
    config = read_config(folder)
    config.num_labels = num_labels
    with torch.device("meta"), quiet():
        make: Any = transformers.AutoModelForSequenceClassification.from_config
        # transformers makes it in what the checkpoint is stored in, which may be 16 bits
        model: PreTrainedModel = _for_classification(folder.name, lambda: make(config)).float()
        if precision in QUANTISED:
            quantise_linears(model, linear_names(model), "fp32", precision)
        return model


def sized_model(folder: Path, num_labels: int, precision: Precision) -> PreTrainedModel:
    """`empty_model` with every tensor in the precision that `load_source` gives it."""
    model = empty_model(folder, num_labels)
    if precision.base in QUANTISED:
        quantise_linears(model, linear_names(model), precision.compute, precision.base)
    else:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[precision.base])
    for name in head_names(model):
        keep_in_fp32(model.get_submodule(name))
    return model


def load_model(
    name: str | Path,
    num_labels: int = 2,
    precision: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> tuple[PreTrainedModel, Any]:
    """Load a pretrained model for `num_labels` outputs, its base in `precision`, its head in fp32.

    What the checkpoint has of the head is kept, a pretrained pooler for one; the rest is drawn
    from a generator of its own, so that one seed gives every method and precision one head. It
    comes to lie on `device`, auto, cpu, cuda or mps, where it is trained and answers.

    Raises:
        RequestError: if there is no such model, its folder lacks what is needed, or an argument is
            of a wrong type.
    """
    expect_path("name", name)
    expect("num_labels", num_labels, int, "a whole number")
    expect("precision", precision, str, PRECISION_WORDS)
    check_seed(seed)
    if num_labels < 1:
        raise RequestError(f"num_labels must be >= 1, got {num_labels}; 1 is for a regression")
    expect("device", device, str, DEVICE_WORDS)
    place = resolve_device(device).value
    source = find(str(name))
    resolved, _ = precision_for(source, precision, place)
    model = load_source(source, num_labels, resolved, seed)
    tokenizer = load_tokenizer(source.folder)
    agree_on_padding(model, tokenizer)
    check_batches(model, tokenizer)
    return model.to(torch.device(place)), tokenizer  # type: ignore[arg-type]


def load_source(
    source: Source, num_labels: int, precision: Precision, seed: int
) -> PreTrainedModel:
    """`load_model` for a model that `find` has found and a resolved precision.

    Args:
        source: where it lies.
        num_labels: of the head.
        precision: of the base; of a quantised one, all else is held in what it computes in.
        seed: of what is drawn of the head.

    Raises:
        RequestError: if the weights don't fill the backbone that config.json describes.
    """
    folder = source.folder
    # what is quantised is quantised from fp32
    model = _pretrained(folder, num_labels, DTYPES.get(precision.base, torch.float32))
    if precision.base in QUANTISED:
        quantise_linears(model, linear_names(model), precision.compute, precision.base)
    state = state_of(model)
    state.source, state.precision = source, precision
    _fill_head(model, _Stored(folder), seed)
    return model


def precision_for(source: Source, asked: str, device: str) -> tuple[Precision, str]:
    """`resolve_precision` for one model: auto is fp32 where its code fails in bf16.

    An architecture of the table is known not to; any other answers a text in bf16 and, as full
    fine-tuning computes, under autocast.

    Raises:
        RequestError: for an unknown precision, or one that is asked for and that it fails in.
    """
    precision, why = resolve_precision(asked, device)
    if precision.compute == "fp32" or architecture_of(source).layers:
        return precision, why
    if asked != "auto":
        fault = _fault(source, precision)
        if fault is not None:
            raise RequestError(
                f"model {source.name} ({source.model_type}) fails in {asked}: {fault}; take fp32"
            )
        return precision, why
    for tried in (precision, precision.of_base("fp32")):
        fault = _fault(source, tried)
        if fault is not None:
            return Precision("fp32", "fp32"), f"{source.model_type} fails in bf16: {fault}"
    return precision, why


def _fault(source: Source, precision: Precision) -> str | None:
    """What a model that is held in `precision` fails with, if it does."""
    model = load_source(source, num_labels=2, precision=precision, seed=0)
    tokenizer = load_tokenizer(source.folder)
    agree_on_padding(model, tokenizer)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast):
            answered(model, tokenizer, ["."])
    except Exception as error:  # whatever the code of an architecture meets
        return one_line(error)
    return None


def check_weights(source: Source) -> None:
    """Try the model before anything is trained.

    Raises:
        RequestError: if its weights don't fill the backbone of its config.json, or its answers
            would depend on the batch.
    """
    check_suited(source.name, source)
    model = _pretrained(source.folder, num_labels=2, dtype="auto")  # as stored: no conversion
    check_batches(model, load_tokenizer(source.folder))


def _pretrained(folder: Path, num_labels: int, dtype: torch.dtype | str) -> PreTrainedModel:
    def load() -> PreTrainedModel:
        config = read_config(folder)
        config.num_labels = num_labels
        mapping: Any = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(config) not in mapping:
            raise RequestError(
                f"model {folder.name} can't be made: transformers has no sequence-classification "
                "class for it"
            )
        model, found = mapping[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=_Stored(folder).cast(dtype),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model.name_or_path = config.name_or_path = str(folder)
        _check_backbone(model, found)
        loaded: PreTrainedModel = model
        return loaded

    with quiet():
        return _for_classification(folder.name, load)


def stored_names(
    model: PreTrainedModel, source: Source, tensors: Mapping[str, torch.Tensor]
) -> set[str]:
    """Those of the tensors of `model` that the files of `source` hold, of that shape."""
    stored = _Stored(source.folder)
    return {
        name
        for name, tensor in tensors.items()
        if tensor.shape in stored.shapes(*_spellings(model, name))
    }


class StoredBase:
    """The backbone's tensors of a model as the files of its base, `source`, hold them."""

    def __init__(self, model: PreTrainedModel, source: Source) -> None:
        self.model, self.source = model, source

    def get(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        """A tensor by its name in the model; None where there is none of that shape.

        Raises:
            RequestError: if the base was read from files that are gone.
        """
        names = _spellings(self.model, name)
        if shape in self._files.shapes(*names):
            return self._files.get(*names, shape=shape)
        found = self._translated.get(name)
        return found if found is not None and found.shape == shape else None

    @functools.cached_property
    def _files(self) -> _Stored:
        if not weight_files(self.source.folder):
            raise RequestError(
                f"the weights of {self.source.name} are no longer in {self.source.folder}; put "
                "them back, or load the adapter with base= where they are now"
            )
        return _Stored(self.source.folder)

    @functools.cached_property
    def _translated(self) -> Mapping[str, torch.Tensor]:
        """All of them in fp32, where the files have other names than transformers' classes.

        Without the head, of which what the files lack was drawn.
        """
        model = _pretrained(self.source.folder, num_labels=2, dtype=torch.float32)
        head = head_parameters(model)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in head}


def _spellings(model: PreTrainedModel, name: str) -> tuple[str, str]:
    """The names that a file may give a tensor: a bare backbone's has no prefix."""
    return name, name.removeprefix(f"{model.base_model_prefix}.")


def _for_classification(name: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    try:
        return make()
    except RequestError:
        raise
    except Exception as error:  # whatever a class meets in a config that is not of its kind
        reason = one_line(error)
        if "Unrecognized configuration class" in reason:
            reason = "transformers has no sequence-classification class for it"
        raise RequestError(f"model {name} can't be made: {reason}") from error


def _check_backbone(model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Only the head may be drawn: a backbone that the files don't fill would be random."""
    heads = tuple(f"{name}." for name in head_names(model))
    mismatched = [key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]]
    lacking = [name for name in [*found["missing_keys"], *mismatched] if not name.startswith(heads)]
    if lacking:
        raise RequestError(
            f"the weights of {model.name_or_path} don't fit its config.json: {len(lacking)} "
            f"tensors of the backbone are missing or of another shape, such as {sorted(lacking)[0]}"
        )


def _fill_head(model: PreTrainedModel, stored: _Stored, seed: int) -> None:
    """Put the head in fp32: what the files have is read exactly, what they lack is drawn."""
    std = getattr(model.config, "initializer_range", None) or 0.02
    generator = torch.Generator().manual_seed(seed)
    for name in head_names(model):
        keep_in_fp32(model.get_submodule(name))
    for name, parameter in head_parameters(model).items():
        value = stored.get(*_spellings(model, name), shape=parameter.shape)
        with torch.no_grad():
            if value is not None:
                parameter.copy_(value)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        if value is not None and parameter is last_layer(model).weight:
            state_of(model).own_unit = True


class _Stored:
    """The tensors of a model's files, read one at a time in their own precision."""

    def __init__(self, folder: Path) -> None:
        self.file_of: dict[str, Path] = {}
        for file in weight_files(folder):
            with safe_open(file, "pt") as tensors:
                self.file_of |= dict.fromkeys(tensors.keys(), file)

    def cast(self, dtype: torch.dtype | str) -> dict[str, torch.Tensor]:
        """All tensors, floating ones in `dtype`; a few at a time, so that no file is held whole."""
        cast: dict[str, torch.Tensor] = {}
        for file in sorted(set(self.file_of.values())):
            names = [name for name, place in self.file_of.items() if place == file]
            for start in range(0, len(names), READ_TOGETHER):
                with safe_open(file, "pt") as tensors:  # closed, it lets go of what was read
                    for name in names[start : start + READ_TOGETHER]:
                        value = tensors.get_tensor(name)
                        if isinstance(dtype, torch.dtype) and value.is_floating_point():
                            value = value.to(dtype)
                        cast[name] = value
        return cast

    def shapes(self, *names: str) -> list[torch.Size]:
        """Of those of the tensors that there are."""
        found = []
        for name in self.file_of.keys() & set(names):
            with safe_open(self.file_of[name], "pt") as tensors:
                found.append(torch.Size(tensors.get_slice(name).get_shape()))
        return found

    def get(self, *names: str, shape: torch.Size) -> torch.Tensor | None:
        for name in names:
            if name in self.file_of:
                with safe_open(self.file_of[name], "pt") as tensors:
                    value: torch.Tensor = tensors.get_tensor(name)
                if value.shape == shape:
                    return value
        return None
