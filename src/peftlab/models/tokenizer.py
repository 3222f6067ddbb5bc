"""A model's tokenizer: how long a text may be, and that padding changes no answer.

An example's logits must not depend on what it is batched with. Padding is on the right, and
attention leaves it out. What else could let it through:

- A decoder's head reads the last token that is not the config's padding, so the config and the
  tokenizer must mean one token. Then a text that holds that token itself is read at the same place
  in every batch.
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

MOST_TOKENS = 2**20  # where nothing bounds them: a tokenizer without a limit says 10^30
SHORTEST = 4  # tokens of a text: one, and those that a tokenizer adds
TEXTS = ("one", "one two three four five six seven eight nine ten eleven twelve")
# of the largest logit: how far rounding may move one
EXACT, ROUNDED = 1e-4, 0.1


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
    except Exception as error:  # the libraries raise whatever they meet in a damaged file
        reason = one_line(error)
        raise RequestError(f"the tokenizer of {folder.name} can't be read: {reason}") from error
    check_tokenizer(tokenizer)
    if (folder / "config.json").is_file():
        config = read_config(folder)
        name_padding(tokenizer, config)
        drop_types(tokenizer, config)
    return tokenizer


def longest_input(folder: Path) -> int:
    """The most tokens that the model takes.

    Raises:
        RequestError: if the folder's tokenizer can't be read, or takes no text.
    """
    tokenizer, config = load_tokenizer(folder), read_config(folder)
    is_number = isinstance(tokenizer.model_max_length, int | float)
    if is_number and token_limit(tokenizer, config) >= SHORTEST:
        return token_limit(tokenizer, config)
    positions = getattr(config, "max_position_embeddings", None)
    raise RequestError(
        f"model {folder.name} takes no text: its tokenizer's model_max_length is "
        f"{tokenizer.model_max_length!r} and it has {positions} positions; at least {SHORTEST} are "
        "needed"
    )


def token_limit(tokenizer: Any, config: Any) -> int:
    """The most tokens that both tokenizer and positions allow."""
    limit = min(int(tokenizer.model_max_length), MOST_TOKENS)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions in (None, -1):  # -1 is XLNet's: it counts none
        return limit
    # RoBERTa's family counts positions from padding_idx + 1
    skipped = (config.pad_token_id or 0) + 1 if architecture_of(config).counts_from_padding else 0
    return min(limit, positions - skipped)


def check_suited(name: str, known: Any) -> None:
    """Raise `RequestError` for a config or a `Source` that is known to read padding."""
    reason = architecture_of(known).unsuited
    if reason:
        raise RequestError(
            f"model {name} ({known.model_type}) can't be trained in batches: {reason}, so "
            "an example's answer would depend on what it is batched with; choose another model"
        )


def name_padding(tokenizer: Any, config: Any) -> None:
    """See that `tokenizer` pads with a token that the model has: its own, else the end of a text.

    Raises:
        RequestError: if it has neither, nor the config a padding token that it knows.
    """
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None) or len(tokenizer)
    for index in (tokenizer.pad_token_id, tokenizer.eos_token_id, _padding_of(text)):
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


def drop_types(tokenizer: Any, config: Any) -> None:
    """See that `tokenizer` gives no types of tokens to a model that has one: a pair has two.

    Klue's RoBERTa is such a model with BERT's tokenizer.
    """
    if getattr(config, "type_vocab_size", None) == 1:
        names = tokenizer.model_input_names
        tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]


def agree_on_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let both mean one padding token, the tokenizer's, and types of tokens that the model has."""
    name_padding(tokenizer, model.config)
    drop_types(tokenizer, model.config)
    if not architecture_of(model).counts_from_padding:
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer` to `folder`, cutting and padding nothing by itself, as it was loaded.

    A call that cuts or pads leaves that behind in it, and tokenizer.json would hold it.
    """
    tokenizer.init_kwargs.setdefault("truncation_side", tokenizer.truncation_side)  # else not saved
    backend = tokenizer.backend_tokenizer
    cut, padded = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        tokenizer.save_pretrained(folder)
    finally:
        if cut:
            backend.enable_truncation(**cut)
        if padded:
            backend.enable_padding(**padded)


def check_batches(model: PreTrainedModel, tokenizer: Any) -> None:
    """Try whether a text is answered alike alone and beside a longer one; needs weights.

    An architecture of the table is known to do so (tests/models/test_tokenizer.py), where the
    model has no code of the caller's own.

    Raises:
        RequestError: if it is not, or the model can't answer a batch at all.
    """
    kind = model.config.model_type
    name = model.name_or_path or "of no name"
    check_suited(name, model.config)
    if architecture_of(model).layers and is_as_written(model):
        return
    agree_on_padding(model, tokenizer)
    try:
        alone = torch.cat([answered(model, tokenizer, [text]) for text in TEXTS])
        moved = (answered(model, tokenizer, list(TEXTS)) - alone).abs().max()
    except Exception as error:  # whatever the code of an architecture meets
        reason = one_line(error)
        raise RequestError(
            f"model {name} ({kind}) can't answer a batch of two texts: {reason}"
        ) from error
    tolerance = EXACT if model.dtype == torch.float32 else ROUNDED
    if not moved <= tolerance * alone.abs().max():
        raise RequestError(
            f"model {name} ({kind}) answers a text otherwise when it is batched with "
            f"a longer one (logits move by {moved:.2g}): it reads the padding, so it can't be "
            "trained in batches; choose another model"
        )


@torch.no_grad()
def answered(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The logits (texts, num_labels), without dropout."""
    training = model.training
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    try:
        logits: torch.Tensor = model.eval()(**inputs.to(model.device)).logits
        return logits.float()
    finally:
        model.train(training)


def _padding_of(config: Any) -> int | None:
    index: int | None = getattr(config, "pad_token_id", None)
    return index
