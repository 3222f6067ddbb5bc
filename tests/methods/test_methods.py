from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    T5Config,
    T5ForSequenceClassification,
)

import peftlab
from peftlab.errors import RequestError
from peftlab.layers import LoRALinear, quantise_linears
from peftlab.methods import (
    METHODS,
    ManyRanks,
    Method,
    Prepared,
    inject,
    make,
    parse_methods,
    register,
)
from peftlab.models import linear_names


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
        ("houlsby", {"variant": "parallel"}, "variant must be 'houlsby' or 'pfeiffer'"),
        ("houlsby", {"size": 0}, "size must be greater than or equal to 1, got 0"),
        ("lora-plus", {"ratio": 0.0}, "ratio must be greater than 0, got 0.0"),
        ("vera", {"projection_seed": -1}, "projection_seed must be greater than or equal to 0"),
        ("vera", {"projection_seed": 2**64}, "projection_seed must be less than"),
        ("dylora", {"update": "first"}, "update must be 'all' or 'last'"),
        ("lora-drop", {"threshold": 1.1}, "threshold must be less than or equal to 1, got 1.1"),
        ("delta-lora", {"delta": -0.5}, "delta must be greater than or equal to 0, got -0.5"),
        ("delta-lora", {"dropout": 0.1}, "unknown setting of delta-lora 'dropout'"),
        ("qlora", {"optimizer": "sgd"}, "optimizer must be 'adamw' or 'paged'"),
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
        vocab_size=64, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(RequestError, match=r"\(modernbert\) has none; choose another method"):
        inject(model, "bitfit")


def test_qlora_on_a_base_that_is_not_quantised_is_refused() -> None:
    for model, held in ((tiny(), "fp32"), (tiny().bfloat16(), "bf16")):
        message = f"made for a base in four bits, and this one is held in {held}; load it with"
        with pytest.raises(RequestError, match=message):
            inject(model, "qlora")


def test_paging_on_a_cpu_is_refused() -> None:
    """But not loading what was trained so: only its optimizer needs CUDA."""
    model = tiny()
    quantise_linears(model, linear_names(model), "fp32")
    method = peftlab.QLoRA(optimizer="paged")
    groups = method.parameter_groups(inject(model, method), 0.1, 0.1, 0.0)
    for refused in (lambda: method.check_device("cpu"), lambda: method.make_optimizer(groups)):
        with pytest.raises(RequestError, match="this run is on cpu; leave it at 'adamw'"):
            refused()


def test_a_plan_makes_no_optimizer_that_writes_to_memory() -> None:
    """Bitsandbytes' paged one fills its state at once, on CUDA where fake tensors have none."""
    with FakeTensorMode():
        parameter = nn.Parameter(torch.zeros(3))
        made = peftlab.QLoRA(optimizer="paged").make_optimizer([{"params": [parameter], "lr": 0.1}])
    assert type(made) is torch.optim.AdamW


def test_a_model_that_asks_for_a_layers_weight_finds_the_bases() -> None:
    """T5 reads the dtype of its FFN's weight before it multiplies with it."""
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, num_labels=2,
        pad_token_id=0, decoder_start_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = inject(T5ForSequenceClassification(config), peftlab.LoRA(rank=2, targets="all-linear"))
    tokens = torch.tensor([[5, 6, 7, 1], [8, 9, 10, 1]])
    assert model(input_ids=tokens).logits.shape == (2, 2)


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    model = tiny()
    before = [(name, type(m), m.training) for name, m in model.named_modules()]
    for method in ("qlora", peftlab.LoRA(targets="nothing"), peftlab.DoRA(targets="query,dense")):
        with pytest.raises(RequestError):
            inject(model, method)
    assert [(name, type(m), m.training) for name, m in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())
    inject(model, "lora")


def test_rank_beyond_a_layer_is_refused_at_injection() -> None:
    with pytest.raises(RequestError, match="rank must be <= 8"):
        inject(tiny(), peftlab.LoRA(rank=9))


def test_variants_are_split_outside_brackets() -> None:
    assert parse_methods("lora[rank=4,lr=1e-3] , full,") == [
        {"name": "lora", "rank": 4, "lr": 1e-3},
        {"name": "full"},
    ]
    assert parse_methods("all") == [{"name": name} for name in METHODS]
    for wrong, message in (
        ("lora[rank=4", "NAME or NAME"),
        ("lora[4]", "'4' .* field=value"),
        ("lora[name=full]", "before its brackets"),
        ("lora[rank=4,lr=1e-3, rank=8]", "rank stands twice"),
    ):
        with pytest.raises(RequestError, match=message):
            parse_methods(wrong)


@pytest.mark.parametrize(("hook", "kind"), [("prepare", Prepared), ("at_rank", ManyRanks)])
def test_a_hook_that_would_never_be_called_is_refused(hook: str, kind: type[Method]) -> None:
    mine = type("Mine", (peftlab.HeadOnly,), {hook: print, "name": "mine"})
    with pytest.raises(RequestError, match=f"Mine has {hook}, .* peftlab.methods.{kind.__name__}"):
        register(mine)
    assert "mine" not in METHODS


def test_all_methods_train_the_head_at_one_rate() -> None:
    assert len({method.default_head_lr for method in METHODS.values()}) == 1


def test_a_setting_may_be_called_as_a_hook_is() -> None:
    own = type("Own", (METHODS["head"],), {"name": "own", "state": "a setting's default"})
    try:
        assert register(own) is own
    finally:
        METHODS.pop("own", None)


def test_a_method_of_one_s_own_that_freezes_the_head_is_told_so(tiny_model: Path) -> None:
    class Frozen(peftlab.HeadOnly):
        def inject(self, model: Any) -> None:
            model.requires_grad_(False)

    model, _ = peftlab.load_model(str(tiny_model))
    with pytest.raises(RequestError, match="head leaves a part of the head frozen: bert"):
        inject(model, Frozen())


@pytest.mark.parametrize("method", ["full", "bitfit", "lora"])
def test_the_head_of_a_model_from_transformers_computes_in_fp32_under_autocast(
    method: str, tiny_model: str
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    loaded, _ = peftlab.load_model(str(tiny_model), precision="fp32")
    for one in (model, loaded):
        inject(one, make(method))
        with torch.autocast("cpu", torch.bfloat16):
            assert one(torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32
        hooks = [len(part._forward_pre_hooks) for part in one.classifier.modules()]
        assert max(hooks) == 1  # once is enough
