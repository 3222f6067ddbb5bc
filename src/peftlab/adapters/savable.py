"""Which of a model's tensors are its adapter, and whether a folder of them would give it back."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

# twice what rounding to bf16, the coarsest that a base is held in, makes of a number
ROUNDED = 2.0**-7
# of a config, what is the answers', the loading's or the training's own: not the backbone
FREE = re.compile(
    r"label|problem_type|token_id$|drop|^_|dtype|version$|^architectures$|^return_dict$|^use_cache$"
    r"|^output_|checkpointing|attn_implementation|experts_implementation|^chunk_size_feed_forward$"
)


def check_savable(model: PreTrainedModel) -> Base:
    """The base of `model`, injected or not yet.

    Raises:
        RequestError: if an adapter of it could not be loaded.
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
    lacking = [name for name in head_parameters(model) if name not in state]
    if lacking:
        raise RequestError(
            f"the head is not all trained and saved: {lacking[0]} is frozen; "
            "an adapter without its head can't be used again"
        )


def _check_trained(model: PreTrainedModel, method: Method, state: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` unless `state` has what `method` trains: by that it is loaded."""
    trained = state_of(model).trained
    for name, p in model.named_parameters():
        if p.requires_grad and name not in trained:
            raise RequestError(
                f"{name} trains, which is none of {method.name}'s, so no adapter of it can hold "
                "that; freeze it again, or keep the whole model by model.save_pretrained"
            )
    # one that prepares itself may have joined some by then
    for name in () if isinstance(method, Prepared) else sorted(trained - state.keys()):
        raise RequestError(
            f"{name} is frozen, and {method.name} trains it; let it be trained again, if only to "
            "save it"
        )


def _check_tokens(model: PreTrainedModel, base: Base) -> None:
    """Raise `RequestError` if tokens were added to `model`, where its base's files are at hand."""
    rows = _rows(model)
    if base.source is None or rows is None:
        return
    if rows == getattr(read_config(base.source.folder).get_text_config(), "vocab_size", None):
        return
    wanted = _rows(empty_model(base.source.folder, num_labels=2))
    if rows != wanted:
        raise RequestError(
            f"this model knows {rows} tokens and its base {base.part.name} knows {wanted}; an "
            "adapter holds no tokens, so those would be lost: before it is injected, write the "
            "base to a folder by model.save_pretrained and tokenizer.save_pretrained, and load it "
            "from there"
        )


def check_ids(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `RequestError` if `tokenizer` has tokens that `model` has no rows for."""
    rows = _rows(model)
    last = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and last >= rows:
        raise RequestError(
            f"the tokenizer has a token {last} and this model knows {rows}, counted from 0: tokens "
            "that were added to it alone can't be read; give it the base's own tokenizer"
        )


def _check_config(model: PreTrainedModel, base: Base) -> None:
    """Raise `RequestError` if the backbone is not what its base's config.json describes."""
    if base.source is None:
        return
    own, stored = model.config.to_dict(), read_config(base.source.folder).to_dict()
    for name in sorted(own.keys() & stored.keys()):
        if own[name] != stored[name] and not FREE.search(name):
            raise RequestError(
                f"{name} is {own[name]!r} in this model and {stored[name]!r} in the config.json of "
                f"{base.part.name}: an adapter is loaded onto the files, and would answer "
                "otherwise; before it is injected, write the changed base to a folder by "
                "model.save_pretrained and tokenizer.save_pretrained, and load it from there"
            )


def _rows(model: PreTrainedModel) -> int | None:
    """Of the tokens' embedding, None where transformers doesn't say which that is."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        return None
    return None if weight is None else len(weight)


def _check_frozen(model: PreTrainedModel, base: Base, state: Mapping[str, Tensor]) -> None:
    """Raise `RequestError` if what is frozen is not what the base's files hold, if at hand."""
    if base.source is None or not weight_files(base.source.folder):
        return
    stored = StoredBase(model, base.source)
    wrappers = [name for name, module in model.named_modules() if isinstance(module, Wrapper)]
    for name, parameter in model.named_parameters():
        if name in state:
            continue
        file_name = _unwrapped(name, wrappers)
        given = stored.get(file_name, parameter.shape)
        if given is not None and not _is_rounded(parameter.detach(), given):
            raise RequestError(
                f"{file_name} is frozen and is not what {base.part.name}'s files hold: this base "
                "was trained further or changed since it was read, and an adapter, which is loaded "
                "onto the files, would answer otherwise; keep the whole model (merge it, then "
                "model.save_pretrained), or, before it is injected, write the changed base to a "
                "folder by model.save_pretrained and tokenizer.save_pretrained, and load it from "
                "there"
            )


def _unwrapped(name: str, wrappers: list[str]) -> str:
    """A parameter's name in a model that no method has wrapped modules of."""
    for wrapper in wrappers:
        if name.startswith(f"{wrapper}.base."):
            return wrapper + name.removeprefix(f"{wrapper}.base")
    return name


def _is_rounded(held: Tensor, stored: Tensor) -> bool:
    """Whether `held` is `stored`, or a copy that was cast to fewer bits in between."""
    wanted = stored.to(held.device, held.dtype)
    return torch.equal(held, wanted) or torch.allclose(held, wanted, rtol=ROUNDED, atol=1e-6)
