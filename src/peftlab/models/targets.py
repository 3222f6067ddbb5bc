"""Find the modules that words for layers mean, architecture by architecture.

    find_targets(model, "query,value")   the linear layers that the words mean in this model
    find_blocks(model)                   the last modules before the residual adds of each block

In an architecture that no row of the table describes, words mean layers by their common names
(`meaning`): query, key, value and attention-output lie inside a module called attention, or attn;
ffn-in and ffn-out lie outside. Where query, key and value are one fused layer, each of these words
means it. Exact names and regular expressions work in any architecture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from peftlab.errors import RequestError, unknown
from peftlab.layers import PreTrainedModel, features, is_linear
from peftlab.models.architectures import (
    ARCHITECTURES,
    NOT_OF_TEXT,
    architecture_of,
    backbone_modules,
    unread_modules,
)

COMMON = {
    "query": ("q", "q_proj", "q_lin", "q_head", "query", "query_proj", "Wq"),
    "key": ("k", "k_proj", "k_lin", "k_head", "key", "key_proj", "Wk"),
    "value": ("v", "v_proj", "v_lin", "v_head", "value", "value_proj", "Wv"),
    "attention-output": (
        *("o", "o_proj", "out_proj", "out_lin", "post_proj", "c_proj", "Wo", "dense"),
    ),
    "ffn-in": (
        *("wi", "wi_0", "wi_1", "fc1", "fc_in", "c_fc", "lin1", "linear_1", "up_proj", "gate_proj"),
        *("gate_up_proj", "dense_h_to_4h", "intermediate.dense", "Wi"),
    ),
    "ffn-out": (
        *("wo", "fc2", "fc_out", "c_proj", "lin2", "linear_2", "down_proj", "dense_4h_to_h"),
        *("output.dense", "Wo"),
    ),
}
LOGICAL = tuple(COMMON)
FUSED = ("query_key_value", "qkv_proj", "qkv", "Wqkv", "c_attn", "in_proj")
FUSED_WORDS = ("query", "key", "value")
# layers of one parent that get the same input
SIBLINGS = (
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
)
CROSSING = ("EncDecAttention", "encoder_attn")  # T5's and BART's attention between two texts


@dataclass(frozen=True)
class Targets:
    """The layers that a request means in one model, its patterns, and notes for the user."""

    names: list[str]
    patterns: list[str]
    notes: list[str]


def find_targets(model: PreTrainedModel, targets: str) -> Targets:
    """The linear layers that a comma-separated list of words, names or patterns means.

    A word is query, key, value, attention-output, ffn-in, ffn-out or all-linear (every linear
    layer of the backbone with more than one output); any other item is a module's exact name or a
    regular expression that matches the whole name. The head is never a target: it is trained
    anyway. Nor is a layer that no text runs through, such as one that sees.

    Raises:
        RequestError: if an item matches no linear layer; it lists those of the model.
    """
    items = [item.strip() for item in targets.split(",") if item.strip()]
    if not items:
        raise RequestError(f"targets must name at least one layer, got {targets!r}")
    candidates = [name for name in linear_names(model) if not re.fullmatch(NOT_OF_TEXT, name)]
    patterns = [_pattern(model, item, candidates) for item in items]
    matches: set[str] = set()
    for item, pattern in zip(items, patterns, strict=True):
        item_matches = {name for name in candidates if _matches(pattern, name, item)}
        if item == "all-linear":
            item_matches -= {*unread_modules(model), *_narrow_names(model)}
        if not item_matches:
            raise _no_such_target(model, item, candidates)
        matches |= item_matches
    names = [name for name in candidates if name in matches]
    layers = architecture_of(model).layers
    fused = layers.fused if layers else ()
    notes = [note for layer, note in fused if any(name.endswith(layer) for name in names)]
    meanings = [] if layers else [meaning(item, candidates) for item in items]
    found_by_name = dict.fromkeys(entry.note for entry in meanings if entry)
    if found_by_name:
        note = f"{model.config.model_type} is in no table, its layers were found by name: "
        notes.append(note + ", ".join(found_by_name))
    if n_weights := _n_expert_weights(model):
        notes.append(
            f"{n_weights:,} weights of experts are no linear layers: they are not adapted, and "
            "held in 16 or 32 bits"
        )
    return Targets(names, list(dict.fromkeys(patterns)), notes)


def find_blocks(model: PreTrainedModel, ffn_only: bool = False) -> Targets:
    """The last module before each residual add of every block, or before the FFN's alone.

    Raises:
        RequestError: for an architecture whose layers are not in the table, or a model that does
            not have them where the table says.
    """
    layers = architecture_of(model).layers
    if layers is None:
        raise RequestError(
            f"where the blocks of {model.config.model_type!r} add their residuals is not known; "
            f"it is for {', '.join(sorted(ARCHITECTURES))}"
        )
    ends = ("ffn_end",) if ffn_only else ("attention_end", "ffn_end")
    prefix = re.escape(model.base_model_prefix)
    patterns = [rf"{prefix}\.{layers.pattern(end)}" for end in ends]
    names = [
        name
        for name, _ in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
    if not names:
        raise RequestError(
            f"this model has no blocks of {model.config.model_type!r} where transformers has them: "
            f"{', '.join(patterns)} match no module; choose a method that takes targets, such as "
            "lora"
        )
    return Targets(names, patterns, [])


def norms(model: PreTrainedModel) -> list[nn.Module]:
    """Every LayerNorm and RMSNorm of the backbone."""
    return [
        module
        for module in backbone_modules(model).values()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    ]


def linear_names(model: PreTrainedModel) -> list[str]:
    """The names of the backbone's linear layers, without those of the head."""
    return [name for name, module in backbone_modules(model).items() if is_linear(module)]


def _narrow_names(model: PreTrainedModel) -> list[str]:
    """The linear layers of one output, such as a gate of a shared expert: of rank 1 as they are."""
    modules = backbone_modules(model)
    return [name for name in linear_names(model) if min(features(modules[name])) == 1]


def _n_expert_weights(model: PreTrainedModel) -> int:
    """The weights that lie in one tensor for all experts of a block: (experts, out, in)."""
    return sum(
        parameter.numel()
        for name, module in backbone_modules(model).items()
        if not re.fullmatch(NOT_OF_TEXT, name)
        and not type(module).__module__.startswith("torch.nn")
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 3
    )


def _pattern(model: PreTrainedModel, item: str, candidates: list[str]) -> str:
    prefix = re.escape(model.base_model_prefix)
    if item == "all-linear":
        return rf"{prefix}\..*"
    layers = architecture_of(model).layers
    if layers and item in LOGICAL:
        return rf"{prefix}\.{layers.pattern(item)}"
    by_name = None if layers else meaning(item, candidates)
    return by_name.pattern if by_name else item


def _matches(pattern: str, name: str, item: str) -> bool:
    try:
        return name == pattern or re.fullmatch(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"target {item!r} is not a regular expression: {error}") from error


def _no_such_target(model: PreTrainedModel, item: str, candidates: list[str]) -> RequestError:
    if not candidates:
        return RequestError(
            f"this backbone ({model.config.model_type}) has no linear layer to adapt; methods "
            "without targets, such as full and head, train it"
        )
    layers = architecture_of(model).layers
    words = [word for word in LOGICAL if layers or meaning(word, candidates)]
    kinds = list(dict.fromkeys(map(kind_of, candidates)))
    return unknown(
        "target",
        item,
        [*words, "all-linear"],
        "Or an exact name, or a regular expression on one; this model's linear layers "
        f"(N a number): {', '.join(kinds)}.",
    )


class Meaning(NamedTuple):
    """The layers that a word means in one model: a pattern of full names, and a note on them."""

    pattern: str
    note: str


def meaning(word: str, names: Sequence[str]) -> Meaning | None:
    r"""The layers among `names`, full names of linear layers, that `word` commonly means, if any.

    >>> meaning("query", ["h.0.attn.q_proj", "h.0.mlp.fc1", "h.1.attn.q_proj"])
    Meaning(pattern='h\\.\\d+\\.attn\\.q_proj', note='query is q_proj')
    >>> meaning("query", ["h.0.mlp.fc1"])
    """
    if word not in COMMON:
        return None
    in_attention = not word.startswith("ffn")
    candidates = [name for name in names if _is_in_attention(name) == in_attention]
    matches, endings = _ending_in(candidates, COMMON[word])
    if not matches and word in FUSED_WORDS:
        matches, endings = _ending_in(candidates, FUSED)
    if not matches:
        return None
    patterns = dict.fromkeys(_any_block(name) for name in matches)
    note = f"{word} is {' and '.join(endings)}"
    if endings[0] in FUSED:
        note += " (query, key and value in one fused layer, adapted whole)"
    return Meaning("|".join(patterns), note)


def _ending_in(names: Sequence[str], endings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of `names` that end in one of `endings`, and the endings that occur."""
    pairs = [(name, end) for name in names for end in endings if f".{name}".endswith(f".{end}")]
    return [name for name, _ in pairs], list(dict.fromkeys(end for _, end in pairs))


def _is_in_attention(name: str) -> bool:
    parent = name.rpartition(".")[0].lower()
    return "attention" in parent or "attn" in parent


def kind_of(name: str) -> str:
    """A layer's name without the number of its block: the same for that layer in every block.

    >>> kind_of("encoder.blocks.0.1.attention.q_head")
    'encoder.blocks.N.N.attention.q_head'
    """
    return re.sub(r"\.\d+(?=\.)", ".N", name)


def _any_block(name: str) -> str:
    """A pattern of the layer's name in any block."""
    return re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))
