"""LoRA-FA: what is kept for the backward pass, what moves, and the corrected gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.layers import LoRALinear
from peftlab.methods import LoRA, LoRAFA, Method, inject
from peftlab.methods.lora_fa import correction
from peftlab.training.loop import Step
from tiny import bert


def saved(layer: LoRALinear, x: Tensor) -> list[int]:
    """The bytes of what `layer` keeps of `x` for its backward pass, its own weights left out."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    return sorted(kept.values())


@pytest.mark.parametrize("bias", [True, False])
def test_the_layers_input_is_not_kept_when_a_is_frozen(bias: bool) -> None:
    """Of 8 KiB of input only x Aᵀ, 512 bytes, is kept; with A trained x is kept as well."""
    layer = LoRALinear(nn.Linear(64, 48, bias=bias).requires_grad_(False), 4, 2.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(32, 64, requires_grad=True) * 1.0  # of an earlier layer: no leaf

    with_a = saved(layer, x)
    layer.lora_A.requires_grad_(False)
    assert saved(layer, x) == [512]
    assert with_a == [512, 8192]


@pytest.mark.parametrize(("method", "kept"), [(LoRAFA(rank=3), 1), (LoRA(rank=3), 2)])
def test_so_it_is_in_a_model(method: Method, kept: int) -> None:
    model = inject(bert(torch.float64), method)
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    assert len(layers) == 4
    for layer in layers:
        x = torch.randn(8, 7, 12, dtype=torch.float64, requires_grad=True) * 1.0
        assert saved(layer, x) == [8 * 7 * 3 * 8, 8 * 7 * 12 * 8][:kept]


def batch(index: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(index)
    return {
        "input_ids": torch.randint(1, 40, (8, 7), generator=draws),
        "attention_mask": torch.ones(8, 7).long(),
        "labels": torch.randint(0, 2, (8,), generator=draws),
    }


def adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("correct", [True, False])
def test_a_stays_as_it_was_drawn_and_b_moves(correct: bool) -> None:
    method = LoRAFA(rank=3, correct_gradient=correct)
    model = inject(bert(torch.float64), method).train()
    start = {name: p.detach().clone() for name, p in adapters(model).items()}
    optimizer = method.make_optimizer(method.parameter_groups(model, 0.01, 0.01, 0.1))
    for index in range(5):
        model(**batch(index)).loss.backward()
        method.before_update(model, Step(index, 0, 5, 0))
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in adapters(model).items():
        assert torch.equal(parameter, start[name]) == name.endswith("lora_A"), name


def gradients(method: Method) -> dict[str, Tensor]:
    model = inject(bert(torch.float64), method)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapters(model).values():
            parameter.normal_()
    model(**batch(0)).loss.backward()
    method.before_update(model, Step(0, 0, 1, 0))
    return {n: p.grad for n, p in adapters(model).items() if p.grad is not None}


def test_gradient_of_b_is_loras() -> None:
    ours, loras = gradients(LoRAFA(rank=3)), gradients(LoRA(rank=3))
    assert len(ours) == 4
    assert set(loras) - set(ours) == {n for n in loras if n.endswith("lora_A")}
    for name, gradient in ours.items():
        assert torch.equal(gradient, loras[name])


def test_corrected_gradient_is_the_least_squares_one() -> None:
    """Of all changes of B it moves the weight closest to full fine-tuning's step, s·ΔB·A ≈ G."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(7, 5).double(), rank=3, scaling=1.5)
    full = torch.randn(5, 7, dtype=torch.float64)  # G, the gradient of the layer's weight
    of_b = 1.5 * full @ layer.lora_A.T  # as autograd gives it
    corrected = of_b @ correction(layer)
    best = torch.linalg.lstsq(1.5 * layer.lora_A.T, full.T).solution.T
    torch.testing.assert_close(corrected, best, rtol=1e-5, atol=1e-6)


def test_correction_is_made_once() -> None:
    method = LoRAFA(rank=3, correct_gradient=True)
    model = inject(bert(torch.float64), method)
    made = []
    for index in range(2):
        model(**batch(index)).loss.backward()
        method.before_update(model, Step(index, 0, 2, 0))
        made.append([id(b) for n, b in model.named_buffers() if n.endswith("correction")])
    assert len(made[0]) == 4
    assert made[0] == made[1]
    assert not any("correction" in name for name in model.state_dict())
