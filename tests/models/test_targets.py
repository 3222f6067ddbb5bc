"""Logical targets and heads, architecture by architecture, each from a tiny random config."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from peftlab.errors import RequestError
from peftlab.layers import is_linear
from peftlab.methods import LoRA, inject
from peftlab.models import (
    ARCHITECTURES,
    LOGICAL,
    find_blocks,
    find_targets,
    head_names,
    linear_names,
    norms,
    unread_modules,
)
from peftlab.models.architectures import TABLE

COMMON = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "pad_token_id": 1,
}
GROUPED = {"num_key_value_heads": 1}  # keys and values narrower than queries
EXTRA: dict[str, dict[str, object]] = {
    "electra": {"embedding_size": 6},
    "albert": {"embedding_size": 6},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "gpt2": {"bos_token_id": 2, "eos_token_id": 3, "n_inner": 12},
    **dict.fromkeys(("llama", "mistral", "qwen2"), GROUPED),
    "qwen3": {**GROUPED, "head_dim": 4},
}
# the layers of block 0 by word, in LOGICAL's order (query, key, value, attention-output, ffn-in,
# ffn-out), below the block; then the block; then the head
BERT_LAYERS = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense "
    "intermediate.dense output.dense"
)
LLAMA_LAYERS = (
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
    "mlp.gate_proj+mlp.up_proj mlp.down_proj"
)
HEAD = ["score"]
EXPECTED = {
    "bert": (BERT_LAYERS, "bert.encoder.layer.0", ["bert.pooler", "classifier"]),
    "roberta": (BERT_LAYERS, "roberta.encoder.layer.0", ["classifier"]),
    "xlm-roberta": (BERT_LAYERS, "roberta.encoder.layer.0", ["classifier"]),
    "electra": (BERT_LAYERS, "electra.encoder.layer.0", ["classifier"]),
    "mpnet": (
        "attention.attn.q attention.attn.k attention.attn.v attention.attn.o "
        "intermediate.dense output.dense",
        "mpnet.encoder.layer.0",
        ["classifier"],
    ),
    "distilbert": (
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        "distilbert.transformer.layer.0",
        ["pre_classifier", "classifier"],
    ),
    "albert": (
        "attention.query attention.key attention.value attention.dense ffn ffn_output",
        "albert.encoder.albert_layer_groups.0.albert_layers.0",
        ["albert.pooler", "classifier"],
    ),
    "deberta-v2": (
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj "
        "attention.output.dense intermediate.dense output.dense",
        "deberta.encoder.layer.0",
        ["pooler", "classifier"],
    ),
    "modernbert": (
        "attn.Wqkv attn.Wqkv attn.Wqkv attn.Wo mlp.Wi mlp.Wo",
        "model.layers.0",
        ["head", "classifier"],
    ),
    "gpt2": (
        "attn.c_attn attn.c_attn attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj",
        "transformer.h.0",
        ["score"],
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), (LLAMA_LAYERS, "model.layers.0", HEAD)),
}
# the last modules of block 0 before its two residual adds, and the norms of the whole backbone
BERT_ENDS = ("attention.output.dropout output.dropout", 5)
LLAMA_ENDS = ("self_attn.o_proj mlp.down_proj", 5)
ENDS = {
    "bert": BERT_ENDS,
    "roberta": BERT_ENDS,
    "xlm-roberta": BERT_ENDS,
    "electra": BERT_ENDS,
    "deberta-v2": BERT_ENDS,
    "mpnet": ("attention.dropout output.dropout", 5),
    "distilbert": ("attention.out_lin ffn.dropout", 5),
    "albert": ("attention.output_dropout ffn_output", 3),
    "modernbert": ("attn.out_drop mlp.Wo", 5),  # block 0 has no norm before its attention
    "gpt2": ("attn.resid_dropout mlp.dropout", 5),
    "llama": LLAMA_ENDS,
    "mistral": LLAMA_ENDS,
    "qwen2": LLAMA_ENDS,
    "qwen3": ("self_attn.o_proj mlp.down_proj", 9),  # queries and keys are normalised too
}


def build(model_type: str, **settings: object) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **COMMON | EXTRA.get(model_type, {}) | settings)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(4, 16).view(2, 6)
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return result


def test_every_architecture_is_expected_here() -> None:
    assert set(EXPECTED) == set(ENDS) == set(ARCHITECTURES)


@pytest.mark.parametrize("model_type", EXPECTED)
def test_words_name_the_layers_of_each_block(model_type: str) -> None:
    layers, block, head = EXPECTED[model_type]
    model = build(model_type)
    blocks = 1 if model_type == "albert" else 2  # ALBERT's layers share one block's weights
    for word, layer in zip(LOGICAL, layers.split(), strict=True):
        found, first = find_targets(model, word), [f"{block}.{name}" for name in layer.split("+")]
        assert len(found.names) == blocks * len(first)
        assert found.names[: len(first)] == first
        assert all(is_linear(model.get_submodule(name)) for name in found.names)
    assert head_names(model) == head


@pytest.mark.parametrize("model_type", EXPECTED)
def test_all_linear_is_every_linear_layer_but_the_head(model_type: str) -> None:
    model = build(model_type)
    head = tuple(f"{name}." for name in head_names(model))
    linear = {name for name, module in model.named_modules() if is_linear(module)}
    expected = {name for name in linear if not f"{name}.".startswith(head)}
    assert expected
    assert set(find_targets(model, "all-linear").names) == expected
    by_word = set(find_targets(model, ",".join(LOGICAL)).names)
    assert by_word <= expected


@pytest.mark.parametrize("model_type", ENDS)
def test_blocks_end_in_the_modules_named_here(model_type: str) -> None:
    (ends, _), (_, block, _) = ENDS[model_type], EXPECTED[model_type]
    model = build(model_type)
    blocks = 1 if model_type == "albert" else 2
    names = [f"{block}.{name}" for name in ends.split()]
    both, ffn = find_blocks(model), find_blocks(model, ffn_only=True)
    assert (len(both.names), len(ffn.names)) == (2 * blocks, blocks)
    assert set(both.names[:2]) == set(names)
    assert ffn.names[0] == names[1]


class Silent(nn.Module):
    """Zeros of the shape that `base` gives."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(self.base(*inputs))


@pytest.mark.parametrize("model_type", ENDS)
def test_nothing_of_a_block_comes_between_its_ends_and_the_residual_add(model_type: str) -> None:
    """With both ends silenced no linear layer of a block matters; with the FFN's alone, some do."""
    model = build(model_type).eval()
    block = EXPECTED[model_type][1].rsplit(".", 1)[0]
    inside = [name for name in linear_names(model) if name.startswith(block)]
    for ffn_only in (True, False):
        for name in find_blocks(model, ffn_only).names:
            model.set_submodule(name, Silent(model.get_submodule(name)))
        before = logits(model)
        with torch.no_grad():
            for name in inside:
                for parameter in model.get_submodule(name).parameters():
                    parameter.normal_()
        assert torch.equal(logits(model), before) != ffn_only


@pytest.mark.parametrize("model_type", ENDS)
def test_norms_are_all_of_the_backbone_and_none_of_the_head(model_type: str) -> None:
    model = build(model_type)
    found = norms(model)
    assert len(found) == len(set(found)) == ENDS[model_type][1]
    assert all(any(True for _ in norm.parameters()) for norm in found)
    head = {m for name in head_names(model) for m in model.get_submodule(name).modules()}
    assert not head & set(found)


@pytest.mark.parametrize("model_type", [kind for kind in TABLE if TABLE[kind].classifier_reads])
def test_the_classifier_reads_the_token_that_its_row_says(model_type: str) -> None:
    """The rest of the last hidden states has no gradient."""
    ids = torch.arange(4, 16).view(2, 6)
    out = build(model_type).eval()(input_ids=ids, output_hidden_states=True)
    (gradient,) = torch.autograd.grad(out.logits.square().sum(), out.hidden_states[-1])
    read = gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert read == [{"first": 0, "last": 5}[TABLE[model_type].classifier_reads or ""]]


def test_an_unknown_architecture_has_no_known_blocks() -> None:
    model = build("convbert", embedding_size=8, head_ratio=1, conv_kernel_size=3)
    with pytest.raises(RequestError, match=r"'convbert' add their residuals is not known.*bert"):
        find_blocks(model)


def test_a_model_whose_blocks_lie_elsewhere_has_no_known_ones_either() -> None:
    model = build("bert")
    model.bert.encoder.layer = nn.ModuleDict(
        {f"n{i}": b for i, b in enumerate(model.bert.encoder.layer)}
    )
    with pytest.raises(RequestError, match=r"no blocks of 'bert'.*match no module"):
        find_blocks(model)


@pytest.mark.parametrize("model_type", EXPECTED)
def test_lora_trains_on_each_architecture(model_type: str) -> None:
    model = inject(build(model_type), LoRA(rank=2, targets="query,value")).train()
    ids = torch.randint(4, 40, (4, 6))
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.ones(4).long())
    output.loss.backward()
    updates = [p for name, p in model.named_parameters() if name.endswith("lora_B")]
    assert updates
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in updates)
    heads = [p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert all(p.grad is not None for p in heads)


def test_a_fused_projection_is_taken_whole_and_said() -> None:
    found = find_targets(build("modernbert"), "query,value")
    assert found.names == ["model.layers.0.attn.Wqkv", "model.layers.1.attn.Wqkv"]
    assert found.notes
    assert "fused" in found.notes[0]
    assert "gate" in find_targets(build("modernbert"), "ffn-in").notes[0]
    assert len(find_targets(build("modernbert"), "all-linear").notes) == 2
    assert "attn.c_attn" in find_targets(build("gpt2"), "query,value").notes[0]
    assert not find_targets(build("modernbert"), "ffn-out").notes
    assert not find_targets(build("bert"), "query,value").notes


def test_exact_names_and_regular_expressions_work_on_any_architecture() -> None:
    model = build("convbert", embedding_size=8, head_ratio=1, conv_kernel_size=3)
    exact = "convbert.encoder.layer.1.attention.self.query"
    assert find_targets(model, exact).names == [exact]
    assert len(find_targets(model, r".*\.layer\.\d+\.attention\.self\.(query|value)").names) == 4
    assert head_names(model) == ["classifier"]


def test_order_is_the_models_and_nothing_is_doubled() -> None:
    model = build("bert")
    names = find_targets(model, "value,query,bert.encoder.layer.0.attention.self.value").names
    assert [re.sub(r".*layer\.(\d).*\.", r"\1 ", name) for name in names] == [
        "0 query", "0 value", "1 query", "1 value",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("qeury", "did you mean 'query'"),
        ("query,dense", "unknown target 'dense'"),  # a suffix is not enough: it hits the head too
        ("classifier", r"unknown target 'classifier'"),
        ("", "at least one layer"),
        ("(", "not a regular expression"),
        ("", "got ''"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        find_targets(build("bert"), targets)


@pytest.mark.parametrize("kind", ["bert", "longformer", "esm"])
def test_what_no_answer_depends_on_is_what_has_no_gradient(kind: str) -> None:
    """Held to a backward pass: Longformer's last local projections, ESM's unused head."""
    extra = {"longformer": {"attention_window": 4}, "esm": {"mask_token_id": 4}}
    config = AutoConfig.for_model(kind, **COMMON | extra.get(kind, {}))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(5, 40, (4, 8))
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
    owners = {name.rpartition(".")[0] for name, p in model.named_parameters()}
    told = {name for name in unread_modules(model) if name in owners}
    without = {
        owner
        for owner in owners
        if owner.startswith(model.base_model_prefix)
        and not any(bool(p.grad.any()) for p in own(model, owner) if p.grad is not None)
    }
    assert told == {owner for owner in without if "position_embeddings" not in owner}
    if kind != "bert":
        assert told
        assert not told & set(find_targets(model, "all-linear").names)


def own(model: PreTrainedModel, owner: str) -> list[nn.Parameter]:
    return list(model.get_submodule(owner).parameters(recurse=False))


def test_a_backbone_without_linear_layers_says_so() -> None:
    config = AutoConfig.for_model("squeezebert", **COMMON | {"embedding_size": 8, "q_groups": 1})
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(RequestError, match="has no linear layer to adapt; methods without targets"):
        find_targets(model, "query")


def test_a_refused_target_leaves_the_model_as_it_was() -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **COMMON))
    with pytest.raises(RequestError, match="rank must be"):
        inject(model, LoRA(rank=1000))
    assert all(p.requires_grad for p in model.parameters())
