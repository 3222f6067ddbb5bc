"""Load a model: the base in its precision, the head in fp32, the same head for every method.

The parts of the head that the checkpoint has, such as a pretrained pooler, are kept; the rest is
drawn from a generator of its own, seeded by the cell's seed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers  # its classes are looked up when used: importing them takes 2 s
from safetensors import safe_open

from peftlab.errors import RequestError, check_seed, expect, expect_path, one_line, plain
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
    check_batches,
    check_suited,
    compute_logits,
    load_tokenizer,
)
from peftlab.models.unit import last_layer
from peftlab.settings import DEVICE_WORDS, PRECISION_WORDS

NO_CLASS = "transformers has no sequence-classification class for it"
STORED = {  # in safetensors' words
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def empty_model(folder: Path, num_labels: int) -> PreTrainedModel:
    """The model's structure without memory for its weights: to check names, shapes and counts."""
    config = read_config(folder)
    config.num_labels = num_labels
    with torch.device("meta"), quiet():
        make: Any = transformers.AutoModelForSequenceClassification.from_config
        with _model_refusals(folder.name):
            model: PreTrainedModel = make(config)
        model = model.float()  # transformers makes it in the checkpoint's dtype, maybe of 16 bits
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

    The parts of the head that the checkpoint has, such as a pretrained pooler, are kept; the rest
    is drawn from a generator of its own, so that one seed gives every method and precision the same
    head. The model is put on `device`, auto, cpu, cuda or mps, where it is trained and answers.

    Raises:
        RequestError: if there is no such model, its folder lacks what is needed, or an argument is
            of a wrong type.
    """
    expect_path("name", name)
    num_labels = plain(num_labels)
    expect("num_labels", num_labels, int, "a whole number")
    expect("precision", precision, str, PRECISION_WORDS)
    seed = check_seed(seed)
    if num_labels < 1:
        raise RequestError(f"num_labels must be >= 1, got {num_labels}; 1 is for a regression")
    expect("device", device, str, DEVICE_WORDS)
    device = resolve_device(device).value
    source = find(str(name))
    resolved, _ = precision_for(source, precision, device)
    model = load_source(source, num_labels, resolved, seed)
    tokenizer = load_tokenizer(source.folder)
    agree_on_padding(model, tokenizer)
    check_batches(model, tokenizer)
    return model.to(torch.device(device)), tokenizer  # type: ignore[arg-type]


def load_source(
    source: Source, num_labels: int, precision: Precision, seed: int
) -> PreTrainedModel:
    """Load the model at `source`, which `find` returned, in a resolved precision.

    Args:
        source: where the model lies.
        num_labels: the number of the head's outputs.
        precision: of the base; beside quantised layers all else is held in its compute precision.
        seed: of the head's parts that are drawn.

    Raises:
        RequestError: if the weights don't fill the backbone that config.json describes.
    """
    folder = source.folder
    # One to be quantised is read as stored: each matrix is made fp32 when its turn comes. A buffer
    # that a class makes in its weights' precision, as Gemma its scale of embeddings, is then in 16
    # bits, as it was in its training.
    dtype = DTYPES.get(precision.base) or stored_dtype(folder) or torch.float32
    model = _pretrained(folder, num_labels, dtype)
    if precision.base in QUANTISED:
        quantise_linears(model, linear_names(model), precision.compute, precision.base)
    state = state_of(model)
    state.source, state.precision = source, precision
    _fill_head(model, _WeightFiles(folder), seed)
    return model


def precision_for(source: Source, requested: str, device: str) -> tuple[Precision, str]:
    """`resolve_precision` for one model, with the reason: auto is fp32 if its code fails in bf16.

    An architecture of the table is known to work in bf16. Any other is tried on a text: in bf16,
    and under autocast, as full fine-tuning computes.

    Raises:
        RequestError: for an unknown precision, or for a requested one in which the model fails.
    """
    precision, reason = resolve_precision(requested, device)
    if precision.compute == "fp32" or architecture_of(source).layers:
        return precision, reason
    if requested != "auto":
        failure = _try_precision(source, precision)
        if failure is not None:
            raise RequestError(
                f"model {source.name} ({source.model_type}) fails in {requested}: {failure}; take "
                "fp32"
            )
        return precision, reason
    for candidate in (precision, precision.of_base("fp32")):
        failure = _try_precision(source, candidate)
        if failure is not None:
            return Precision("fp32", "fp32"), f"{source.model_type} fails in bf16: {failure}"
    return precision, reason


def _try_precision(source: Source, precision: Precision) -> str | None:
    """The error that the model raises for a text in `precision`; None if it answers."""
    model = load_source(source, num_labels=2, precision=precision, seed=0)
    tokenizer = load_tokenizer(source.folder)
    agree_on_padding(model, tokenizer)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.autocast):
            compute_logits(model, tokenizer, ["."])
    except Exception as error:  # the code of an architecture may raise anything
        return one_line(error)
    return None


def check_weights(source: Source) -> None:
    """Try the model before anything is trained.

    Raises:
        RequestError: if its weights don't fill the backbone of its config.json, or its answers
            depend on what a text is batched with.
    """
    check_suited(source.name, source)
    model = _pretrained(source.folder, num_labels=2, dtype="auto")  # as stored: no conversion
    check_batches(model, load_tokenizer(source.folder))


def _pretrained(folder: Path, num_labels: int, dtype: torch.dtype | str) -> PreTrainedModel:
    with quiet(), _model_refusals(folder.name):
        config = read_config(folder)
        config.num_labels = num_labels
        mapping: Any = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if type(config) not in mapping:
            raise RequestError(f"model {folder.name} can't be made: {NO_CLASS}")
        model: PreTrainedModel
        model, loading_info = mapping[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=_WeightFiles(folder).cast(dtype),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model.name_or_path = config.name_or_path = str(folder)
        _check_backbone(model, loading_info)
        return model


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The precision of the model's files; None if their tensors have several, or one of 8 bits."""
    found = {dtype for dtype in _WeightFiles(folder).dtypes if "F" in dtype}
    return STORED.get(found.pop()) if len(found) == 1 else None


def stored_names(
    model: PreTrainedModel, source: Source, tensors: Mapping[str, torch.Tensor]
) -> set[str]:
    """The names of those `tensors` of `model` that the files of `source` hold in the same shape."""
    files = _WeightFiles(source.folder)
    return {
        name
        for name, tensor in tensors.items()
        if tensor.shape in files.shapes(*_names_in_files(model, name))
    }


class StoredBase:
    """The tensors of a model's backbone as the files of its base, `source`, hold them."""

    def __init__(self, model: PreTrainedModel, source: Source) -> None:
        self.model, self.source = model, source

    def get(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        """The tensor of this name in the model and of this shape; None if there is none.

        Raises:
            RequestError: if the base was read from files that are gone.
        """
        names = _names_in_files(self.model, name)
        if shape in self._files.shapes(*names):
            return self._files.get(*names, shape=shape)
        tensor = self._converted.get(name)
        return tensor if tensor is not None and tensor.shape == shape else None

    @functools.cached_property
    def _files(self) -> _WeightFiles:
        if not weight_files(self.source.folder):
            raise RequestError(
                f"the weights of {self.source.name} are no longer in {self.source.folder}; put "
                "them back, or load the adapter with base= where they are now"
            )
        return _WeightFiles(self.source.folder)

    @functools.cached_property
    def _converted(self) -> Mapping[str, torch.Tensor]:
        """All of them in fp32, by the names of transformers' classes, for files that use others.

        The head is left out: what the files lack of it was drawn.
        """
        model = _pretrained(self.source.folder, num_labels=2, dtype=torch.float32)
        head = head_parameters(model)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in head}


def _names_in_files(model: PreTrainedModel, name: str) -> tuple[str, str]:
    """The names that a file may give a tensor: one of a bare backbone has no prefix."""
    return name, name.removeprefix(f"{model.base_model_prefix}.")


@contextmanager
def _model_refusals(name: str) -> Iterator[None]:
    """Turn any error of transformers inside, where model `name` is made, into a `RequestError`."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a class may raise anything for a config that is not of its kind
        reason = one_line(error)
        if "Unrecognized configuration class" in reason:
            reason = NO_CLASS
        raise RequestError(f"model {name} can't be made: {reason}") from error


def _check_backbone(model: PreTrainedModel, loading_info: dict[str, Any]) -> None:
    """Refuse files that don't fill the backbone, which would be random: only the head is drawn."""
    prefixes = tuple(f"{name}." for name in head_names(model))
    mismatched = loading_info["mismatched_keys"]
    unfilled = [key[0] if isinstance(key, tuple) else key for key in mismatched]
    unfilled += loading_info["missing_keys"]
    unfilled = sorted(name for name in unfilled if not name.startswith(prefixes))
    if unfilled:
        raise RequestError(
            f"the weights of {model.name_or_path} don't fit its config.json: {len(unfilled)} "
            f"tensors of the backbone are missing or of another shape, such as {unfilled[0]}"
        )


def _fill_head(model: PreTrainedModel, files: _WeightFiles, seed: int) -> None:
    """Put the head in fp32: read exactly what the files have, and draw the rest."""
    std = getattr(model.config, "initializer_range", None) or 0.02
    generator = torch.Generator().manual_seed(seed)
    for name in head_names(model):
        keep_in_fp32(model.get_submodule(name))
    for name, parameter in head_parameters(model).items():
        value = files.get(*_names_in_files(model, name), shape=parameter.shape)
        with torch.no_grad():
            if value is not None:
                parameter.copy_(value)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        if value is not None and parameter is last_layer(model).weight:
            state_of(model).own_unit = True


class _WeightFiles:
    """The tensors of a model's files, read one at a time in their own precision."""

    def __init__(self, folder: Path) -> None:
        self.file_of: dict[str, Path] = {}
        for file in weight_files(folder):
            with safe_open(file, "pt") as tensors:
                self.file_of |= dict.fromkeys(tensors.keys(), file)

    def cast(self, dtype: torch.dtype | str) -> dict[str, torch.Tensor]:
        """All tensors, floating ones in `dtype`; those that have it stay in their file.

        Each has an opening of its own: one that is not needed any more lets its pages go.
        """
        cast: dict[str, torch.Tensor] = {}
        for name, file in self.file_of.items():
            with safe_open(file, "pt") as tensors:
                value = tensors.get_tensor(name)
            if isinstance(dtype, torch.dtype) and value.is_floating_point():
                value = value.to(dtype)
            cast[name] = value
        return cast

    @property
    def dtypes(self) -> set[str]:
        """The tensors' precisions, in safetensors' words."""
        found = set()
        for file in set(self.file_of.values()):
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                found |= {tensors.get_slice(name).get_dtype() for name in names}
        return found

    def shapes(self, *names: str) -> list[torch.Size]:
        """The shapes of the tensors that the files hold under any of `names`."""
        shapes = []
        for name in self.file_of.keys() & set(names):
            with safe_open(self.file_of[name], "pt") as tensors:
                shapes.append(torch.Size(tensors.get_slice(name).get_shape()))
        return shapes

    def get(self, *names: str, shape: torch.Size) -> torch.Tensor | None:
        """The first tensor of `names` that has this shape; None if there is none."""
        for name in names:
            if name in self.file_of:
                with safe_open(self.file_of[name], "pt") as tensors:
                    value: torch.Tensor = tensors.get_tensor(name)
                if value.shape == shape:
                    return value
        return None
