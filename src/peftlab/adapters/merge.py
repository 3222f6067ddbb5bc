"""Merge: replace adapters by plain layers, so that a pass costs no more than the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.adapters.savable import is_rounded
from peftlab.atomic import replace_folder
from peftlab.errors import RequestError
from peftlab.layers import (
    Adapter,
    Int8Linear,
    Linear,
    NF4Linear,
    PreTrainedModel,
    QuantisedLinear,
    base_dtype,
    exact,
    is_stored_transposed,
    linear_like,
    weight_of,
)
from peftlab.methods import injected
from peftlab.models import (
    StoredBase,
    agree_on_padding,
    check_model,
    quiet,
    save_tokenizer,
    state_of,
    token_limit,
)


def merge(model: PreTrainedModel) -> dict[str, float]:
    """Replace every adapter, in place, by the plain layer it equals.

    The update is added in fp32 to the base's weight as its file has it, not to a rounded copy
    (to the held weight if the model did not come from `load_model`, or its base was changed). On a
    base in nf4 it is added to the dequantised weight, which is the one that was trained on. A
    weight in eight bits is off by less than its quantised inputs are, so there the file's weight is
    taken.

    Returns:
        By layer, the largest |stored - exact fp32| of its weight and its bias: the error of
        rounding to the layer's own precision.

    Raises:
        RequestError: if the method can't be merged, or the model has none, is merged already, or
            is inside the engine.
    """
    check_model(model)
    state = state_of(model)
    state.check_plain("merged")
    method = injected(model)
    if method is None:
        raise RequestError("this model has no method; there is nothing to merge")
    if not method.mergeable:
        raise RequestError(
            f"{method.name} can't be merged: what it adds is not linear, so no plain layer "
            "equals it"
        )
    if is_merged(model):
        raise RequestError("this model is merged already; unmerge brings its adapters back")
    errors: dict[str, float] = {}
    merged: dict[str, nn.Module] = {}
    adapters = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    stored = None if state.source is None else StoredBase(model, state.source)
    with torch.no_grad():
        for name, adapter in adapters.items():
            original = _original(stored, name, adapter)
            plain = adapter.merged(original)
            exact_weight = adapter.merged_weight(original)
            errors[name] = _max_error(weight_of(plain), exact_weight)
            if (bias := adapter.merged_bias()) is not None:
                errors[name] = max(errors[name], _max_error(plain.bias, bias))
            merged[name] = plain
    state.merged = adapters  # set once all layers are made: a stop before this changes nothing
    for name, plain in merged.items():
        model.set_submodule(name, plain)
    return errors


def _max_error(stored: Tensor, wanted: Tensor) -> float:
    return (exact(stored) - exact(wanted)).abs().max().item()


def unmerge(model: PreTrainedModel) -> None:
    """Put back the adapters that `merge` replaced, the same objects.

    Raises:
        RequestError: if the model is not merged, or is inside the engine.
    """
    check_model(model)
    state_of(model).check_plain("unmerged")
    adapters = state_of(model).merged
    if adapters is None:
        raise RequestError("this model is not merged")
    for name, adapter in adapters.items():
        before, now = base_dtype(adapter.base), base_dtype(model.get_submodule(name))
        if now != before:
            raise RequestError(
                f"the model was cast from {before} to {now} since; cast it back first"
            )
    for name, adapter in adapters.items():
        model.set_submodule(name, adapter.train(model.training).to(model.device))
    state_of(model).merged = None


def is_merged(model: PreTrainedModel) -> bool:
    return state_of(model).merged is not None


def _original(stored: StoredBase | None, name: str, adapter: Adapter) -> Tensor:
    """The base's exact weight (out, in).

    It is that of the base's file, if the weight is held as that one's copy in a lower precision.
    """
    base, held = adapter.base, weight_of(adapter.base)
    is_coarse = isinstance(base, Int8Linear) or held.dtype.itemsize < 4
    if stored is None or isinstance(base, NF4Linear) or not is_coarse:
        return exact(held)
    is_transposed = is_stored_transposed(base)
    shape = held.T.shape if is_transposed else held.shape
    weight = stored.get(f"{name}.weight", shape)
    if weight is None:
        return exact(held)
    original = exact((weight.T if is_transposed else weight).to(held.device))
    return original if _is_copy(base, held, original) else exact(held)


def _is_copy(base: Linear, held: Tensor, original: Tensor) -> bool:
    """Whether `base` holds `original` in its precision, and no weight that it was given since."""
    if isinstance(base, Int8Linear):
        # on the CPU, as they were made: a GPU's division rounds some to another code
        again = type(base)(original.cpu(), None, base.compute, base.plain_kind)
        codes, scales = base.codes.cpu(), base.scales.cpu()
        return torch.equal(again.codes, codes) and torch.allclose(again.scales, scales)
    return is_rounded(held, original)


def plain_folder(model: PreTrainedModel, tokenizer: Any, folder: Path) -> float:
    """Merge `model` and write it to `folder` as transformers' own; returns how far logits move.

    The folder loads with `AutoModelForSequenceClassification.from_pretrained`. Weights are
    written in fp32, as exact as they are known; a tokenizer with `truncation=True` cuts at the
    length of the training.

    Returns:
        The largest difference of a logit, on a batch of random tokens, between `model` and the
        folder's weights in fp32.
    """
    inputs = _random_inputs(model, tokenizer)
    before = _logits(model, inputs)
    merge(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantisedLinear):
            model.set_submodule(name, linear_like(layer, weight_of(layer), layer.bias))
    plain = model.float()
    change = (_logits(plain, inputs) - before).abs().max().item()
    card = state_of(model).task_card
    if card is not None:
        tokenizer.model_max_length = card.max_length  # transformers' pipelines read no other

    def write(place: Path) -> None:
        plain.config.dtype = torch.float32
        with quiet():
            plain.save_pretrained(place)
            save_tokenizer(tokenizer, place)

    replace_folder(folder, write, may_be_adapter=False)
    return change


def _random_inputs(model: PreTrainedModel, tokenizer: Any) -> dict[str, Tensor]:
    """Random tokens between special ones, which some heads look for."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(tokenizer), (32, 24), generator=generator)
    texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
    agree_on_padding(model, tokenizer)
    limit = min(64, token_limit(tokenizer, model.config))
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


@torch.inference_mode()
def _logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model.eval()(**inputs).logits.float()
    return logits
