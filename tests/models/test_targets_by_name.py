"""Words on architectures that are in no table: by common names, or a refusal that says what is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma3Config,
    PreTrainedModel,
)

from peftlab.engine import fast
from peftlab.errors import RequestError
from peftlab.layers import Wrapper
from peftlab.methods import METHODS, inject, make
from peftlab.models import ARCHITECTURES, LOGICAL, find_targets, linear_names
from peftlab.models.targets import meaning

COMMON = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "t5": {
        "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    },
    "falcon": {"alibi": False},
}  # fmt: skip
# the last names of the layers that each word means, in LOGICAL's order; how many there are of them
EXPECTED = {
    "gemma2": ("q_proj k_proj v_proj o_proj gate_proj|up_proj down_proj", "2 2 2 2 4 2"),
    "t5": ("q k v o wi wo", "6 6 6 6 4 4"),
    "bart": ("q_proj k_proj v_proj out_proj fc1 fc2", "4 4 4 4 3 3"),
    "gpt_neox": (
        "query_key_value query_key_value query_key_value attention.dense dense_h_to_4h "
        "dense_4h_to_h",
        "2 2 2 2 2 2",
    ),
    "falcon": (
        "query_key_value query_key_value query_key_value self_attention.dense dense_h_to_4h "
        "dense_4h_to_h",
        "2 2 2 2 2 2",
    ),
    "camembert": (
        "self.query self.key self.value attention.output.dense intermediate.dense output.dense",
        "2 2 2 2 2 2",
    ),
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **COMMON | EXTRA.get(kind, {}))
    return AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 2], [10, 11, 12, 2, 0, 0]])
    result: torch.Tensor = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
    return result


@pytest.mark.parametrize("kind", EXPECTED)
def test_words_mean_layers_by_their_common_names(kind: str) -> None:
    assert kind not in ARCHITECTURES
    model = build(kind)
    for word, own, count in zip(LOGICAL, *map(str.split, EXPECTED[kind]), strict=True):
        found = find_targets(model, word)
        assert len(found.names) == int(count), (word, found.names)
        assert all(re.search(rf"\.({own})$", name) for name in found.names), (word, found.names)
        (note,) = found.notes
        assert note.startswith(f"{kind} is in no table, its layers were found by name: {word} is ")
        assert [name for name in linear_names(model) if re.fullmatch(found.patterns[0], name)] == (
            found.names
        )
    outside = find_targets(model, "ffn-in,ffn-out").names
    assert not {*outside} & {*find_targets(model, ",".join(LOGICAL[:4])).names}


@pytest.mark.parametrize("kind", ["gemma2", "t5", "gpt_neox"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"qlora", "houlsby"}])
def test_every_method_trains_at_its_defaults(name: str, kind: str) -> None:
    method = make(name)
    model = build(kind)
    if name == "bitfit" and kind in {"gemma2", "t5"}:
        with pytest.raises(RequestError, match="has none; choose another"):
            inject(model, method)
        return
    inject(model, method)
    nn.functional.cross_entropy(logits(model), torch.tensor([0, 1])).backward()
    wrapped = [layer for layer in model.modules() if isinstance(layer, Wrapper)]
    assert wrapped or name in {"full", "head", "bitfit"}
    for layer in wrapped:
        trained = [p for p in layer.parameters() if p.requires_grad]
        assert trained
        assert any(p.grad is not None and p.grad.any() for p in trained)


@pytest.mark.parametrize("kind", ["gemma2", "t5", "bart", "gpt_neox"])
def test_the_engine_computes_the_same(kind: str) -> None:
    """Attention across two sequences gives query and key inputs of their own."""
    model = inject(build(kind, torch.bfloat16), make("lora")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        plain = logits(model)
        with fast(model):
            quick = logits(model)
    assert (quick - plain).norm() <= 0.08 * plain.norm()


def test_a_word_that_nothing_is_called_is_refused_with_those_that_there_are() -> None:
    model = build("fnet")
    with pytest.raises(RequestError) as refused:
        find_targets(model, "query,value")
    said = "unknown target 'query'; Allowed: ffn-in, ffn-out, all-linear. Or an exact name"
    assert str(refused.value).startswith(said)
    assert "fnet.encoder.layer.N.intermediate.dense" in str(refused.value)


def test_what_sees_is_adapted_by_no_method_that_reads_text() -> None:
    """It has no gradient: a training of Gemma 3 ended in a refusal."""
    inside = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    text = inside | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "pad_token_id": 0}
    config = Gemma3Config(
        text_config=text | {"intermediate_size": 24},
        vision_config=inside | {"intermediate_size": 24, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    assert any("vision_tower" in name for name in linear_names(model))
    for word in (*LOGICAL, "all-linear"):
        names = find_targets(model, word).names
        assert names and all("language_model" in name for name in names)
    with pytest.raises(RequestError, match="bitfit trains biases and this backbone"):
        inject(model, "bitfit")


@pytest.mark.parametrize(
    ("kind", "experts"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 48, "decoder_sparse_step": 1}),
    ],
)
def test_experts_are_said_to_be_left_as_they_are(kind: str, experts: dict[str, int]) -> None:
    config = AutoConfig.for_model(kind, **COMMON, **experts, num_key_value_heads=2)
    model = AutoModelForSequenceClassification.from_config(config)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    found = find_targets(model, "all-linear")
    assert f"{weights:,} weights of experts are no linear layers" in found.notes[-1]
    assert not any(name.endswith("shared_expert_gate") for name in found.names)  # of one output
    inject(model, make("lora", {"rank": 2, "targets": "all-linear"}))


def test_attention_decides_what_a_shared_name_means() -> None:
    names = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
    found = {word: meaning(word, names) for word in ("attention-output", "ffn-out", "key")}
    patterns = {word: one.pattern for word, one in found.items() if one}
    assert patterns == {
        "attention-output": r"h\.\d+\.attn\.c_proj",
        "ffn-out": r"h\.\d+\.mlp\.c_proj",
        "key": r"h\.\d+\.attn\.c_attn",
    }
    assert meaning("nonsense", names) is None
    assert meaning("query", ["mixer.in_proj"]) is None
