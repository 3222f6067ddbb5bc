"""DyLoRA: one LoRA cut to any rank, the draw of a step's rank, and which rows learn in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftlab.layers import LoRALinear
from peftlab.methods import DyLoRA, inject, injected
from peftlab.methods.dylora import DyLoRALinear
from peftlab.training.loop import Step
from tiny import bert

RANK, ALPHA = 4, 6.0


def layer_of(last: bool = False) -> DyLoRALinear:
    """7 inputs, 5 outputs, with a bias, away from its start."""
    torch.manual_seed(0)
    layer = DyLoRALinear(nn.Linear(7, 5).double().requires_grad_(False), RANK, ALPHA, last=last)
    nn.init.normal_(layer.lora_B)
    return layer


def lora_of_rank(layer: DyLoRALinear, b: int) -> LoRALinear:
    lora = LoRALinear(layer.base, b, ALPHA / b)
    with torch.no_grad():
        lora.lora_A.copy_(layer.lora_A[:b])
        lora.lora_B.copy_(layer.lora_B[:, :b])
    return lora


def tiny(**settings: Any) -> PreTrainedModel:
    method = DyLoRA(rank=RANK, alpha=ALPHA, **settings)
    model = inject(bert(torch.float64, p=0.1), method)
    for layer in layers(model):
        nn.init.normal_(layer.lora_B)
    return model.train()


def layers(model: nn.Module) -> list[DyLoRALinear]:
    return [layer for layer in model.modules() if isinstance(layer, DyLoRALinear)]


def loss_of(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(1, 29).view(4, 7)
    loss: Tensor = model(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss
    return loss


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_cut_to_rank_b_it_is_lora_of_rank_b_at_the_same_alpha(b: int) -> None:
    layer, x = layer_of().eval(), torch.randn(3, 7).double()
    layer.eval_rank = b
    lora = lora_of_rank(layer, b)
    torch.testing.assert_close(layer(x), lora(x))
    torch.testing.assert_close(layer.merged().weight, lora.merged().weight)


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_a_step_at_rank_b_has_the_gradients_of_lora_of_rank_b(b: int) -> None:
    layer, x = layer_of().train(), torch.randn(3, 7).double()
    layer.train_rank, layer.eval_rank = b, RANK
    lora = lora_of_rank(layer, b)
    for one in (layer, lora):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer.lora_A.grad[:b], lora.lora_A.grad)
    torch.testing.assert_close(layer.lora_B.grad[:, :b], lora.lora_B.grad)
    assert not layer.lora_A.grad[b:].any()
    assert not layer.lora_B.grad[:, b:].any()


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_with_update_last_one_row_alone_has_the_same_gradient(b: int) -> None:
    last, every, x = layer_of(last=True).train(), layer_of().train(), torch.randn(3, 7).double()
    for layer in (last, every):
        layer.train_rank = b
        layer(x).square().sum().backward()
    torch.testing.assert_close(last(x), every(x))
    for name, row in {"lora_A": lambda g: g, "lora_B": lambda g: g.T}.items():
        ours, theirs = (row(layer.get_parameter(name).grad) for layer in (last, every))
        assert ours.any(dim=1).nonzero().flatten().tolist() == [b - 1]
        torch.testing.assert_close(ours[b - 1], theirs[b - 1])


def test_ranks_are_drawn_uniformly() -> None:
    method = DyLoRA(rank=8)
    for seed in range(3):
        drawn = Counter(method.draw(seed, index) for index in range(1000))
        assert set(drawn) == set(range(1, 9))
        assert chisquare([drawn[b] for b in range(1, 9)]).pvalue > 0.01


def test_a_draw_is_set_by_seed_and_step_alone() -> None:
    method = DyLoRA(rank=8)
    torch.manual_seed(0)
    first = [method.draw(3, index) for index in range(50)]
    torch.manual_seed(1)
    assert [method.draw(3, index) for index in range(50)] == first
    assert [method.draw(4, index) for index in range(50)] != first
    # of neighbouring steps and seeds alike, none follows from the other
    pairs = Counter(
        (method.draw(s, i), method.draw(s, i + 1)) for s in range(40) for i in range(40)
    )
    assert chisquare([pairs[a, b] for a in range(1, 9) for b in range(1, 9)]).pvalue > 1e-3


def test_a_draw_leaves_the_runs_dropout_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    DyLoRA().draw(seed=1, index=2)
    assert torch.equal(torch.rand(3), expected)


def test_one_rank_holds_for_all_layers_and_forwards_of_a_step() -> None:
    model = tiny()
    method: Any = injected(model)
    seen = set()
    for index in range(12):
        method.before_step(model, Step(index, 0, 12, seed=5))
        for _ in range(2):
            loss_of(model)
            assert {layer.rank for layer in layers(model)} == {method.draw(5, index)}
        seen.add(method.draw(5, index))
    assert seen == set(range(1, RANK + 1))


def test_evaluation_is_at_the_full_rank_whatever_was_drawn() -> None:
    model = tiny()
    expected = loss_of(model.eval())
    index = next(i for i in range(20) if injected(model).draw(1, i) == 2)
    injected(model).before_step(model, Step(index, 0, 20, seed=1))
    assert {layer.train_rank for layer in layers(model)} == {2}
    assert torch.equal(loss_of(model.eval()), expected)


def test_ranks_go_through_all_and_end_at_the_full_one() -> None:
    model = tiny().eval()
    full = loss_of(model)
    losses = {rank: loss_of(model).item() for rank in injected(model).ranks(model)}
    assert list(losses) == [1, 2, 3, 4]
    assert len(set(losses.values())) == 4
    assert losses[RANK] == full.item() == loss_of(model).item()


def trained(model: PreTrainedModel, steps: list[int]) -> dict[str, Tensor]:
    """Train at the steps of these indices; what each row of A and column of B has moved."""
    method: Any = injected(model)
    optimizer = method.make_optimizer(method.parameter_groups(model, 0.01, 0.01, 0.1))
    for index in steps:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        step = Step(index, 0, len(steps), seed=0)
        method.before_step(model, step)
        loss_of(model).backward()
        method.before_update(model, step)
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    moved = {n: (p - before[n]).detach().abs() for n, p in model.named_parameters()}
    return {
        n: (m.amax(dim=1) if n.endswith("lora_A") else m.amax(dim=0)) > 0
        for n, m in moved.items()
        if "lora_" in n
    }


@pytest.mark.parametrize("strict", [True, False])
def test_rows_that_were_not_drawn_move_by_momentum_unless_strict(strict: bool) -> None:
    method = DyLoRA(rank=RANK)
    drawn = [method.draw(0, index) for index in range(20)]
    first, second = drawn.index(2), drawn.index(4)
    model = tiny(update="last", strict=strict)
    rows = trained(model, [first, second])
    assert len(rows) == 8
    assert not any("saved" in vars(layer) for layer in layers(model))  # copies of A and B
    for name, moved in rows.items():
        # the weights' decay moves the rows that no step has had, too
        assert moved.tolist() == ([False, False, False, True] if strict else [True] * 4), name


@pytest.mark.parametrize("strict", [True, False])
def test_rows_beyond_the_drawn_rank_move_by_momentum_unless_strict(strict: bool) -> None:
    method = DyLoRA(rank=RANK)
    drawn = [method.draw(0, index) for index in range(20)]
    model = tiny(strict=strict)
    rows = trained(model, [drawn.index(4), drawn.index(2)])
    for name, moved in rows.items():
        assert moved.tolist() == ([True, True, False, False] if strict else [True] * 4), name


def test_idle_names_the_rows_that_were_drawn_without_a_gradient() -> None:
    model = tiny()
    method: Any = injected(model)
    assert [layer.idle("layer") for layer in layers(model)] == 4 * [[]]  # nothing was drawn yet
    for layer in layers(model):
        layer.train_rank = 2
    loss_of(model).backward()
    layers(model)[1].lora_B.grad[:, 1] = 0.0
    method.before_update(model, Step(0, 0, 1, 0))
    assert layers(model)[0].idle("query") == []
    assert layers(model)[1].idle("value") == ["column 2 of value.lora_B, though its rank was drawn"]


def test_an_evaluation_at_ranks_that_is_stopped_leaves_the_full_one() -> None:
    model = tiny()
    method = injected(model)
    assert isinstance(method, DyLoRA)
    ranks = method.ranks(model)
    assert next(ranks) == 1
    ranks.close()  # type: ignore[attr-defined]
    assert {layer.eval_rank for layer in layers(model)} == {RANK}
