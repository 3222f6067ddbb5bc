"""What every method promises, over the registry: a method without a row of settings fails.

State where errors live: parameters are moved away from their initialisation, layers are not
square and have a bias, arithmetic is float64.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
)

from peftlab.bench.runner import count
from peftlab.errors import RequestError
from peftlab.layers import Adapter
from peftlab.methods import METHODS, Method, inject, injected, make
from peftlab.models import head_parameters

SETTINGS: dict[str, dict[str, object]] = {
    "full": {},
    "head": {},
    "bitfit": {},
    "lora": {"rank": 3, "alpha": 5.0, "targets": "all-linear"},
}
# RoBERTa-base, two labels, default settings: adapter numbers as the specification counts them
ROBERTA_BASE = {"full": 124_055_040, "head": 0, "bitfit": 102_144, "lora": 294_912}
ROBERTA_HEAD = 592_130
IDENTITY_AT_START = set(METHODS)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return make(request.param, SETTINGS[request.param])


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Two layers, hidden 12, FFN 20: attention square, FFN not, biases everywhere and not zero."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {"input_ids": torch.randint(1, 40, (8, 9)), "attention_mask": torch.ones(8, 9).long()}


def perturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def test_every_method_has_a_row_of_settings() -> None:
    assert set(SETTINGS) == set(METHODS) == set(ROBERTA_BASE)


def test_settings_are_frozen_and_strict(method: Method) -> None:
    assert make(method.name, method.settings) == method
    with pytest.raises(RequestError, match="unknown setting"):
        make(method.name, {"nonsense": 1})
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, 1)


def test_identity_at_the_start(method: Method) -> None:
    assert method.name in IDENTITY_AT_START
    model = tiny(dtype=torch.float64).eval()
    before = model(**batch()).logits
    inject(model, method)
    torch.testing.assert_close(model.eval()(**batch()).logits, before, rtol=0, atol=1e-12)


def test_forward_equals_merged(method: Method) -> None:
    model = inject(tiny(dtype=torch.float64), method).eval()
    perturb(model)
    before = model(**batch()).logits
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapter):
            x = torch.randn(2, 5, layer.base.in_features, dtype=torch.float64)
            torch.testing.assert_close(layer(x), layer.merged()(x))
            assert (layer(x) - layer.base(x)).abs().max() > 1e-3
            model.set_submodule(name, layer.merged())
    torch.testing.assert_close(model(**batch()).logits, before)


def test_only_trainable_tensors_move(method: Method) -> None:
    model = inject(tiny(), method).train()
    perturb(model)  # at LoRA's start A has no gradient, since B is 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = method.parameter_groups(model, lr=0.01, head_lr=0.01, weight_decay=0.0)
    optimizer = torch.optim.AdamW(groups)
    model(**batch(), labels=torch.arange(8) % 2).loss.backward()
    optimizer.step()
    never_used = {"bert.embeddings.position_embeddings", "bert.embeddings.word_embeddings"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        moved = not torch.equal(parameter, before[name])
        # a key's bias shifts every score of a row alike, so softmax gives it no gradient
        if name.rsplit(".", 1)[0] not in never_used and not name.endswith("key.bias"):
            assert moved == parameter.requires_grad, name


def test_groups_hold_every_trainable_parameter_once_and_no_vector_decays(method: Method) -> None:
    model = inject(tiny(), method)
    groups = method.parameter_groups(model, lr=0.5, head_lr=0.25, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    head = {id(p) for p in head_parameters(model).values()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.25 if id(parameter) in head else 0.5)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_trained_numbers_on_roberta_base_are_the_specifications(method: Method) -> None:
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    trained = count(inject(model, make(method.name)))
    assert (trained.adapter, trained.head) == (ROBERTA_BASE[method.name], ROBERTA_HEAD)


def test_bf16_base_gives_the_logits_of_fp32_within_its_rounding(method: Method) -> None:
    if method.base_precision == "fp32":
        with pytest.raises(RequestError, match="needs it in fp32, but it is held in bfloat16"):
            inject(tiny(dtype=torch.bfloat16), method)
        return
    exact = inject(tiny(), method).eval()
    held = inject(tiny(dtype=torch.bfloat16), method).eval()
    held.load_state_dict(exact.state_dict())
    difference = (held(**batch()).logits.float() - exact(**batch()).logits).abs().max()
    assert 0 < difference < 0.1


def test_eight_examples_can_be_overfitted(method: Method) -> None:
    model = inject(tiny(), method).eval()  # without dropout
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    optimizer = torch.optim.AdamW(method.parameter_groups(model, 0.01, 0.01, 0.0))
    for _ in range(300):
        loss = model(**batch(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


def test_a_model_is_injected_once(method: Method) -> None:
    model = inject(tiny(), method)
    assert injected(model) == method
    with pytest.raises(RequestError, match="already injected"):
        inject(model, "head")
