"""What every method promises, over the registry: a method without a row of settings fails.

State where errors live: parameters are moved away from their initialisation, layers are not
square and have a bias, arithmetic is float64.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
)

from peftlab.bench.process import count
from peftlab.errors import RequestError
from peftlab.layers import QUANTISED, Adapter, Wrapper, features, quantise_linears
from peftlab.methods import METHODS, Method, inject, injected, make
from peftlab.models import head_parameters, linear_names
from peftlab.training import Encoded, Loop, Step
from plans import plan
from tiny import bert

LOW_RANK = {"rank": 3, "alpha": 5.0, "targets": "all-linear"}
SETTINGS: dict[str, dict[str, object]] = {
    "full": {},
    "head": {},
    "bitfit": {},
    "houlsby": {"size": 5},
    "lora": LOW_RANK,
    "pissa": LOW_RANK,
    "lora-plus": {**LOW_RANK, "ratio": 4.0},
    "dora": LOW_RANK,
    "vera": {"rank": 15, "targets": "all-linear"},
    "lora-fa": {**LOW_RANK, "correct_gradient": True},
    "qlora": LOW_RANK,
    "ia3": {"targets": "key,value,ffn-in"},
    "dylora": LOW_RANK,
    "lora-drop": LOW_RANK,
    "delta-lora": LOW_RANK,
}
# RoBERTa-base, two labels, default settings: adapter numbers, counted by hand from the papers
ROBERTA_BASE = {
    "full": 124_055_040,
    "head": 0,
    "bitfit": 102_144,
    "houlsby": 2_379_264 + 38_400,  # two bottlenecks of 64 a layer, and the norms
    "lora": 294_912,
    "pissa": 294_912,
    "lora-plus": 294_912,
    "dora": 313_344,
    "vera": 43_008,
    "lora-fa": 147_456,
    "qlora": 294_912,
    "ia3": 12 * (768 + 768 + 3072),
    "dylora": 294_912,
    "lora-drop": 294_912,  # in stage 1; what is shared in stage 2 depends on the data
    "delta-lora": 294_912,
}
ROBERTA_HEAD = 592_130
IDENTITY_AT_START = set(METHODS) - {"houlsby"}
NOT_QUANTISED = {
    "full": "needs it in fp32, but it is held in {}",
    "delta-lora": "moves the base's weights, and in {} they can't be",
}
EXACT = {("nf4", "fp32"): 1e-4}  # merged against not: inputs are rounded in all else
WARMUP = 2  # the steps after which delta-lora's weights follow
STEP = Step(index=WARMUP, warmup=WARMUP, total=10, seed=0)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return make(request.param, SETTINGS[request.param])


def tiny(
    method: Method | None = None,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    bias: bool = True,
) -> PreTrainedModel:
    """Two layers, hidden 12, FFN 20: attention square, FFN not, biases everywhere and not zero.

    In nf4, computing in `dtype` or at most fp32, if the method asks for it.
    """
    model = bert(p=dropout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if not bias:
        for name in linear_names(model):
            model.get_submodule(name).register_parameter("bias", None)
    if method is not None and method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "bf16" if dtype == torch.bfloat16 else "fp32")
        return model
    return model.to(dtype)


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {"input_ids": torch.randint(1, 40, (8, 9)), "attention_mask": torch.ones(8, 9).long()}


def move(model: PreTrainedModel, method: Method) -> None:
    """Away from the start, in two moves with a step's hook between them."""
    torch.manual_seed(1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        method.before_step(model, STEP)


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def added(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a method has put beside the base: parameters and buffers by name."""
    return {
        f"{outer}.{inner}": tensor
        for outer, layer in model.named_modules()
        if isinstance(layer, Wrapper)
        for inner, tensor in [*layer.named_parameters(), *layer.named_buffers()]
        if not inner.startswith("base.")
    }


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
    model = tiny(method, torch.float64).eval()
    before = model(**batch()).logits
    difference = inject(model, method).eval()(**batch()).logits - before
    if method.name in IDENTITY_AT_START:
        assert difference.abs().max() < 1e-12
    else:
        assert 1e-8 < difference.abs().max() < 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_forward_equals_merged(method: Method, bias: bool) -> None:
    model = inject(tiny(method, torch.float64, bias=bias), method).eval()
    move(model, method)
    adapters = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    assert method.mergeable or not adapters
    before = model(**batch()).logits
    for name, layer in adapters.items():
        x = torch.randn(2, 5, features(layer.base).inside, dtype=before.dtype)
        torch.testing.assert_close(layer(x), layer.merged()(x))
        assert (layer(x) - layer.base(x)).abs().max() > 1e-2
        model.set_submodule(name, layer.merged())
    torch.testing.assert_close(model(**batch()).logits, before)


def test_only_trainable_tensors_move(method: Method) -> None:
    model = inject(tiny(method), method).train()
    move(model, method)  # at LoRA's start A has no gradient, since B is 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = method.make_optimizer(method.parameter_groups(model, 0.01, 0.01, 0.0))
    model(**batch(), labels=torch.arange(8) % 2).loss.backward()
    method.before_update(model, STEP)
    optimizer.step()
    method.after_step(model, STEP)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(gradients(model)) == trainable
    never_used = {"bert.embeddings.position_embeddings", "bert.embeddings.word_embeddings"}
    for name, tensor in model.state_dict().items():
        # a key's bias shifts every score of a row alike, so softmax gives it no gradient
        if name.rsplit(".", 1)[0] not in never_used and not name.endswith("key.bias"):
            assert torch.equal(tensor, before[name]) != (name in trainable), name


def test_groups_hold_every_trainable_parameter_once_and_no_vector_decays(method: Method) -> None:
    model = inject(tiny(method), method)
    groups = method.parameter_groups(model, lr=0.5, head_lr=0.25, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    head = {id(p) for p in head_parameters(model).values()}
    fast = {id(p) for n, p in model.named_parameters() if n.endswith("lora_B")}
    ratio = getattr(method, "ratio", 1.0)
    for group in groups:
        for parameter in group["params"]:
            key = id(parameter)
            assert group["lr"] == (0.25 if key in head else 0.5 * (ratio if key in fast else 1))
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_trained_numbers_on_roberta_base_are_as_counted_by_hand(method: Method) -> None:
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    if method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "fp32")
    trained = count(inject(model, make(method.name)))
    assert (trained.adapter, trained.head) == (ROBERTA_BASE[method.name], ROBERTA_HEAD)


def test_what_a_method_adds_lies_where_the_base_does(method: Method) -> None:
    """The device without memory stands for CUDA: a tensor left on the CPU shows."""
    model = inject(tiny(method).to("meta"), method)
    assert all(tensor.is_meta for tensor in added(model).values()), added(model).keys()


def test_bf16_base_gives_the_logits_of_fp32_within_its_rounding(method: Method) -> None:
    if method.base_precision == "fp32":
        with pytest.raises(RequestError, match="needs it in fp32, but it is held in bf16"):
            inject(tiny(dtype=torch.bfloat16), method)
        return
    exact = inject(tiny(method), method).eval()
    held = inject(tiny(method, torch.bfloat16), method).eval()
    move(exact, method)
    held.load_state_dict(exact.state_dict())
    logits = held(**batch()).logits
    assert logits.dtype == torch.float32  # the head is, whatever the base
    assert 0 < (logits.float() - exact(**batch()).logits).abs().max() < 0.15
    trained = [t for t in added(held).values() if t.requires_grad]
    assert {t.dtype for t in trained} <= {torch.float32}


def test_eight_examples_can_be_overfitted(method: Method) -> None:
    model = inject(tiny(method), method).train()  # it has no dropout
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    optimizer = method.make_optimizer(method.parameter_groups(model, 0.02, 0.02, 0.0))
    loss = torch.tensor(torch.inf)
    for index in range(300):
        if loss < 0.1:
            break
        step = Step(index, warmup=0, total=300, seed=0)
        method.before_step(model, step)
        loss = model(**batch(), labels=labels).loss
        loss.backward()
        method.before_update(model, step)
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    assert loss < 0.1


def test_a_model_is_injected_once(method: Method) -> None:
    model = inject(tiny(method), method)
    assert injected(model) == method
    with pytest.raises(RequestError, match="already injected"):
        inject(model, "head")


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("bits", QUANTISED)
def test_trains_on_a_quantised_base_or_is_refused_with_the_reason(
    method: Method, bits: str, compute: str
) -> None:
    model = tiny()
    quantise_linears(model, linear_names(model), compute, bits)
    refusals = NOT_QUANTISED | ({"qlora": "made for a base in four bits"} if bits != "nf4" else {})
    if method.name in refusals:
        with pytest.raises(RequestError, match=refusals[method.name].format(bits)):
            inject(model, method)
        return
    inject(model, method).train()
    move(model, method)
    held = {n: b.clone() for n, b in model.named_buffers() if "base." in n}
    optimizer = method.make_optimizer(method.parameter_groups(model, 0.01, 0.01, 0.0))
    nn.functional.cross_entropy(model(**batch()).logits.float(), torch.arange(8) % 2).backward()
    assert all(p.grad is not None and p.grad.any() for p in added_parameters(model))
    optimizer.step()
    assert all(torch.equal(model.get_buffer(n), buffer) for n, buffer in held.items())
    assert any(isinstance(layer, QUANTISED[bits]) for layer in model.modules())
    before = model.eval()(**batch()).logits
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapter):
            assert type(layer.merged()) is nn.Linear
            model.set_submodule(name, layer.merged())
    torch.testing.assert_close(
        model(**batch()).logits, before, rtol=0, atol=EXACT.get((bits, compute), 0.15)
    )


def added_parameters(model: PreTrainedModel) -> list[torch.Tensor]:
    return [tensor for tensor in added(model).values() if tensor.requires_grad]


def test_a_quantised_head_is_refused(method: Method) -> None:
    model = tiny()
    quantise_linears(model, [*linear_names(model), "classifier"], "fp32")
    with pytest.raises(RequestError, match="the head is quantised, and every method trains it"):
        inject(model, method)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing_gives_the_gradients_of_without(method: Method) -> None:
    if "dropout" in method.settings:
        method = make(method.name, method.settings | {"dropout": 0.3})
    model = inject(tiny(method, torch.float64, dropout=0.2), method).train()
    move(model, method)
    passes: list[str] = []
    model.get_submodule("bert.encoder.layer.0.intermediate").register_forward_hook(
        lambda *_: passes.append("")
    )
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        torch.manual_seed(3)
        model(**batch(), labels=torch.arange(8) % 2).loss.backward()
        found.append(gradients(model))
        model.zero_grad()
    assert method.name == "head" or len(passes) == 3  # once more, for the backward pass
    assert (
        found[0].keys()
        == found[1].keys()
        == {n for n, p in model.named_parameters() if p.requires_grad}
    )
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_parts_of_a_batch_give_the_gradients_of_the_whole(method: Method) -> None:
    lengths = [3, 9, 4, 7, 5, 8, 6, 2]
    data = Encoded(
        {
            "input_ids": [[1 + (i + j * j) % 39 for j in range(n)] for i, n in enumerate(lengths)],
            "attention_mask": [[1] * n for n in lengths],
        },
        [0, 1, 1, 0, 1, 0, 0, 1],
        {"input_ids": 0, "attention_mask": 0},
        n_truncated=0,
    )
    found = []
    for parts in (1, 3):  # of 3, 3 and 2 examples
        run = plan(batch_size=8, lr=0.1, head_lr=0.1, warmup=0.1, clip=1e9, accumulation=parts)
        model = inject(tiny(method, torch.float64), method).train()
        move(model, method)
        loop = Loop(model, method, data, run)
        loop.optimizer.register_step_pre_hook(lambda *_: found.append(gradients(model)))  # noqa: B023
        assert [row["loss"] > 0 for row in loop.epoch(0)] == [True]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_copy_of_an_injected_model_is_one_of_its_own(method: Method) -> None:
    model = inject(tiny(method), method).eval()
    move(model, method)
    before = model(**batch()).logits
    other: Any = copy.deepcopy(model)
    assert injected(other) == method
    assert torch.equal(other(**batch()).logits, before)
    assert count(other) == count(model)
    move(other, method)
    assert not torch.equal(other(**batch()).logits, before)
    assert torch.equal(model(**batch()).logits, before)
