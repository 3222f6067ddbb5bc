"""Words for layers become module names, architecture by architecture.

    find_targets(model, "query,value")   the linear layers that the words mean in this model
    find_blocks(model)                   what stands last in each block before its residual adds
    head_names(model)                    the modules between the last hidden states and the logits

For an architecture that is not in the table, words mean what layers are commonly called (names.py);
exact names and regular expressions work on any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftlab.errors import RequestError, unknown
from peftlab.layers import is_linear
from peftlab.models.names import meaning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGICAL = ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")


@dataclass(frozen=True)
class Architecture:
    """Where one family of transformers' models keeps its linear layers.

    Patterns match a module's full name below the backbone. `attention_end` and `ffn_end` are the
    last modules before a block's two residual adds: the dropout where there is one, else the
    projection. `fused` has the layers that hold more than one projection, and what to say of them.
    """

    block: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_in: str
    ffn_out: str
    attention_end: str
    ffn_end: str
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
    attention_end=r"attention\.output\.dropout",
    ffn_end=r"output\.dropout",
)
_DEBERTA_V2 = Architecture(
    block=_BERT.block,
    query=r"attention\.self\.query_proj",
    key=r"attention\.self\.key_proj",
    value=r"attention\.self\.value_proj",
    attention_output=_BERT.attention_output,
    ffn_in=_BERT.ffn_in,
    ffn_out=_BERT.ffn_out,
    attention_end=_BERT.attention_end,
    ffn_end=_BERT.ffn_end,
)
_LLAMA = Architecture(
    block=r"layers\.\d+",
    query=r"self_attn\.q_proj",
    key=r"self_attn\.k_proj",
    value=r"self_attn\.v_proj",
    attention_output=r"self_attn\.o_proj",
    ffn_in=r"mlp\.(gate|up)_proj",
    ffn_out=r"mlp\.down_proj",
    attention_end=r"self_attn\.o_proj",
    ffn_end=r"mlp\.down_proj",
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
        attention_end=r"attention\.dropout",
        ffn_end=_BERT.ffn_end,
    ),
    "distilbert": Architecture(
        block=r"transformer\.layer\.\d+",
        query=r"attention\.q_lin",
        key=r"attention\.k_lin",
        value=r"attention\.v_lin",
        attention_output=r"attention\.out_lin",
        ffn_in=r"ffn\.lin1",
        ffn_out=r"ffn\.lin2",
        attention_end=r"attention\.out_lin",
        ffn_end=r"ffn\.dropout",
    ),
    "albert": Architecture(
        block=r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
        query=r"attention\.query",
        key=r"attention\.key",
        value=r"attention\.value",
        attention_output=r"attention\.dense",
        ffn_in=r"ffn",
        ffn_out=r"ffn_output",
        attention_end=r"attention\.output_dropout",
        ffn_end=r"ffn_output",
    ),
    "modernbert": Architecture(
        block=r"layers\.\d+",
        query=r"attn\.Wqkv",
        key=r"attn\.Wqkv",
        value=r"attn\.Wqkv",
        attention_output=r"attn\.Wo",
        ffn_in=r"mlp\.Wi",
        ffn_out=r"mlp\.Wo",
        attention_end=r"attn\.out_drop",
        ffn_end=r"mlp\.Wo",
        fused=(
            ("attn.Wqkv", "query, key and value are one fused layer, attn.Wqkv, adapted whole"),
            ("mlp.Wi", "the FFN's input and its gate are one fused layer, mlp.Wi, adapted whole"),
        ),
    ),
    "gpt2": Architecture(
        block=r"h\.\d+",
        query=r"attn\.c_attn",
        key=r"attn\.c_attn",
        value=r"attn\.c_attn",
        attention_output=r"attn\.c_proj",
        ffn_in=r"mlp\.c_fc",
        ffn_out=r"mlp\.c_proj",
        attention_end=r"attn\.resid_dropout",
        ffn_end=r"mlp\.dropout",
        fused=(
            ("attn.c_attn", "query, key and value are one fused layer, attn.c_attn, adapted whole"),
        ),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
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
    candidates = linear_names(model)
    patterns = [_pattern(model, item, candidates) for item in items]
    found: set[str] = set()
    for item, pattern in zip(items, patterns, strict=True):
        matching = {name for name in candidates if _matches(pattern, name, item)}
        if not matching:
            raise _no_such_target(model, item, candidates)
        found |= matching
    names = [name for name in candidates if name in found]
    architecture = ARCHITECTURES.get(model.config.model_type)
    fused = architecture.fused if architecture else ()
    notes = [note for layer, note in fused if any(name.endswith(layer) for name in names)]
    meanings = [] if architecture else [meaning(item, candidates) for item in items]
    said = dict.fromkeys(found.note for found in meanings if found)
    if said:
        by_name = f"{model.config.model_type} is in no table, its layers were found by name: "
        notes.append(by_name + ", ".join(said))
    return Targets(names, list(dict.fromkeys(patterns)), notes)


def find_blocks(model: PreTrainedModel, ffn_only: bool = False) -> Targets:
    """The last module before each residual add of every block, or before the FFN's alone.

    Raises:
        RequestError: for an architecture that is not in the table.
    """
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture is None:
        raise RequestError(
            f"where the blocks of {model.config.model_type!r} add their residuals is not known; "
            f"it is for {', '.join(sorted(ARCHITECTURES))}"
        )
    ends = ("ffn_end",) if ffn_only else ("attention_end", "ffn_end")
    prefix = re.escape(model.base_model_prefix)
    patterns = [rf"{prefix}\.{architecture.pattern(end)}" for end in ends]
    names = [
        name
        for name, _ in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
    return Targets(names, patterns, [])


def norms(model: PreTrainedModel) -> list[nn.Module]:
    """Every LayerNorm and RMSNorm of the backbone."""
    heads = tuple(f"{name}." for name in head_names(model))
    return [
        module
        for name, module in model.named_modules()
        if (isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"))
        and name.startswith(f"{model.base_model_prefix}.")
        and not f"{name}.".startswith(heads)
    ]


def linear_names(model: PreTrainedModel) -> list[str]:
    """The linear layers of the backbone, the head's left out."""
    heads = tuple(f"{name}." for name in head_names(model))
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and name.startswith(f"{model.base_model_prefix}.")
        and not f"{name}.".startswith(heads)  # ALBERT's pooler is itself a linear layer
    ]


def _pattern(model: PreTrainedModel, item: str, candidates: list[str]) -> str:
    prefix = re.escape(model.base_model_prefix)
    if item == "all-linear":
        return rf"{prefix}\..*"
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture and item in LOGICAL:
        return rf"{prefix}\.{architecture.pattern(item)}"
    found = None if architecture else meaning(item, candidates)
    return found.pattern if found else item


def _matches(pattern: str, name: str, item: str) -> bool:
    try:
        return name == pattern or re.fullmatch(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"target {item!r} is not a regular expression: {error}") from error


def _no_such_target(model: PreTrainedModel, item: str, candidates: list[str]) -> RequestError:
    known = model.config.model_type in ARCHITECTURES
    words = [word for word in LOGICAL if known or meaning(word, candidates)]
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in candidates))
    return unknown(
        "target",
        item,
        [*words, "all-linear"],
        "Or an exact name, or a regular expression on one; this model's linear layers "
        f"(N a number): {', '.join(kinds)}.",
    )
