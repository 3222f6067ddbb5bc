"""An example's logits must not depend on what it is batched with.

Padding is on the right, and attention leaves it out. What else could let it through:

- A decoder's head reads the last token that is not the config's padding, so the config and the
  tokenizer must mean one token. Then a text that holds that token itself is read at the same place
  in every batch.
- Some architectures mix the padding in. They are refused by name, and whatever is in no table is
  tried before it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftlab.errors import RequestError
from peftlab.models.targets import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# their positions count from the config's padding, so it is a part of the base
COUNT_FROM_PADDING = {
    *("roberta", "xlm-roberta", "mpnet", "camembert", "data2vec-text", "esm", "ibert", "lilt"),
    *("layoutlmv3", "longformer", "luke", "markuplm", "roberta-prelayernorm", "xlm-roberta-xl"),
    "xmod",
}
APPROXIMATE = "its attention is approximated over all positions, padding among them"
UNSUITED = {
    "xlnet": "it must be padded from the left, and padding is on the right here",
    "convbert": "its convolutions take padding for words",
    "canine": "its convolutions take padding for characters",
    "mobilebert": "it joins each token with its neighbours, padding among them",
    "fnet": "it has no attention that could leave padding out",
    "nystromformer": APPROXIMATE,
    "yoso": APPROXIMATE,
}
TEXTS = ("one", "one two three four five six seven eight nine ten eleven twelve")
# of the largest logit: how far rounding may move one
EXACT, ROUNDED = 1e-4, 0.1


def check_suited(name: str, model_type: str) -> None:
    """Raise `RequestError` for an architecture that is known to read padding."""
    if model_type in UNSUITED:
        raise RequestError(
            f"model {name} ({model_type}) can't be trained in batches: {UNSUITED[model_type]}, so "
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


def agree_on_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let config and tokenizer mean one padding token, the tokenizer's."""
    name_padding(tokenizer, model.config)
    if model.config.model_type not in COUNT_FROM_PADDING:
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id


def check_batches(model: PreTrainedModel, tokenizer: Any) -> None:
    """Try whether a text is answered alike alone and beside a longer one; needs weights.

    An architecture of the table is known to do so (tests/models/test_padding.py).

    Raises:
        RequestError: if it is not, or the model can't answer a batch at all.
    """
    kind = model.config.model_type
    name = model.name_or_path or "of no name"
    check_suited(name, kind)
    if kind in ARCHITECTURES:
        return
    agree_on_padding(model, tokenizer)
    try:
        alone = torch.cat([_logits(model, tokenizer, [text]) for text in TEXTS])
        moved = (_logits(model, tokenizer, list(TEXTS)) - alone).abs().max()
    except Exception as error:  # whatever the code of an architecture meets
        reason = " ".join(str(error).split())[:300]
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
def _logits(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """(texts, num_labels), without dropout."""
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
