"""Whether a saved adapter would give the model back: its head, its frozen tensors, its config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from peftlab.adapters.card import Base, base_of
from peftlab.errors import RequestError
from peftlab.layers import PreTrainedModel, Wrapper, adapter_state
from peftlab.methods import Method, Prepared, injected
from peftlab.models import (
    StoredBase,
    check_compiled,
    empty_model,
    head_parameters,
    state_of,
)
from peftlab.models.find import read_config, weight_files

# twice the relative error of rounding to bf16, the coarsest precision that a base is cast to
ROUNDED = 2.0**-7
# fields of a config that belong to answers, loading or training, and not to the backbone
FREE = re.compile(
    r"label|problem_type|token_id$|drop|^_|dtype|version$|^architectures$|^return_dict$|^use_cache$"
    r"|^output_|checkpointing|attn_implementation|experts_implementation|^chunk_size_feed_forward$"
)


def check_savable(model: PreTrainedModel) -> Base:
    """The base of `model`, injected or not yet.

    Raises:
        RequestError: if an adapter of the model could not be loaded onto that base.
    """
    check_compiled(model)
    base = base_of(model)
    _check_tokens(model, base)
    _check_config(model, base)
    method = injected(model)
    if method is not None:
        state = adapter_state(model)
        _check_head(model, state)
        _check_trained(model, method, state)
        _check_frozen(model, base, state)
    return base


def _check_head(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Raise `RequestError` unless the whole head is in `state`."""
    missing = [name for name in head_parameters(model) if name not in state]
    if missing:
        raise RequestError(
            f"the head is not all trained and saved: {missing[0]} is frozen; "
            "an adapter without its head can't be used again"
        )


def _check_trained(model: PreTrainedModel, method: Method, state: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` unless `state` has just what `method` trains, as a load expects."""
    trained = state_of(model).trained
    for name, p in model.named_parameters():
        if p.requires_grad and name not in trained:
            raise RequestError(
                f"{name} trains, which is none of {method.name}'s, so no adapter of it can hold "
                "that; freeze it again, or keep the whole model: merge it, then "
                "model.save_pretrained (not on a quantised base)"
            )
    frozen = sorted(trained - state.keys())
    if frozen and not isinstance(method, Prepared):  # which may have joined tensors since
        raise RequestError(
            f"{frozen[0]} is frozen, and {method.name} trains it; let it be trained again, if only "
            "to save it"
        )


def _check_tokens(model: PreTrainedModel, base: Base) -> None:
    """Raise `RequestError` if tokens were added to `model`, if its base's files are at hand."""
    n_tokens = _n_tokens(model)
    if base.source is None or n_tokens is None:
        return
    if n_tokens == getattr(read_config(base.source.folder).get_text_config(), "vocab_size", None):
        return
    n_base_tokens = _n_tokens(empty_model(base.source.folder, num_labels=2))
    if n_tokens != n_base_tokens:
        raise RequestError(
            f"this model knows {n_tokens} tokens and its base {base.part.name} knows "
            f"{n_base_tokens}; an adapter holds no tokens, so those would be lost: before it is "
            "injected, write the base to a folder by model.save_pretrained and "
            "tokenizer.save_pretrained, and load it from there"
        )


def check_ids(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `RequestError` if `tokenizer` has tokens that `model` has no rows for."""
    n_tokens = _n_tokens(model)
    last = max(tokenizer.get_vocab().values(), default=0)
    if n_tokens is not None and last >= n_tokens:
        raise RequestError(
            f"the tokenizer has a token {last} and this model knows {n_tokens}, counted from 0: "
            "tokens that were added to it alone can't be read; give it the base's own tokenizer"
        )


def _check_config(model: PreTrainedModel, base: Base) -> None:
    """Raise `RequestError` if the backbone is not what its base's config.json describes."""
    if base.source is None:
        return
    config, stored = model.config.to_dict(), read_config(base.source.folder).to_dict()
    if difference := next(_differences(config, stored), None):
        name, here, there = difference
        raise RequestError(
            f"{name} is {here!r} in this model and {there!r} in the config.json of "
            f"{base.part.name}: an adapter is loaded onto the files, and would answer otherwise; "
            "before it is injected, write the changed base to a folder by model.save_pretrained "
            "and tokenizer.save_pretrained, and load it from there"
        )


def _differences(
    config: Mapping[str, Any], stored: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The fields of both that differ and belong to the backbone, also of configs inside."""
    for name in sorted(config.keys() & stored.keys()):
        here, there = config[name], stored[name]
        if FREE.search(name) or here == there:
            continue
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from _differences(here, there, f"{inside}{name}.")
        else:
            yield f"{inside}{name}", here, there


def _n_tokens(model: PreTrainedModel) -> int | None:
    """The rows of the token embedding; None if transformers doesn't say which module that is."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        return None
    return None if weight is None else len(weight)


def _check_frozen(model: PreTrainedModel, base: Base, state: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` if a frozen tensor differs from the base's files, if at hand."""
    if base.source is None or not weight_files(base.source.folder):
        return
    stored = StoredBase(model, base.source)
    wrappers = [name for name, module in model.named_modules() if isinstance(module, Wrapper)]
    for name, parameter in model.named_parameters():
        file_name = _unwrapped(name, wrappers)
        if name in state or file_name in state:  # BitFit keeps a bias in the place of the base's
            continue
        original = stored.get(file_name, parameter.shape)
        if original is not None and not is_rounded(parameter.detach(), original):
            raise RequestError(
                f"{file_name} is frozen and is not what {base.part.name}'s files hold: this base "
                "was trained further or changed since it was read, and an adapter, which is loaded "
                "onto the files, would answer otherwise; keep the whole model (merge it, then "
                "model.save_pretrained; not on a quantised base), or, before it is injected, write "
                "the changed base to a folder by model.save_pretrained and "
                "tokenizer.save_pretrained, and load it from there"
            )


def _unwrapped(name: str, wrappers: list[str]) -> str:
    """The name that a parameter has in a model without wrappers."""
    for wrapper in wrappers:
        if name.startswith(f"{wrapper}.base."):
            return wrapper + name.removeprefix(f"{wrapper}.base")
    return name


def is_rounded(held: Tensor, stored: Tensor) -> bool:
    """Whether `held` is `stored`, or a copy of it that was cast to fewer bits in between."""
    wanted = stored.to(held.device, held.dtype)
    return torch.equal(held, wanted) or torch.allclose(held, wanted, rtol=ROUNDED, atol=1e-6)
