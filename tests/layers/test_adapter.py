import pytest
import torch
from torch import nn

from peftlab.errors import RequestError
from peftlab.layers import LoRALinear, linear_like, replace_linears


def test_linear_like_keeps_the_bias_and_freezes() -> None:
    base = nn.Linear(5, 3)
    layer = linear_like(base, torch.ones(3, 5), base.bias)
    assert layer.bias is not None
    assert torch.equal(layer.bias, base.bias)
    assert torch.equal(layer(torch.ones(1, 5)), 5 + base.bias[None])
    assert not any(p.requires_grad for p in layer.parameters())


def test_replace_linears_refuses_another_kind_of_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(TypeError, match=r"1 is a LayerNorm"):
        replace_linears(model, ["1"], lambda base: LoRALinear(base, 1, 1.0))


def test_a_refusal_half_way_replaces_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(RequestError, match="rank must be <= 2"):
        replace_linears(model, ["0", "1"], lambda base: LoRALinear(base, 3, 1.0))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_adapters_take_the_mode_of_the_layers_they_stand_on() -> None:
    model = nn.Sequential(nn.Linear(4, 4).eval(), nn.Linear(4, 2).train())
    replace_linears(model, ["0", "1"], lambda base: LoRALinear(base, 2, 1.0, 0.5))
    assert [layer.dropout.training for layer in model] == [False, True]


def test_rank_is_at_most_the_smaller_side() -> None:
    with pytest.raises(RequestError, match="rank must be <= 3"):
        LoRALinear(nn.Linear(5, 3), rank=4, scaling=1.0)


def test_adapter_is_fp32_on_a_bf16_base_and_keeps_its_dtype() -> None:
    adapter = LoRALinear(nn.Linear(8, 4).bfloat16(), rank=2, scaling=1.0)
    assert adapter.lora_A.dtype == adapter.lora_B.dtype == torch.float32
    assert adapter(torch.randn(3, 8).bfloat16()).dtype == torch.bfloat16
    assert adapter.merged().weight.dtype == torch.bfloat16


def test_dropout_acts_on_the_update_only() -> None:
    adapter = LoRALinear(nn.Linear(6, 4), rank=2, scaling=1.0, dropout_p=0.5)
    nn.init.ones_(adapter.lora_B)
    x = torch.randn(64, 6)
    adapter.train()
    torch.manual_seed(3)
    kept = torch.dropout(x, 0.5, train=True)
    torch.manual_seed(3)
    expected = adapter.base(x) + kept @ adapter.lora_A.T @ adapter.lora_B.T
    torch.testing.assert_close(adapter(x), expected)
