"""Words for layers become module names, architecture by architecture.

    find_targets(model, "query,value")   the linear layers that the words mean in this model
    head_names(model)                    the modules between the last hidden states and the logits

For an architecture that is not in the table, exact names and regular expressions work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftlab.errors import RequestError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGICAL = ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")


@dataclass(frozen=True)
class Architecture:
    """Where one family of transformers' models keeps its linear layers.

    Patterns match a module's full name below the backbone. `fused` has the layers that hold more
    than one projection, and what to say of them.
    """

    block: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    fused: tuple[tuple[str, str], ...] = ()

    def pattern(self, word: str) -> str:
        return rf"{self.block}\.{getattr(self, word.replace('-', '_'))}"


_BERT = Architecture(
    block=r"encoder\.layer\.\d+",
    query=r"attention\.self\.query",
    key=r"attention\.self\.key",
    value=r"attention\.self\.value",
    attention_output=r"attention\.output\.dense",
    ffn_in=r"intermediate\.dense",
    ffn_out=r"output\.dense",
)
_DEBERTA_V2 = Architecture(
    block=_BERT.block,
    query=r"attention\.self\.query_proj",
    key=r"attention\.self\.key_proj",
    value=r"attention\.self\.value_proj",
    attention_output=_BERT.attention_output,
    ffn_in=_BERT.ffn_in,
    ffn_out=_BERT.ffn_out,
)
ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": _DEBERTA_V2,  # also DeBERTa-v3, which transformers runs with the same classes
    "mpnet": Architecture(
        block=_BERT.block,
        query=r"attention\.attn\.q",
        key=r"attention\.attn\.k",
        value=r"attention\.attn\.v",
        attention_output=r"attention\.attn\.o",
        ffn_in=_BERT.ffn_in,
        ffn_out=_BERT.ffn_out,
    ),
    "distilbert": Architecture(
        block=r"transformer\.layer\.\d+",
        query=r"attention\.q_lin",
        key=r"attention\.k_lin",
        value=r"attention\.v_lin",
        attention_output=r"attention\.out_lin",
        ffn_in=r"ffn\.lin1",
        ffn_out=r"ffn\.lin2",
    ),
    "albert": Architecture(
        block=r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
        query=r"attention\.query",
        key=r"attention\.key",
        value=r"attention\.value",
        attention_output=r"attention\.dense",
        ffn_in=r"ffn",
        ffn_out=r"ffn_output",
    ),
    "modernbert": Architecture(
        block=r"layers\.\d+",
        query=r"attn\.Wqkv",
        key=r"attn\.Wqkv",
        value=r"attn\.Wqkv",
        attention_output=r"attn\.Wo",
        ffn_in=r"mlp\.Wi",
        ffn_out=r"mlp\.Wo",
        fused=(
            ("attn.Wqkv", "query, key and value are one fused layer, attn.Wqkv, adapted whole"),
            ("mlp.Wi", "the FFN's input and its gate are one fused layer, mlp.Wi, adapted whole"),
        ),
    ),
}


def head_names(model: PreTrainedModel) -> list[str]:
    """The modules of the head: all that lies outside the backbone, and a pooler inside it.

    Listed only if they hold parameters: tests name them for each architecture.
    """
    prefix = model.base_model_prefix
    backbone = model.get_submodule(prefix)
    names = [name for name, _ in model.named_children() if name != prefix]
    if getattr(backbone, "pooler", None) is not None:
        names.insert(0, f"{prefix}.pooler")
    return [name for name in names if any(True for _ in model.get_submodule(name).parameters())]


def head_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The head's parameters by full name, in the model's order."""
    heads = tuple(f"{name}." for name in head_names(model))
    return {name: p for name, p in model.named_parameters() if name.startswith(heads)}


@dataclass(frozen=True)
class Targets:
    """The layers that a request for targets means in one model."""

    names: list[str]
    patterns: list[str]
    notes: list[str]


def find_targets(model: PreTrainedModel, targets: str) -> Targets:
    """The linear layers that a comma-separated list of words, names or patterns means.

    A word is query, key, value, attention-output, ffn-in, ffn-out or all-linear (every linear
    layer of the backbone); else an item is a module's exact name or a regular expression that
    matches the whole of it. The head is never a target: it is trained anyway.

    Raises:
        RequestError: if an item matches no linear layer; it lists what the model has.
    """
    items = [item.strip() for item in targets.split(",") if item.strip()]
    if not items:
        raise RequestError(f"targets must name at least one layer, got {targets!r}")
    candidates = _linear_names(model)
    architecture = ARCHITECTURES.get(model.config.model_type)
    patterns = [_pattern(model, architecture, item) for item in items]
    found: set[str] = set()
    for item, pattern in zip(items, patterns, strict=True):
        matching = {name for name in candidates if _matches(pattern, name, item)}
        if not matching:
            raise _no_such_target(item, candidates, architecture is not None)
        found |= matching
    names = [name for name in candidates if name in found]
    fused = architecture.fused if architecture else ()
    notes = [note for layer, note in fused if any(name.endswith(layer) for name in names)]
    return Targets(names, list(dict.fromkeys(patterns)), notes)


def _linear_names(model: PreTrainedModel) -> list[str]:
    heads = tuple(f"{name}." for name in head_names(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(f"{model.base_model_prefix}.")
        and not f"{name}.".startswith(heads)  # ALBERT's pooler is itself a linear layer
    ]


def _pattern(model: PreTrainedModel, architecture: Architecture | None, item: str) -> str:
    prefix = re.escape(model.base_model_prefix)
    if item == "all-linear":
        return rf"{prefix}\..*"
    if architecture and item in LOGICAL:
        return rf"{prefix}\.{architecture.pattern(item)}"
    return item


def _matches(pattern: str, name: str, item: str) -> bool:
    try:
        return name == pattern or re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise RequestError(f"target {item!r} is not a regular expression: {error}") from error


def _no_such_target(item: str, candidates: list[str], has_words: bool) -> RequestError:
    words = [*(LOGICAL if has_words else ()), "all-linear"]
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in candidates))
    return unknown(
        "target",
        item,
        words,
        "Or an exact name, or a regular expression on one; this model's linear layers "
        f"(N a number): {', '.join(kinds)}.",
    )
