"""Houlsby: the bottleneck's formula, where it stands, what trains with it, how it starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from peftlab.errors import RequestError
from peftlab.methods import Houlsby, inject
from peftlab.methods.houlsby import Bottleneck
from peftlab.models import norms


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def bottlenecks(model: nn.Module) -> dict[str, Bottleneck]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, Bottleneck)}


def normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.special.erf(z / 2**0.5))


def test_output_is_the_papers_formula() -> None:
    """Written out for one vector at a time: h + U·gelu(D·h + b_D) + b_U, gelu(z) = z·Φ(z)."""
    layer = Bottleneck(nn.Identity(), width=6, size=4, init_std=0.5, dtype=torch.float64)
    with torch.no_grad():
        layer.down_bias.normal_()
        layer.up_bias.normal_()
    hidden = torch.randn(2, 3, 6, dtype=torch.float64)
    for row, h in zip(layer(hidden).view(6, 6), hidden.view(6, 6), strict=True):
        inner = torch.mv(layer.down, h) + layer.down_bias
        expected = h + torch.mv(layer.up, inner * normal_cdf(inner)) + layer.up_bias
        torch.testing.assert_close(row, expected)
        assert (row - h).abs().max() > 0.1


def test_bottlenecks_stand_on_both_dropouts_of_each_block() -> None:
    model = inject(bert(), Houlsby(size=4))
    assert list(bottlenecks(model)) == [
        f"bert.encoder.layer.{i}.{place}.dropout"
        for i in range(2)
        for place in ("attention.output", "output")
    ]
    assert all(isinstance(layer.base, nn.Dropout) for layer in bottlenecks(model).values())


def test_a_bottleneck_changes_the_branch_and_not_the_residual() -> None:
    """A block's output is LayerNorm(residual + bottleneck(branch)), the residual untouched."""
    model = inject(bert(), Houlsby(size=4, init_std=0.5)).eval()
    block = model.get_submodule("bert.encoder.layer.0.output")
    hidden, residual = torch.randn(2, 3, 20), torch.randn(2, 3, 12)
    branch = block.dropout(block.dense(hidden))
    assert (branch - block.dense(hidden)).abs().max() > 1e-3
    torch.testing.assert_close(block(hidden, residual), block.LayerNorm(residual + branch))


def test_a_block_without_dropouts_has_them_on_its_projections() -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, pad_token_id=1,
    )  # fmt: skip
    model = inject(LlamaForSequenceClassification(config), Houlsby(size=4))
    assert list(bottlenecks(model)) == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.down_proj",
    ]


def test_norms_and_head_train_with_the_bottlenecks_and_nothing_else() -> None:
    model = inject(bert(), Houlsby(size=4))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.requires_grad for norm in norms(model) for p in norm.parameters())
    inner = {"down", "down_bias", "up", "up_bias"}
    others = {n for n in trained if "LayerNorm" not in n and n.rsplit(".", 1)[1] not in inner}
    assert others == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier")
                      for kind in ("weight", "bias")}  # fmt: skip
    assert sum("LayerNorm" in name for name in trained) == 2 * 5


def test_pfeiffer_has_one_a_block_and_frozen_norms() -> None:
    model = inject(bert(), Houlsby(size=4, variant="pfeiffer"))
    assert list(bottlenecks(model)) == [f"bert.encoder.layer.{i}.output.dropout" for i in range(2)]
    assert not any(p.requires_grad for norm in norms(model) for p in norm.parameters())


@pytest.mark.parametrize("std", [1e-2, 1e-3])
def test_weights_start_normal_and_cut_at_two_standard_deviations(std: float) -> None:
    torch.manual_seed(0)
    layer = Bottleneck(nn.Identity(), width=200, size=100, init_std=std)
    for weight in (layer.down, layer.up):
        assert 1.99 * std < weight.abs().max() <= 2 * std
        assert abs(weight.mean()) < 0.02 * std
        # of a normal distribution cut at ±2: sqrt(1 - 4·φ(2) / (Φ(2) - Φ(-2))) = .8796
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)
    assert not layer.down_bias.any()
    assert not layer.up_bias.any()


def test_a_smaller_start_is_closer_to_the_identity() -> None:
    h = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    changes = []
    for std in (1e-2, 1e-3):
        torch.manual_seed(0)
        layer = Bottleneck(nn.Identity(), width=64, size=16, init_std=std)
        changes.append((layer(h) - h).abs().max().item())
    assert 0 < changes[1] < 0.02 * changes[0] < 1e-3


def test_a_bf16_base_stays_as_it_is_under_fp32_bottlenecks_and_norms() -> None:
    """Also where the bottleneck stands on a projection, which has a weight of its own."""
    for base in (nn.Linear(8, 12).bfloat16(), nn.Dropout(0.1)):
        layer = Bottleneck(base, width=12, size=4, init_std=0.1, dtype=torch.float32)
        inputs = torch.randn(2, 8 if isinstance(base, nn.Linear) else 12).bfloat16()
        assert layer(inputs).dtype == torch.bfloat16
        assert {p.dtype for p in base.parameters()} <= {torch.bfloat16}
    model = inject(bert().bfloat16(), Houlsby(size=4))
    assert {p.dtype for norm in norms(model) for p in norm.parameters()} == {torch.float32}


def test_an_architecture_whose_blocks_are_not_known_is_refused() -> None:
    model = bert()
    model.config.model_type = "other"
    with pytest.raises(RequestError, match="where the blocks of 'other' add their residuals"):
        inject(model, Houlsby())
