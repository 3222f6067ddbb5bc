import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, ModernBertConfig

import peftlab
from peftlab.errors import RequestError
from peftlab.layers import LoRALinear
from peftlab.methods import inject, make, split_variants


def tiny(**settings: int) -> nn.Module:
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, **settings,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lroa", {}, "unknown method 'lroa'; did you mean 'lora'"),
        ("lora", {"rnk": 4}, "unknown setting of lora 'rnk'; did you mean 'rank'"),
        ("lora", {"rank": 0}, "rank must be greater than or equal to 1, got 0"),
        ("lora", {"rank": 2.5}, "rank must be a valid integer.*got 2.5"),
        ("lora", {"alpha": -1.0}, "alpha must be greater than 0, got -1.0"),
        ("lora", {"dropout": 1.0}, "dropout must be less than 1, got 1.0"),
        ("lora", {"alpha": float("nan")}, "alpha must be a finite number"),
        ("head", {"rank": 4}, "unknown setting of head 'rank'; Allowed: none"),
    ],
)
def test_wrong_settings_say_what_is_allowed(
    name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        make(name, settings)


def test_lora_starts_as_the_authors_code_does() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(400, 300), rank=16, scaling=1.0)
    bound = 400**-0.5
    assert torch.count_nonzero(layer.lora_B) == 0
    assert 0.95 * bound < layer.lora_A.abs().max() <= bound
    assert abs(layer.lora_A.std() - bound / 3**0.5) < 0.02 * bound


def test_scaling_is_alpha_over_rank() -> None:
    model = inject(tiny(), peftlab.LoRA(rank=4, alpha=6.0))
    scalings = {layer.scaling for layer in model.modules() if isinstance(layer, LoRALinear)}
    assert scalings == {1.5}


def test_bitfit_is_refused_on_a_backbone_without_a_bias() -> None:
    config = ModernBertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(RequestError, match=r"\(modernbert\) has none; choose another method"):
        inject(model, "bitfit")


def test_rank_beyond_a_layer_is_refused_at_injection() -> None:
    with pytest.raises(RequestError, match="rank must be <= 8"):
        inject(tiny(), peftlab.LoRA(rank=9))


def test_variants_are_split_outside_brackets() -> None:
    assert split_variants("lora[rank=4,lr=1e-3] , full") == ["lora[rank=4,lr=1e-3]", "full"]
