"""Delta-LoRA against a dense weight that is updated after every step, as the algorithm says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from peftlab.layers import LoRALinear
from peftlab.methods import DeltaLoRA, inject, injected
from peftlab.methods.delta_lora import DeltaLoRALinear
from peftlab.training.loop import Step

RANK, SCALING, DELTA, START, STEPS = 3, 1.5, 0.7, 3, 10
METHOD = DeltaLoRA(rank=RANK, alpha=RANK * SCALING, delta=DELTA, start=START)


def base_of(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(7, 5).to(dtype).requires_grad_(False)


def layer_on(base: nn.Linear) -> DeltaLoRALinear:
    torch.manual_seed(1)
    return DeltaLoRALinear(base, RANK, SCALING, DELTA)


def data(index: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(index)
    like = {"generator": draws, "dtype": torch.float64}
    return torch.randn(16, 7, **like), torch.randn(16, 5, **like)


def optimizer_of(layer: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    trained = [p for p in layer.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.1)


def train(layer: DeltaLoRALinear, steps: int = STEPS) -> Iterator[Tensor]:
    """The output on the first batch after each step."""
    optimizer = optimizer_of(layer)
    for index in range(steps):
        METHOD.before_step(layer, Step(index, warmup=0, total=steps, seed=0))
        x, y = data(index)
        (layer(x) - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield layer(data(0)[0]).detach()


def train_dense(steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """The same by algorithm 1: after step t > K, W takes λ·s times the change of B A."""
    base = base_of()
    start = layer_on(base)
    weight, bias = base.weight.clone(), base.bias.clone()
    lora_A, lora_B = start.lora_A.detach().clone(), start.lora_B.detach().clone()
    pair = nn.ParameterList([nn.Parameter(lora_A), nn.Parameter(lora_B)])
    optimizer = optimizer_of(pair)
    for index in range(steps):
        x, y = data(index)
        out = x @ weight.T + bias + SCALING * x @ pair[0].T @ pair[1].T
        before = (pair[1] @ pair[0]).detach()
        (out - y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if index + 1 > START:
            weight = weight + DELTA * SCALING * ((pair[1] @ pair[0]).detach() - before)
        x = data(0)[0]
        out = x @ weight.T + bias + SCALING * x @ pair[0].T @ pair[1].T
        yield out.detach(), weight + SCALING * (pair[1] @ pair[0]).detach()


def test_ten_steps_are_those_of_the_weight_updated_after_each() -> None:
    layer = layer_on(base_of())
    for ours, (dense, _) in zip(train(layer), train_dense(), strict=True):
        torch.testing.assert_close(ours, dense)
    *_, (_, weight) = train_dense()
    torch.testing.assert_close(layer.merged().weight, weight)
    without = layer.base.weight + SCALING * layer.lora_B @ layer.lora_A
    assert (weight - without).abs().max() > 1e-2  # the weight has moved


def test_the_changes_telescope() -> None:
    """W_T = W₀ + λ·s·(B_T A_T - B_K A_K), whatever lies between."""
    layer = layer_on(base_of())
    products = [torch.zeros(5, 7, dtype=torch.float64)]
    for _ in train(layer):
        products.append((layer.lora_B @ layer.lora_A).detach())
    moved = layer.merged().weight - layer.base.weight - SCALING * products[-1]
    torch.testing.assert_close(moved, DELTA * SCALING * (products[-1] - products[START]))
    steps = [after - before for before, after in pairwise(products)]
    torch.testing.assert_close(moved, DELTA * SCALING * torch.stack(steps[START:]).sum(dim=0))


def test_gradients_are_loras_on_the_moved_weight() -> None:
    """A and B have no gradient through the weight's share; x has one."""
    layer = layer_on(base_of())
    list(train(layer))
    moved = nn.Linear(7, 5).double().requires_grad_(False)
    lora = LoRALinear(moved, RANK, SCALING)
    with torch.no_grad():
        moved.weight.copy_(layer.merged().weight - SCALING * layer.lora_B @ layer.lora_A)
        moved.bias.copy_(layer.base.bias)
        lora.lora_A.copy_(layer.lora_A)
        lora.lora_B.copy_(layer.lora_B)
    found = []
    for one in (layer, lora):
        x = data(0)[0].requires_grad_()
        one(x).square().sum().backward()
        found.append((x.grad, one.lora_A.grad, one.lora_B.grad))
    torch.testing.assert_close(found[0], found[1])


def test_a_bf16_weight_does_not_swallow_the_changes() -> None:
    """Small updates vanish when each is added to a bf16 weight; kept as factors they add up."""
    base = base_of(torch.bfloat16)
    layer = layer_on(base)
    layer.follow()
    swallowed = base.weight.clone()
    optimizer = optimizer_of(layer, lr=1e-5)
    for index in range(40):
        before = (layer.lora_B @ layer.lora_A).detach()
        x, y = (tensor.bfloat16() for tensor in data(index))
        (layer(x) - y).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        change = (layer.lora_B @ layer.lora_A).detach() - before
        swallowed += (DELTA * SCALING * change).bfloat16()
    product = SCALING * (layer.lora_B @ layer.lora_A).detach()
    large = base.weight.abs() > 0.1  # the others are small enough to take a change of 1e-5
    assert torch.equal(swallowed[large], base.weight[large])
    weight = layer.merged_weight(base.weight.float()) - base.weight.float()
    torch.testing.assert_close(weight, (1 + DELTA) * product, rtol=1e-3, atol=1e-8)
    assert (weight - product).abs().min() > 0
    assert layer.start_A.dtype == layer.follows.dtype == torch.float32


def test_what_is_saved_is_the_whole_layer() -> None:
    layer, other = layer_on(base_of()), layer_on(base_of())
    *_, expected = train(layer)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(data(0)[0]), expected)


def model_with(method: DeltaLoRA) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, max_position_embeddings=16,
    )  # fmt: skip
    return inject(BertForSequenceClassification(config), method)


def test_a_second_training_loses_nothing_of_what_the_weight_has_moved() -> None:
    """Before and behind the step at which the first training began to follow."""
    layer, twice = layer_on(base_of()), layer_on(base_of())
    list(train(layer))
    twice.load_state_dict(layer.state_dict())  # as a saved adapter is loaded
    list(train(twice))
    start_A, start_B = twice.start_A, twice.start_B
    assert torch.equal(start_A, layer.start_A) and torch.equal(start_B, layer.start_B)
    change = twice.lora_B @ twice.lora_A - start_B @ start_A
    moved = twice.merged().weight - twice.base.weight - SCALING * twice.lora_B @ twice.lora_A
    torch.testing.assert_close(moved, DELTA * SCALING * change)


@pytest.mark.parametrize(("start", "expected"), [(None, 4), (0, 0), (2, 2)])
def test_weights_follow_from_the_warm_ups_end_or_from_where_they_are_told(
    start: int | None, expected: int
) -> None:
    method = DeltaLoRA(rank=2, start=start)
    model = model_with(method)
    layers = [layer for layer in model.modules() if isinstance(layer, DeltaLoRALinear)]
    assert len(layers) == 4
    following = []
    for index in range(8):
        method.before_step(model, Step(index, warmup=4, total=8, seed=0))
        following.append({layer.follows.item() for layer in layers})
    assert following == [{0.0}] * expected + [{1.0}] * (8 - expected)


def test_control_is_plain_lora_at_one_plus_delta_times_alpha() -> None:
    model = model_with(DeltaLoRA(rank=2, alpha=6.0, delta=0.5, control=True))
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    assert [layer.scaling for layer in layers] == [4.5] * 4
    injected(model).before_step(model, Step(0, 0, 1, 0))  # nothing to follow
