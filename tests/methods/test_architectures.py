"""Every method on every architecture: encoders, and decoders for sequence classification."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from peftlab.errors import RequestError
from peftlab.layers import QUANTISED, Adapter, Wrapper, is_conv1d, quantise_linears
from peftlab.methods import METHODS, Method, inject, make
from peftlab.models import ARCHITECTURES, linear_names
from peftlab.training.loop import Step

COMMON = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 1, "head_dim": 4}  # keys and values narrower than queries
EXTRA: dict[str, dict[str, object]] = {
    "electra": {"embedding_size": 6},
    "albert": {"embedding_size": 6},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3},
    "gpt2": {"n_inner": 12},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), GROUPED),
}
WITHOUT_BIASES = {"modernbert", "llama", "mistral", "qwen3"}
SMALL: dict[str, object] = {"rank": 2, "targets": "all-linear", "size": 3}
STEP = Step(index=2, warmup=2, total=10, seed=0)


def build(model_type: str, method: Method, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Away from its initialisation; in nf4, computing in fp32 or bf16, if the method needs it."""
    config = AutoConfig.for_model(model_type, **COMMON | EXTRA.get(model_type, {}))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "bf16" if dtype == torch.bfloat16 else "fp32")
        return model
    built: PreTrainedModel = model.to(dtype)
    return built


def small(name: str) -> Method:
    settings = make(name).settings
    return make(name, {key: value for key, value in SMALL.items() if key in settings})


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(4, 16).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    result: torch.Tensor = model(input_ids=ids * mask + (1 - mask), attention_mask=mask).logits
    return result


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_merges_on(name: str, model_type: str) -> None:
    method = small(name)
    model = build(model_type, method)
    if name == "bitfit" and model_type in WITHOUT_BIASES:
        with pytest.raises(RequestError, match=rf"\({model_type}\) has none; choose another"):
            inject(model, method)
        return
    inject(model, method)
    start = logits(model)
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        method.before_step(model, STEP)
    nn.functional.cross_entropy(logits(model), torch.tensor([0, 1])).backward()
    wrappers = {n: layer for n, layer in model.named_modules() if isinstance(layer, Wrapper)}
    assert bool(wrappers) == (name not in {"full", "head"})
    for layer in wrappers.values():
        for inner, parameter in layer.named_parameters():
            if not inner.startswith("base.") and parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.any(), inner
    before = logits(model)
    assert (before - start).abs().max() > 1e-3
    for layer_name, layer in wrappers.items():
        if isinstance(layer, Adapter):
            model.set_submodule(layer_name, layer.merged())
            assert is_conv1d(layer.merged()) == (model_type == "gpt2")
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("held", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_method_that_can_trains_on_a_base_held_in(held: str, model_type: str) -> None:
    for method in map(small, METHODS):
        if method.base_precision == "fp32" or (held in QUANTISED and method.name == "delta-lora"):
            continue
        if method.name == "bitfit" and model_type in WITHOUT_BIASES:
            continue
        model = build(model_type, method, torch.bfloat16)
        if held in QUANTISED and method.base_precision != "nf4":
            quantise_linears(model, linear_names(model), "bf16", held)
        output = logits(inject(model, method).train())
        assert output.dtype == torch.float32  # the head is, whatever the base
        nn.functional.cross_entropy(output.float(), torch.tensor([0, 1])).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            else:
                beside = model.state_dict(keep_vars=True).get(f"{name.rpartition('.')[0]}.bias")
                trained_bias = beside is not None and beside.requires_grad  # of a norm in bitfit
                exact = trained_bias or name.endswith("lora_A")
                held_as = torch.float32 if exact else torch.bfloat16
                assert parameter.dtype == held_as, name  # the base stays as it was
