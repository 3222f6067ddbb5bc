"""A model's tokenizer, and how long a text may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from peftlab.errors import RequestError
from peftlab.models.architectures import architecture_of
from peftlab.models.find import read_config
from peftlab.models.padding import name_padding
from peftlab.models.quiet import quiet

SHORTEST = 4  # tokens of a text: one, and those that a tokenizer adds


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's or an adapter's folder, with a token to pad with.

    Raises:
        RequestError: if it can't be read.
    """
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # the libraries raise whatever they meet in a damaged file
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"the tokenizer of {folder.name} can't be read: {reason}") from error
    if (folder / "config.json").is_file():
        name_padding(tokenizer, read_config(folder))
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
    limit = int(tokenizer.model_max_length)
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return limit
    # RoBERTa's family counts positions from padding_idx + 1
    skipped = (config.pad_token_id or 0) + 1 if architecture_of(config).counts_from_padding else 0
    return min(limit, positions - skipped)
