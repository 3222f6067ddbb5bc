"""What a word means in an architecture that is in no table: layers by the names they commonly have.

query, key, value and attention-output lie inside a module called attention, or attn; ffn-in and
ffn-out lie outside. Where query, key and value are one fused layer, each of the words means it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

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
FUSED = ("query_key_value", "qkv_proj", "qkv", "Wqkv", "c_attn", "in_proj")
OF_FUSED = ("query", "key", "value")
# layers of one parent that are given one input
SIBLINGS = (
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
)


class Meaning(NamedTuple):
    """What a word means in one model: a pattern of full names, and what to say of it."""

    pattern: str
    note: str


def meaning(word: str, names: Sequence[str]) -> Meaning | None:
    r"""The layers among `names`, full names of linear layers, that `word` commonly means.

    >>> meaning("query", ["h.0.attn.q_proj", "h.0.mlp.fc1", "h.1.attn.q_proj"])
    Meaning(pattern='h\\.\\d+\\.attn\\.q_proj', note='query is q_proj')
    >>> meaning("query", ["h.0.mlp.fc1"])
    """
    if word not in COMMON:
        return None
    inside = not word.startswith("ffn")
    places = [name for name in names if _in_attention(name) == inside]
    found, own = _called(places, COMMON[word])
    if not found and word in OF_FUSED:
        found, own = _called(places, FUSED)
    if not found:
        return None
    patterns = dict.fromkeys(_any_block(name) for name in found)
    fused = " (query, key and value in one fused layer, adapted whole)" if own[0] in FUSED else ""
    return Meaning("|".join(patterns), f"{word} is {' and '.join(own)}{fused}")


def _called(names: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of `names` that end in one of `own`, and in which."""
    pairs = [(name, one) for name in names for one in own if f".{name}".endswith(f".{one}")]
    return [name for name, _ in pairs], list(dict.fromkeys(one for _, one in pairs))


def _in_attention(name: str) -> bool:
    parent = name.rpartition(".")[0].lower()
    return "attention" in parent or "attn" in parent


def _any_block(name: str) -> str:
    return re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))
