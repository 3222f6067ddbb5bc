"""Guards: what is not trained as it should be stops the run and is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import peftlab
from peftlab.layers import quantise_linears
from peftlab.methods import METHODS, Method, Prepared, inject, make
from peftlab.methods.dylora import DyLoRALinear
from peftlab.models import linear_names
from peftlab.training import Diverged, Encoded, Loop, Rehearsal, Untrained
from peftlab.training.guard import LATEST, TrainingCheck, check_groups
from plans import changed, plan
from tiny import bert

PLAN = plan(
    kind="classes", epochs=6, batch_size=8, lr=1e-2, head_lr=1e-2, weight_decay=0.01, warmup=0.1,
    clip=1.0, seed=0, device="cpu", autocast=False,
)  # fmt: skip
DATA = Encoded(
    {
        "input_ids": [[1 + (7 * i + j) % 39 for j in range(4 + i % 5)] for i in range(32)],
        "attention_mask": [[1] * (4 + i % 5) for i in range(32)],
    },
    [i % 2 for i in range(32)],
    {"input_ids": 0, "attention_mask": 0},
    n_truncated=0,
)
VARIANTS = [
    *METHODS,
    "dylora last",
    "dylora strict",
    "lora-fa corrected",
    "houlsby pfeiffer",
    "delta-lora control",
]
CHANGES: dict[str, dict[str, Any]] = {
    "last": {"update": "last", "rank": 4},
    "strict": {"update": "last", "rank": 4, "strict": True},
    "corrected": {"correct_gradient": True},
    "pfeiffer": {"variant": "pfeiffer"},
    "control": {"control": True},
}


def tiny(method: Method) -> PreTrainedModel:
    model = bert(p=0.1)
    if method.base_precision == "nf4":
        quantise_linears(model, linear_names(model), "fp32")
    return inject(model, method)


def steps(loop: Loop) -> Iterator[int]:
    for epoch in range(loop.plan.settings.epochs):
        for row in loop.epoch(epoch):
            yield row["step"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_run_of_every_method_passes(variant: str) -> None:
    name, *changes = variant.split()
    method = make(name, CHANGES[changes[0]] if changes else {})
    model = tiny(method)
    if isinstance(method, Prepared):
        method.prepare(model, Rehearsal(method, DATA, PLAN))
    loop = Loop(model, method, DATA, PLAN)
    assert not loop.guard.exempt
    assert loop.guard.start
    assert list(steps(loop)) == list(range(1, 25))
    assert not loop.guard.start  # it was checked


@pytest.mark.parametrize("variant", ["dylora last", "dylora strict"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_were_drawn_once_are_not_missed_in_a(variant: str, seed: int) -> None:
    """A row of A has a gradient once its column of B has moved: from its second draw on."""
    method = make("dylora", CHANGES[variant.split()[1]] | {"rank": 12})
    run = changed(PLAN, epochs=2, seed=seed)  # 8 updates, checked after 2
    loop = Loop(tiny(method), method, DATA, run)
    assert list(steps(loop)) == list(range(1, 9))


def lora() -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    method = make("lora", {"rank": 2})
    model = tiny(method)
    return model, method.parameter_groups(model, 0.1, 0.1, 0.0)


def test_groups_that_hold_all_once_pass() -> None:
    check_groups(*lora())


def test_a_parameter_in_no_group_is_named() -> None:
    model, groups = lora()
    groups[0]["params"].pop(0)
    with pytest.raises(Untrained, match=r"missing bert\.encoder\.layer\.0\.attention\.self\.query"):
        check_groups(model, groups)


def test_a_parameter_in_two_groups_is_named() -> None:
    model, groups = lora()
    groups.append({"params": [model.classifier.bias]})
    with pytest.raises(Untrained, match=r"missing none; twice classifier\.bias; not trainable: 0"):
        check_groups(model, groups)


def test_a_frozen_parameter_in_a_group_is_counted() -> None:
    model, groups = lora()
    groups.append({"params": [model.bert.embeddings.word_embeddings.weight]})
    with pytest.raises(Untrained, match=r"missing none; twice none; not trainable: 1"):
        check_groups(model, groups)


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(Untrained, match="nothing in the model is trainable; inject a method"):
        check_groups(nn.Linear(2, 2).requires_grad_(False), [])


def test_many_names_are_cut_short() -> None:
    model, _ = lora()
    with pytest.raises(Untrained, match=r"lora_A, .* and 7 more; twice none"):
        check_groups(model, [])


def test_groups_are_checked_before_the_loop_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("lora")
    model = tiny(method)
    monkeypatch.setattr(
        type(method), "parameter_groups", lambda *_: [{"params": [model.classifier.weight]}]
    )
    with pytest.raises(Untrained, match="must hold every trainable parameter once"):
        Loop(model, method, DATA, PLAN)


def fails(spoil: Callable[[Loop], Any], match: str, name: str = "lora", **settings: Any) -> None:
    """A run that `spoil` is done to stops at its check, a quarter of 24 steps, and says so."""
    method = make(name, settings)
    loop = Loop(tiny(method), method, DATA, PLAN)
    spoil(loop)
    with pytest.raises(Untrained, match=match):
        list(steps(loop))
    assert loop.index == 6


def test_a_parameter_without_a_gradient_is_named() -> None:
    def spoil(loop: Loop) -> None:
        loop.model.bert.pooler.register_forward_hook(lambda m, x, out: out.detach())

    fails(spoil, r"after 6 updates .*: bert.encoder.layer.0.attention.self.query.lora_A has had no")


def test_a_gradient_of_zeros_is_none() -> None:
    def spoil(loop: Loop) -> None:
        loop.model.classifier.bias.register_hook(torch.zeros_like)

    fails(spoil, r"should be: classifier\.bias has had no gradient$")


def test_a_parameter_that_has_not_moved_is_named() -> None:
    def spoil(loop: Loop) -> None:
        bias = loop.model.classifier.bias
        start = bias.detach().clone()
        loop.optimizer.register_step_post_hook(lambda *_: bias.data.copy_(start))

    fails(spoil, r"should be: classifier\.bias has not moved$")


def test_doras_magnitude_must_move_too() -> None:
    def spoil(loop: Loop) -> None:
        for layer in loop.model.modules():
            if hasattr(layer, "magnitude"):
                layer.magnitude.register_hook(torch.zeros_like)

    fails(spoil, r"query\.magnitude has had no gradient", "dora")


def test_dropout_in_evaluation_mode_is_named() -> None:
    def spoil(loop: Loop) -> None:
        modes = loop.model.train
        loop.model.train = lambda mode=True: modes(mode).dropout.eval()

    fails(spoil, r"should be: dropout dropout is in evaluation mode$")


def test_a_model_without_dropout_is_fine() -> None:
    method = make("lora")
    model = tiny(method)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loop = Loop(model, method, DATA, PLAN)
    for _ in steps(loop):
        model.dropout.eval()
    assert loop.index == 24


def test_rows_of_dylora_that_stay_idle_are_named() -> None:
    def spoil(loop: Loop) -> None:
        layer = loop.model.bert.encoder.layer[0].attention.self.query
        layer.lora_B.register_hook(lambda g: torch.cat([torch.zeros_like(g[:, :1]), g[:, 1:]], 1))

    fails(spoil, r"no gradient for column 1 of .*0\.attention\.self\.query\.lora_B", "dylora")


def test_layers_that_no_answer_depends_on_may_stay_idle() -> None:
    """Longformer's query of the last block: dylora alone refused to train there."""
    model = tiny(make("dylora"))
    unread = "bert.encoder.layer.0.attention.self.query"
    query = model.get_submodule(unread)
    query.was_drawn[:] = True
    for unread_too, named in (((), True), ((unread,), False)):
        watch = TrainingCheck(model, 8, unread_too)
        watch.without_gradient, watch.outside_graph = set(), set()
        watch.start = dict.fromkeys(watch.start, (-1, -1))  # all else has moved
        with pytest.raises(Untrained, match=rf"column 1 of {unread}") if named else nullcontext():
            watch.check(model, watch.due)


def test_rows_of_a_that_were_drawn_twice_must_have_had_a_gradient() -> None:
    def spoil(loop: Loop) -> None:
        for name, parameter in loop.model.named_parameters():
            if name.endswith("lora_A"):
                parameter.register_hook(torch.zeros_like)

    fails(spoil, r"query\.lora_A has had no gradient", "dylora", rank=2, update="last")


@pytest.mark.parametrize(("total", "due"), [(8, 2), (24, 6), (80, 20), (4000, 20)])
def test_the_check_comes_after_a_quarter_of_the_run_and_at_most_latest(
    total: int, due: int
) -> None:
    watch = TrainingCheck(nn.Linear(2, 2), total)
    assert (watch.due, watch.exempt) == (due, False)
    assert due <= LATEST


@pytest.mark.parametrize("total", [1, 4, 7])
def test_a_run_too_short_for_a_gradient_of_a_is_exempt(total: int) -> None:
    model = tiny(make("dylora"))
    for layer in model.modules():
        if isinstance(layer, DyLoRALinear):
            layer.was_drawn[:] = True
    assert model.bert.encoder.layer[0].attention.self.query.idle("query")
    watch = TrainingCheck(model, total)
    assert watch.exempt
    assert not watch.start
    for updates in range(1, total + 1):
        watch.note_gradients(model)
        watch.check(model, updates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_smallest_change_counts_as_one(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4, bias=False).to(dtype)
    watch = TrainingCheck(layer, total=8)
    layer(torch.ones(1, 4, dtype=dtype)).sum().backward()
    watch.note_gradients(layer)
    with torch.no_grad():
        layer.weight[1, 2] = torch.nextafter(layer.weight[1, 2], layer.weight.new_tensor(9.0))
    watch.check(layer, updates=2)


def test_a_tensor_that_the_model_never_uses_is_noted_and_no_error() -> None:
    """BigBird's classifier, for one, does not read its pooler."""
    model = tiny(make("full"))
    model.bert.spare = nn.Linear(3, 3)
    loop = Loop(model, make("full"), DATA, PLAN)
    list(steps(loop))
    assert loop.guard.unused == ["bert.spare.bias", "bert.spare.weight"]


def test_a_step_that_rounding_swallows_is_not_called_stuck() -> None:
    """LayerNorm's γ at 1 does not move by the first, tiny steps of a long warm-up."""
    layer = nn.LayerNorm(4)
    watch = TrainingCheck(layer, total=8)
    layer.weight.grad, layer.bias.grad = torch.ones(4), torch.ones(4)
    watch.note_gradients(layer)
    with torch.no_grad():
        layer.bias.add_(1e-9)
    watch.check(layer, updates=2, reached_lr=1e-8)
    watch = TrainingCheck(layer, total=8)
    watch.note_gradients(layer)
    with pytest.raises(Untrained, match="weight has not moved"):
        watch.check(layer, updates=2, reached_lr=1e-3)


def test_many_steps_that_rounding_swallows_are_not_one_that_it_does_not() -> None:
    """Twenty steps of 5.5e-8 reach further than one that would move 1.0001, and none moves it."""
    method = make("full")
    model = tiny(method)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm.weight" in name:
                p.fill_(1.0001)
    slow = changed(PLAN, lr=5.5e-8, epochs=20, warmup=0.0, weight_decay=0.0)
    loop = Loop(model, method, DATA, slow)
    for step in steps(loop):
        if step > loop.guard.due:
            break
    weight = model.bert.embeddings.LayerNorm.weight
    assert bool((weight == torch.tensor(1.0001)).all())


def test_what_no_answer_depends_on_may_lack_a_gradient() -> None:
    layer = nn.Linear(2, 2)
    loss = (0 * layer.weight).sum() + layer.bias.sum()
    for unread, named in (((), True), (("0",), False)):
        model = nn.Sequential(layer)
        model.base_model_prefix = "0"
        watch = TrainingCheck(model, 8, unread)
        layer.zero_grad()
        loss.backward(retain_graph=True)
        watch.note_gradients(model)
        with torch.no_grad():
            layer.bias.add_(1.0)
        if named:
            with pytest.raises(Untrained, match=r"0\.weight has had no gradient"):
                watch.check(model, updates=2)
        else:
            watch.check(model, updates=2)
            assert watch.unused == ["0.weight"]


def test_a_diverged_run_names_the_highest_rate_of_all() -> None:
    method = make("full")
    with pytest.raises(Diverged, match=r"the learning rate \(3e\+38 at its highest\) is too high"):
        list(steps(Loop(tiny(method), method, DATA, changed(PLAN, lr=1e-5, head_lr=3e38))))


def test_answers_that_are_no_numbers_end_a_training(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_task: Any
) -> None:
    """Else whoever scores them would fail, and with it all other cells."""
    monkeypatch.setattr(
        "peftlab.training.loop.compute_outputs",
        lambda model, dev, plan: torch.full((len(dev), 2), float("nan")),
    )
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with pytest.raises(Diverged, match="not finite after epoch 1"):
        peftlab.train(model, tokenizer, tiny_task, "head", epochs=1, batch_size=8)


def test_biases_that_move_as_far_up_as_down_have_moved() -> None:
    """Those of two classes: their bits' sum stays, where both have one sign and exponent."""
    bias = nn.Parameter(torch.tensor([0.032, 0.050]))
    model = nn.Module()
    model.register_parameter("bias", bias)
    watch = TrainingCheck(model, total=40)
    bias.grad = torch.tensor([1.0, -1.0])
    watch.note_gradients(model)
    one_up = torch.tensor([4096, -4096], dtype=torch.int32)
    with torch.no_grad():
        bias.copy_((bias.view(torch.int32) + one_up).view(torch.float32))
    watch.check(model, watch.due)


def test_answers_at_a_rank_that_are_no_numbers_end_a_training(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_task: Any
) -> None:
    """Else the first class would pass for the answer to all."""
    monkeypatch.setattr(
        "peftlab.bench.process.compute_outputs",
        lambda model, dev, plan: torch.full((len(dev), 2), float("nan")),
    )
    model, tokenizer = peftlab.load_model(str(tiny_model))
    with pytest.raises(Diverged, match="not finite after epoch 1"):
        peftlab.train(model, tokenizer, tiny_task, "dylora", epochs=1, batch_size=8)


def test_a_module_that_only_begins_like_one_that_is_not_read_is_looked_at() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    watch = TrainingCheck(model, 8, unread=("1",))
    model.requires_grad_(False)
    model[1].weight.requires_grad_(True)
    model[10].weight.requires_grad_(True)
    with pytest.raises(Untrained, match=r"10\.weight has had no gradient"):
        watch.check(model, updates=2)
    assert {name for name in watch.unused if name.startswith("1.")} == {"1.weight", "1.bias"}
    assert not [name for name in watch.unused if name.startswith("10.")]
