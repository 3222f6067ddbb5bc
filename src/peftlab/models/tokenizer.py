"""A model's tokenizer: how long a text may be, and that padding changes no answer.

An example's logits must not depend on what it is batched with. Padding is on the right, and
attention leaves it out. Padding could still change an answer in two ways:

- A decoder's head reads the last token that is not the config's padding token, so the config and
  the tokenizer must have the same one. Then a text that holds that token itself is read at the same
  position in every batch.
- Some architectures mix the padding in. They are refused by their row (architectures.py), and where
  no row names the layers the model is tried before it is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from peftlab.errors import RequestError, one_line
from peftlab.layers import PreTrainedModel
from peftlab.models.architectures import architecture_of, is_as_written
from peftlab.models.find import quiet, read_config
from peftlab.models.state import check_tokenizer

MAX_TOKENS = 2**20  # where nothing bounds them: a tokenizer without a limit says 10^30
MIN_TOKENS = 4  # of a text: one, and those that a tokenizer adds
PROBE_TEXTS = ("one", "one two three four five six seven eight nine ten eleven twelve")
# how far rounding may move a logit, as a fraction of the largest: in fp32, and in 16 bits
TOLERANCE, TOLERANCE_16_BITS = 1e-4, 0.1


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's or an adapter's folder, with a token to pad with.

    Raises:
        RequestError: if it can't be read, or is written in Python alone.
    """
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # the libraries may raise anything for a damaged file
        reason = one_line(error)
        raise RequestError(f"the tokenizer of {folder.name} can't be read: {reason}") from error
    check_tokenizer(tokenizer)
    if (folder / "config.json").is_file():
        config = read_config(folder)
        set_padding_token(tokenizer, config)
        drop_token_types(tokenizer, config)
    return tokenizer


def longest_input(folder: Path) -> int:
    """The largest number of tokens that the model takes.

    Raises:
        RequestError: if the folder's tokenizer can't be read, or takes no text.
    """
    tokenizer, config = load_tokenizer(folder), read_config(folder)
    is_number = isinstance(tokenizer.model_max_length, int | float)
    if is_number and token_limit(tokenizer, config) >= MIN_TOKENS:
        return token_limit(tokenizer, config)
    positions = getattr(config, "max_position_embeddings", None)
    raise RequestError(
        f"model {folder.name} takes no text: its tokenizer's model_max_length is "
        f"{tokenizer.model_max_length!r} and it has {positions} positions; at least {MIN_TOKENS} "
        "are needed"
    )


def token_limit(tokenizer: Any, config: Any) -> int:
    """The largest number of tokens that both the tokenizer and the model's positions allow."""
    limit = int(min(tokenizer.model_max_length, MAX_TOKENS))  # some have infinity
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions in (None, -1):  # -1 is XLNet's, which has no limit
        return limit
    # RoBERTa's family counts positions from padding_idx + 1
    skipped = (config.pad_token_id or 0) + 1 if architecture_of(config).counts_from_padding else 0
    return min(limit, positions - skipped)


def check_suited(name: str, config: Any) -> None:
    """Raise `RequestError` if a config or `Source` is of an architecture known to read padding."""
    reason = architecture_of(config).unsuited
    if reason:
        raise RequestError(
            f"model {name} ({config.model_type}) can't be trained in batches: {reason}, so "
            "an example's answer would depend on what it is batched with; choose another model"
        )


def set_padding_token(tokenizer: Any, config: Any) -> None:
    """Let `tokenizer` pad with a token of the model: its own padding token, else its end of text.

    Raises:
        RequestError: if it has neither, nor the config a padding token that the tokenizer knows.
    """
    text_config = config.get_text_config()
    size = getattr(text_config, "vocab_size", None) or len(tokenizer)
    config_index = getattr(text_config, "pad_token_id", None)
    for index in (tokenizer.pad_token_id, tokenizer.eos_token_id, config_index):
        if index is None or not 0 <= index < size:
            continue
        if index != tokenizer.pad_token_id:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(index)
        if tokenizer.pad_token is not None:
            return
    raise RequestError(
        f"the tokenizer has no token to pad with among the model's {size}: give it one with "
        "tokenizer.pad_token = ..., and save it again"
    )


def drop_token_types(tokenizer: Any, config: Any) -> None:
    """Let `tokenizer` give no token types to a model that has only one, since a pair has two.

    Klue's RoBERTa is such a model with BERT's tokenizer.
    """
    if getattr(config, "type_vocab_size", None) == 1:
        names = tokenizer.model_input_names
        tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]


def agree_on_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let both use the tokenizer's padding token, and only token types that the model has."""
    set_padding_token(tokenizer, model.config)
    drop_token_types(tokenizer, model.config)
    if not architecture_of(model).counts_from_padding:
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer` to `folder` as it was loaded: not cutting or padding by default.

    A call that cuts or pads leaves these settings in the tokenizer, and tokenizer.json would keep
    them.
    """
    tokenizer.init_kwargs.setdefault("truncation_side", tokenizer.truncation_side)  # else not saved
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        tokenizer.save_pretrained(folder)
    finally:
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def check_batches(model: PreTrainedModel, tokenizer: Any) -> None:
    """Try whether the model answers a text alike alone and beside a longer one; needs weights.

    An architecture of the table is known to do so (tests/models/test_tokenizer.py), if the model
    has no code of the caller's own.

    Raises:
        RequestError: if it does not, or can't answer a batch at all.
    """
    model_type = model.config.model_type
    name = model.name_or_path or "of no name"
    check_suited(name, model.config)
    if architecture_of(model).layers and is_as_written(model):
        return
    agree_on_padding(model, tokenizer)
    try:
        alone = torch.cat([compute_logits(model, tokenizer, [text]) for text in PROBE_TEXTS])
        together = compute_logits(model, tokenizer, list(PROBE_TEXTS))
        difference = (together - alone).abs().max()
    except Exception as error:  # the code of an architecture may raise anything
        reason = one_line(error)
        raise RequestError(
            f"model {name} ({model_type}) can't answer a batch of two texts: {reason}"
        ) from error
    tolerance = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_16_BITS
    if not difference <= tolerance * alone.abs().max():
        raise RequestError(
            f"model {name} ({model_type}) answers a text otherwise when it is batched with "
            f"a longer one (logits move by {difference:.2g}): it reads the padding, so it can't be "
            "trained in batches; choose another model"
        )


@torch.no_grad()
def compute_logits(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The logits (texts, num_labels) in fp32, without dropout."""
    training = model.training
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    try:
        logits: torch.Tensor = model.eval()(**inputs.to(model.device)).logits
        return logits.float()
    finally:
        model.train(training)
