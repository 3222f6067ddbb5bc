"""Against HF PEFT: the same weights give the same outputs, gradients and optimizer steps.

All is in float64 on tiny models with biases and layers that are not square; adapters are moved
away from their start, and dropout is off.
"""

from __future__ import annotations

from typing import Any

import peft.optimizers.lorafa
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, IA3Config, LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from peftlab.layers import Adapter, Wrapper, weight_of
from peftlab.methods import METHODS, InPeft, Method, inject, make
from peftlab.methods.pissa import principal
from peftlab.training.loop import Step

# PEFT asks transformers by a name that transformers has given up
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = "query,value,ffn-in,ffn-out"
# what PEFT calls our tensors
NAMES = {
    "lora_A": "lora_A.default.weight",
    "lora_B": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
    "vera_lambda_d": "vera_lambda_d.default",
    "vera_lambda_b": "vera_lambda_b.default",
    "output_scale": "ia3_l.default",
    "input_scale": "ia3_l.default",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 5.0},
    "lora rank-stabilised": {"rank": 3, "alpha": 5.0, "rank_stabilised": True},
    "dora": {"rank": 3, "alpha": 5.0},
    "vera": {"rank": 6, "d_initial": 0.2, "projection_seed": 0},
    "ia3": {},
}


def base(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "bert":
        config = BertConfig(
            vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=20, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model: PreTrainedModel = BertForSequenceClassification(config)
    else:
        config = GPT2Config(
            vocab_size=40, n_embd=12, n_layer=2, n_head=2, n_inner=20, n_positions=16,
            pad_token_id=1, bos_token_id=2, eos_token_id=3, resid_pdrop=0.0, attn_pdrop=0.0,
            embd_pdrop=0.0,
        )  # fmt: skip
        model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def in_peft(method: Method, kind: str) -> Any:
    """The same base with PEFT's adapters on the same layers."""
    assert isinstance(method, InPeft)
    ours = inject(base(kind), method)
    layers = {n: layer for n, layer in ours.named_modules() if isinstance(layer, Adapter)}
    asked = PEFT_TYPE_TO_CONFIG_MAPPING[method.peft_type](
        **method.peft_config(layers), target_modules=list(layers), fan_in_fan_out=kind == "gpt2"
    )
    return get_peft_model(base(kind), asked).double()


def pairs(model: PreTrainedModel, reference: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our adapters' parameters and PEFT's, by our names."""
    theirs = dict(reference.base_model.model.named_parameters())
    return {
        f"{outer}.{inner}": (parameter, theirs[f"{outer}.{NAMES[inner]}"])
        for outer, layer in model.named_modules()
        if isinstance(layer, Wrapper)
        for inner, parameter in layer.named_parameters()
        if not inner.startswith("base.")
    }


def same_start(model: PreTrainedModel, reference: Any) -> dict[str, tuple[Any, Any]]:
    """Move our adapters away from their start, and copy them to PEFT's."""
    found = pairs(model, reference)
    with torch.no_grad():
        for ours, theirs in found.values():
            ours.add_(0.2 * torch.randn_like(ours))
            assert theirs.squeeze().shape == ours.shape  # a vector may be one row or column there
            theirs.copy_(ours.view_as(theirs))
    return found


def loss_of(model: Any, index: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits and inputs of a batch of which each `index` has another."""
    draws = torch.Generator().manual_seed(index)
    x = torch.randn(4, 6, 12, generator=draws, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(4, 6).long()
    logits = model(inputs_embeds=x, attention_mask=mask).logits
    return nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])), logits, x


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("row", SETTINGS)
def test_outputs_and_all_gradients_are_pefts(row: str, kind: str) -> None:
    method = make(row.split()[0], SETTINGS[row] | {"targets": TARGETS})
    model, reference = inject(base(kind), method), in_peft(method, kind)
    found = same_start(model, reference)
    per_layer = {"dora": 3, "ia3": 1}.get(method.name, 2)
    assert len(found) == per_layer * (8 if kind == "bert" else 6)
    results = []
    for one in (model, reference):
        loss, logits, x = loss_of(one)
        loss.backward()
        results.append((logits, x.grad))
    torch.testing.assert_close(results[0], results[1])
    for name, (ours, theirs) in found.items():
        assert ours.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(ours.grad, theirs.grad.squeeze())
    assert (loss_of(base(kind))[1] - logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_veras_projections_are_pefts_draw_bit_for_bit(kind: str) -> None:
    method = make("vera", {"rank": 6, "targets": TARGETS, "projection_seed": 3})
    model, reference = inject(base(kind).float(), method), in_peft(method, kind).float()
    buffers = dict(model.named_buffers())
    for name in ("vera_A", "vera_B"):
        ours = [buffer for key, buffer in buffers.items() if key.endswith(name)]
        assert len(ours) == 1
        assert torch.equal(ours[0], getattr(reference.base_model, name)["default"])


def freeze_head(*models: Any) -> None:
    for model in models:
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("classifier", "pooler", "score")):
                parameter.requires_grad_(False)


def ten_steps_are_equal(
    method: Method, models: tuple[Any, Any], optimizers: tuple[Any, Any], fixed: str = "nothing"
) -> None:
    found = pairs(*models)
    start = {name: ours.detach().clone() for name, (ours, _) in found.items()}
    for index in range(10):
        for model, optimizer in zip(models, optimizers, strict=True):
            loss_of(model, index)[0].backward()
            if model is models[0]:
                method.before_update(model, Step(index, 0, 10, 0))
            optimizer.step()
            optimizer.zero_grad()
        for name, (ours, theirs) in found.items():
            torch.testing.assert_close(ours, theirs.squeeze(), rtol=1e-6, atol=1e-9)
            assert torch.equal(ours, start[name]) == name.endswith(fixed), name


def test_steps_of_lora_plus_are_pefts_optimizers() -> None:
    method = make("lora-plus", {"rank": 3, "alpha": 5.0, "ratio": 4.0, "targets": TARGETS})
    model, reference = inject(base("bert"), method), in_peft(method, "bert")
    same_start(model, reference)
    freeze_head(model, reference)  # PEFT's biases of the head would learn at ratio · lr
    ours = method.make_optimizer(method.parameter_groups(model, 1e-3, 1.0, 0.1))
    theirs = create_loraplus_optimizer(
        reference, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.1
    )
    ten_steps_are_equal(method, (model, reference), (ours, theirs))


def test_steps_of_ia3_are_pefts() -> None:
    """Which inputs are scaled is said here in PEFT's words, as its users do."""
    method = make("ia3")
    model = inject(base("bert"), method)
    ffn = r".*layer\.\d+\.output\.dense"
    asked = IA3Config(target_modules=rf".*\.(key|value)|{ffn}", feedforward_modules=ffn)
    reference = get_peft_model(base("bert"), asked).double()
    freeze_head(model, reference)
    ours = method.make_optimizer(method.parameter_groups(model, 1e-2, 1.0, 0.1))
    theirs = torch.optim.AdamW(
        [p for p in reference.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    ten_steps_are_equal(method, (model, reference), (ours, theirs))
    torch.testing.assert_close(loss_of(model)[1], loss_of(reference)[1])


def test_steps_of_corrected_lora_fa_are_pefts_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    settings = {"rank": 3, "alpha": 5.0, "targets": TARGETS, "correct_gradient": True}
    method = make("lora-fa", settings)
    model, reference = inject(base("bert"), method), in_peft(method, "bert")
    same_start(model, reference)
    freeze_head(model, reference)
    ours = method.make_optimizer(method.parameter_groups(model, 1e-3, 1.0, 0.0))
    theirs = create_lorafa_optimizer(reference, r=3, lora_alpha=5.0, lr=1e-3)
    for optimizer in (ours, theirs):  # PEFT adds it before the bias correction, AdamW after
        for group in optimizer.param_groups:
            group["eps"] = 1e-16
    ten_steps_are_equal(method, (model, reference), (ours, theirs), fixed="lora_A")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_steps_of_pissa_are_pefts(kind: str) -> None:
    """PEFT decomposes in fp32 and moves the base; here it stays, and the sums are the same."""
    method = make("pissa", {"rank": 3, "alpha": 5.0, "targets": TARGETS})
    model = inject(base(kind).float(), method).double()
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, Adapter)}
    asked = LoraConfig(
        r=3, lora_alpha=5.0, init_lora_weights="pissa", target_modules=list(layers),
        fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    reference = get_peft_model(base(kind).float(), asked).double()
    freeze_head(model)
    models = (model, reference)
    start = loss_of(base(kind).float().double())[1]
    for one in models:
        torch.testing.assert_close(loss_of(one)[1], start, rtol=0, atol=1e-6)
        # a singular vector's sign is free, and both are the same to AdamW; its large ε keeps
        # rounding, PEFT's of the rest in fp32, from deciding on the direction of a step
        trained = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.02, eps=1e-3, weight_decay=0.0)
        for index in range(10):
            loss_of(one, index)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
    logits = [loss_of(one)[1] for one in models]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert (logits[0] - start).abs().max() > 1e-2
    for name, layer in layers.items():
        theirs = reference.base_model.model.get_submodule(name)
        wanted = theirs.base_layer.weight + theirs.get_delta_weight("default")
        wanted = wanted.T if kind == "gpt2" else wanted
        weight = weight_of(layer.base)
        torch.testing.assert_close(layer.merged_weight(weight), wanted, rtol=0, atol=1e-5)
        assert (wanted - weight).abs().max() > 1e-3
        assert torch.equal(weight, weight_of(base(kind).float().get_submodule(name)).double())


def test_pissas_randomised_decomposition_finds_the_same_part() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 8))[0] for n in (12, 20))
    weight = left @ torch.diag(2.0 ** -torch.arange(8)) @ right.T
    products = [b @ a for a, b in (principal(weight, 3, niter) for niter in (None, 16))]
    torch.testing.assert_close(products[0], products[1])
    rest = torch.linalg.matrix_norm(weight - products[0], ord=2)
    torch.testing.assert_close(rest, torch.tensor(2.0**-3))
    assert make("pissa", {"rank": 3}).scaling == 1.0  # the paper's, whatever the rank


def test_every_method_that_peft_has_is_compared_here() -> None:
    compared = {row.split()[0] for row in SETTINGS} | {"lora-plus", "lora-fa", "pissa"}
    as_lora = {"qlora", "dylora"}  # their layers are LoRA's: tests/methods/test_oracles.py
    assert compared | as_lora == {n for n, m in METHODS.items() if issubclass(m, InPeft)}
