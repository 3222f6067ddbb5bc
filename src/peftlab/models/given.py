"""What a caller hands over as a model or a tokenizer, checked before anything is done with it."""

from __future__ import annotations

import reprlib
from typing import Any

from torch import nn

from peftlab.errors import RequestError

LOADED = "give what peftlab.load_model or transformers' from_pretrained returned, got"


def check_model(model: Any) -> None:
    """Raise `RequestError` unless `model` is a model of transformers' with outputs to train."""
    if isinstance(model, nn.Module) and hasattr(model, "peft_config"):
        raise RequestError(
            "model is HF PEFT's own wrapper; give the plain model in it: model.unload()"
        )
    prefix = getattr(model, "base_model_prefix", None)
    if not (isinstance(model, nn.Module) and isinstance(prefix, str)):
        raise RequestError(f"model must be a model of transformers': {LOADED} {_shown(model)}")
    if not hasattr(model, prefix) or not hasattr(model, "config"):
        raise RequestError(
            f"model must have a head for classification, and {type(model).__name__} has none; "
            "load it with AutoModelForSequenceClassification"
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `RequestError` unless `tokenizer` is a tokenizer of transformers'."""
    if not (callable(tokenizer) and hasattr(tokenizer, "model_max_length")):
        raise RequestError(
            f"tokenizer must be the model's own, of transformers': {LOADED} {_shown(tokenizer)}"
        )


def _shown(given: object) -> str:
    return given.__name__ if isinstance(given, type) else reprlib.repr(given)
