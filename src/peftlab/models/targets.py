"""Words for layers become module names, architecture by architecture.

    find_targets(model, "query,value")   the linear layers that the words mean in this model
    find_blocks(model)                   what stands last in each block before its residual adds

Where no row of the table names layers, words mean what layers are commonly called (names.py);
exact names and regular expressions work on any.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftlab.errors import RequestError, unknown
from peftlab.layers import is_linear
from peftlab.models.architectures import ARCHITECTURES, architecture_of, backbone_modules
from peftlab.models.names import meaning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGICAL = ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")


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
    layers = architecture_of(model).layers
    fused = layers.fused if layers else ()
    notes = [note for layer, note in fused if any(name.endswith(layer) for name in names)]
    meanings = [] if layers else [meaning(item, candidates) for item in items]
    said = dict.fromkeys(found.note for found in meanings if found)
    if said:
        by_name = f"{model.config.model_type} is in no table, its layers were found by name: "
        notes.append(by_name + ", ".join(said))
    return Targets(names, list(dict.fromkeys(patterns)), notes)


def find_blocks(model: PreTrainedModel, ffn_only: bool = False) -> Targets:
    """The last module before each residual add of every block, or before the FFN's alone.

    Raises:
        RequestError: for an architecture whose layers are not in the table.
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
    return Targets(names, patterns, [])


def norms(model: PreTrainedModel) -> list[nn.Module]:
    """Every LayerNorm and RMSNorm of the backbone."""
    return [
        module
        for module in backbone_modules(model).values()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    ]


def linear_names(model: PreTrainedModel) -> list[str]:
    """The linear layers of the backbone, the head's left out."""
    return [name for name, module in backbone_modules(model).items() if is_linear(module)]


def _pattern(model: PreTrainedModel, item: str, candidates: list[str]) -> str:
    prefix = re.escape(model.base_model_prefix)
    if item == "all-linear":
        return rf"{prefix}\..*"
    layers = architecture_of(model).layers
    if layers and item in LOGICAL:
        return rf"{prefix}\.{layers.pattern(item)}"
    found = None if layers else meaning(item, candidates)
    return found.pattern if found else item


def _matches(pattern: str, name: str, item: str) -> bool:
    try:
        return name == pattern or re.fullmatch(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"target {item!r} is not a regular expression: {error}") from error


def _no_such_target(model: PreTrainedModel, item: str, candidates: list[str]) -> RequestError:
    layers = architecture_of(model).layers
    words = [word for word in LOGICAL if layers or meaning(word, candidates)]
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in candidates))
    return unknown(
        "target",
        item,
        [*words, "all-linear"],
        "Or an exact name, or a regular expression on one; this model's linear layers "
        f"(N a number): {', '.join(kinds)}.",
    )
