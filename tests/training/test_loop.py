from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from peftlab.engine import fast
from peftlab.methods import METHODS, Method, inject, injected, make
from peftlab.models import load_model, load_tokenizer
from peftlab.tasks import Task
from peftlab.training import (
    Diverged,
    Encoded,
    FitResult,
    Loop,
    MemoryMeter,
    Rehearsal,
    TrainingPlan,
    encode,
    fit,
    outputs,
)
from peftlab.training.loop import compute_outputs, seed_generators, step_seed
from peftlab.training.passes import batch_loss
from plans import changed, plan

PLAN = plan(
    kind="classes", epochs=2, batch_size=8, lr=1e-2, head_lr=1e-2, weight_decay=0.0, warmup=0.1,
    clip=1.0, seed=0, device="cpu", autocast=False,
)  # fmt: skip


@pytest.fixture
def run(tiny_model: Path, tiny_task: Task) -> Callable[..., tuple[FitResult, PreTrainedModel]]:
    tokenizer = load_tokenizer(tiny_model)
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    dev = encode(tokenizer, tiny_task.dev.texts, tiny_task.dev.labels, 32)

    def go(
        name: str = "lora", on_row: Callable[..., None] = lambda *_: None, **changes: Any
    ) -> tuple[FitResult, PreTrainedModel]:
        asked = changed(PLAN, **changes)
        model, _ = load_model(str(tiny_model), precision="fp32", seed=asked.seed)
        torch.manual_seed(asked.seed)
        inject(model, name)
        loop = Loop(model, injected(model), train, asked)
        go.answered = []  # (n_dev, num_labels) an epoch
        fitted = fit(loop, dev, on_row, lambda _, out: go.answered.append(out), MemoryMeter())
        return fitted, model

    return go


def losses(fitted: FitResult) -> list[float]:
    return [row["loss"] for row in fitted.curve if "loss" in row]


def test_the_same_run_twice_gives_the_same_bits(run: Callable[..., Any]) -> None:
    one, model = run()
    answered = run.answered
    two, again = run()
    assert losses(one) == losses(two)
    assert torch.equal(answered[-1], run.answered[-1])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_a_training_is_spared_the_search_for_garbage_and_a_pass_does_not_search(
    thawed: None, run: Callable[..., Any]
) -> None:
    frozen: list[int] = []  # objects that Python's collector leaves alone, a step
    _, model = run(on_row=lambda *_: frozen.append(gc.get_freeze_count()))
    assert min(frozen) > 10_000 and gc.get_freeze_count() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: pytest.fail("it takes longer than a pass"))
        with fast(model):
            pass


def test_another_seed_gives_another_run(run: Callable[..., Any]) -> None:
    assert losses(run()[0]) != losses(run(seed=1)[0])


def test_methods_see_the_same_head_data_and_dropout(run: Callable[..., Any]) -> None:
    """At step 0 every method here is the same function, so its first loss is the same."""
    # houlsby is close to the identity only; qlora has another base
    exact = METHODS.keys() - {"houlsby", "qlora"}
    first = {name: losses(run(name, epochs=1)[0])[0] for name in exact}
    assert len(set(first.values())) == 1, first


def test_the_task_is_learned(run: Callable[..., Any], tiny_task: Task) -> None:
    fitted, _ = run("full", epochs=12, lr=3e-3)
    right = run.answered[-1].argmax(-1) == torch.tensor(tiny_task.dev.labels)
    assert right.float().mean() >= 0.9
    assert sum(losses(fitted)[-6:]) < 0.5 * sum(losses(fitted)[:6])


def test_the_curve_has_a_row_a_step_and_one_an_epoch(run: Callable[..., Any]) -> None:
    fitted, _ = run()
    steps = [row for row in fitted.curve if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert steps[-1]["epoch"] == 2.0
    assert [row for row in fitted.curve if "step" not in row] == [{"epoch": 1}, {"epoch": 2}]
    assert len(run.answered) == 2
    assert fitted.train_s > 0
    assert all(row["memory_mib"] > 0 for row in steps)


def test_the_widest_batch_is_tried_first_and_leaves_no_trace(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    batch = Encoded.batch

    def watched(self: Encoded, indices: list[int], device: str = "cpu") -> Any:
        widths.append(len(indices) * self.width(indices))
        return batch(self, indices, device)

    monkeypatch.setattr(Encoded, "batch", watched)
    tried = run()[0]
    assert widths[0] == max(widths[1:7])  # the six batches of the first epoch
    monkeypatch.setattr(Loop, "try_widest", lambda self: None)
    assert losses(run()[0]) == losses(tried)


def test_learning_rate_warms_up_and_decays_to_nothing(run: Callable[..., Any]) -> None:
    fitted, _ = run(warmup=0.25, lr=0.8, epochs=4)  # 24 steps, 6 of them warm-up
    rates = [row["lr"] for row in fitted.curve if "lr" in row]
    expected = [0.8 * (i + 1) / 7 for i in range(6)] + [0.8 * (24 - i) / 18 for i in range(6, 24)]
    assert rates == pytest.approx(expected)


class Spy:
    """A method that notes when its hooks are called and what the gradients were then."""

    def __init__(self) -> None:
        self.method: Method = make("lora")
        self.calls: list[tuple[str, int, int, int]] = []
        self.norms: list[float] = []
        self.clipped: list[float] = []

    def parameter_groups(self, *arguments: Any) -> list[dict[str, Any]]:
        return self.method.parameter_groups(*arguments)

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return self.method.make_optimizer(groups)

    def before_step(self, model: PreTrainedModel, step: Any) -> None:
        self.calls.append(("before_step", step.index, step.warmup, step.total))
        assert all(p.grad is None for p in model.parameters())
        dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
        assert dropouts
        assert all(module.training for module in dropouts)

    def before_update(self, model: PreTrainedModel, step: Any) -> None:
        self.calls.append(("before_update", step.index, step.warmup, step.total))
        self.norms.append(_gradient_norm(model))

    def after_step(self, model: PreTrainedModel, step: Any) -> None:
        self.calls.append(("after_step", step.index, step.warmup, step.total))
        self.clipped.append(_gradient_norm(model))


class Kept(Spy):
    """Keeps the gradients of every step as they are before they are clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[dict[str, Tensor]] = []

    def before_update(self, model: PreTrainedModel, step: Any) -> None:
        super().before_update(model, step)
        named = model.named_parameters()
        self.gradients.append({n: p.grad.double() for n, p in named if p.grad is not None})


def test_steps_are_adamws_formula_on_clipped_gradients(tiny_model: Path, tiny_task: Task) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, worked out in float64, with a clip that bites."""
    train = encode(load_tokenizer(tiny_model), tiny_task.train.texts, tiny_task.train.labels, 32)
    clip, lr, decay = 0.05, 1e-2, 0.1
    asked = changed(PLAN, epochs=3, batch_size=48, lr=lr, head_lr=lr, clip=clip, weight_decay=decay)
    asked = changed(asked, warmup=0.0)
    model, _ = load_model(str(tiny_model), precision="fp32", seed=0)
    spy = Kept()
    inject(model, spy.method)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    value = {n: p.detach().double().clone() for n, p in trained.items()}
    first = {n: torch.zeros_like(v) for n, v in value.items()}
    second = {n: torch.zeros_like(v) for n, v in value.items()}
    loop = Loop(model, spy, train, asked)
    rates = [row["lr"] for epoch in range(3) for row in loop.epoch(epoch)]
    assert min(spy.norms) > 2 * clip
    for step, (rate, gradients) in enumerate(zip(rates, spy.gradients, strict=True), start=1):
        norm = sum(g.square().sum() for g in gradients.values()) ** 0.5
        for n, g in gradients.items():
            g = g * clip / (norm + 1e-6)  # as torch has it
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g.square()
            up = first[n] / (1 - 0.9**step)
            down = (second[n] / (1 - 0.999**step)).sqrt() + 1e-8
            shrink = rate * decay if value[n].dim() > 1 else 0.0  # vectors never decay
            value[n] = value[n] * (1 - shrink) - rate * up / down
    for n, p in trained.items():
        torch.testing.assert_close(p.detach().double(), value[n], rtol=1e-4, atol=1e-6)


def _gradient_norm(model: PreTrainedModel) -> float:
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return torch.stack(norms).norm().item()


def test_hooks_are_called_in_order_with_unclipped_gradients(
    tiny_model: Path, tiny_task: Task
) -> None:
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    inject(model, "lora")
    spy = Spy()
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    loop = Loop(model, spy, train, changed(PLAN, epochs=1, clip=1e-3))
    rows = list(loop.epoch(0))
    names = ["before_step", "before_update", "after_step"]
    assert spy.calls == [(name, i, 1, 6) for i in range(6) for name in names]
    assert min(spy.norms) > 2e-3
    assert max(spy.clipped) == pytest.approx(1e-3, rel=0.01)
    assert len(rows) == 6


@pytest.mark.parametrize("batches", ["random", "grouped"])
def test_every_example_weighs_the_same_in_every_epoch(
    tiny_model: Path, tiny_task: Task, batches: str
) -> None:
    """33 examples in batches of 32: an epoch's gradients sum to so many means over all of them."""
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    inject(model, "head")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    train = encode(tokenizer, tiny_task.train.texts[:33], tiny_task.train.labels[:33], 32)
    run = changed(PLAN, batch_size=32, lr=1e-30, head_lr=1e-30, batches=batches)
    gradients: list[Tensor] = []
    weight = model.classifier.weight
    loop = Loop(model, injected(model), train, run)
    loop.guard.note_gradients = lambda model: gradients.append(weight.grad.clone())  # type: ignore[method-assign]
    list(loop.epoch(0))
    model.zero_grad()
    batch_loss(model, train.batch(list(range(33))), run).backward()
    assert len(gradients) == 2
    torch.testing.assert_close(sum(gradients), 2 * weight.grad, rtol=1e-4, atol=1e-7)


def test_dropout_is_off_in_evaluation(run: Callable[..., Any]) -> None:
    _, model = run("head", epochs=1)
    assert not any(module.training for module in model.modules())


def test_outputs_keep_the_order_of_the_data(tiny_model: Path, tiny_task: Task) -> None:
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    data = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    together = outputs(model, data)
    for index in (0, 7, 30):
        alone = model.eval()(**data.batch([index]).inputs).logits[0]
        torch.testing.assert_close(together[index], alone.detach(), rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_cause(
    run: Callable[..., Any],
) -> None:
    message = r"the loss is \S+ at step \d+; it was .*likely cause: the learning rate \(1e\+30"
    with pytest.raises(Diverged, match=message):
        run("full", lr=1e30, epochs=20)


def test_weights_that_were_broken_before_are_told_apart(tiny_model: Path, tiny_task: Task) -> None:
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    inject(model, "head")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    loop = Loop(model, injected(model), train, PLAN)
    with pytest.raises(Diverged, match=r"at step 1; before any update.*word_embeddings.weight"):
        list(loop.epoch(0))


def test_labels_that_overflow_are_not_blamed_on_the_weights(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model), num_labels=1, precision="fp32")
    inject(model, "full")
    data = encode(tokenizer, [("the cat",), ("a dog",)], [1e39, 0.0], 32)
    loop = Loop(model, injected(model), data, changed(PLAN, kind="regression"))
    with pytest.raises(Diverged, match=r"before any update.*labels or weights are at fault"):
        loop.step([data.batch([0, 1])], 2, 2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_autocast_computes_in_bf16_and_keeps_fp32_weights(run: Callable[..., Any]) -> None:
    exact, _ = run("full")
    rounded, model = run("full", autocast=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses(rounded) == pytest.approx(losses(exact), abs=0.02)
    assert losses(rounded) != losses(exact)


def test_a_step_draws_the_same_whatever_torch_s_seed_was_before(tiny_model: Path) -> None:
    """Its own, too, as a run leaves it that was broken off in its first step."""
    drawn = []
    for before in (123, step_seed(PLAN.seed, 0)):
        model, tokenizer = load_model(str(tiny_model), precision="fp32")
        inject(model, "head")
        data = encode(tokenizer, [("the cat",), ("a dog",)], [1, 0], 32)
        model.train()
        torch.manual_seed(before)
        loop = Loop(model, injected(model), data, PLAN)
        with fast(model):
            drawn.append(loop.step([data.batch([0, 1])], 2, 2))
    assert drawn[0] == drawn[1]


def test_a_stream_begins_as_torch_seeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_generators(5, torch.device("cpu"))
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), expected)

    monkeypatch.setattr(torch.cuda, "manual_seed", (seeds := []).append)
    seed_generators(6, torch.device("cuda"))
    assert (torch.initial_seed(), seeds) == (6, [6])
    of_each = [torch.Generator(), torch.Generator()]
    monkeypatch.setattr(torch.cuda, "default_generators", of_each)
    seed_generators(7, torch.device("cuda", 1))
    assert [torch.initial_seed(), of_each[1].initial_seed(), seeds] == [7, 7, [6]]
    assert of_each[0].initial_seed() != 7


def test_a_batch_goes_to_the_very_device_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    data = Encoded({"input_ids": [[1, 2], [3]]}, [0, 1], {"input_ids": 0}, 0)
    place = replace(changed(PLAN, device="cuda"), index=1).device
    with FakeTensorMode():
        batch = data.batch([0, 1], place)
    assert {t.device for t in (batch.labels, *batch.inputs.values())} == {torch.device("cuda", 1)}
    assert changed(PLAN, device="cuda").device == torch.device("cuda")


def test_answers_are_computed_on_the_model_s_own_device_of_several(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    data = encode(tokenizer, [("the cat",)], [0], 32)
    own, places = data.batch, []
    monkeypatch.setattr(Encoded, "batch", lambda data, i, device: places.append(device) or own(i))
    monkeypatch.setattr(type(model), "device", torch.device("cuda", 1))
    outputs(model, data)
    assert places == [torch.device("cuda", 1)]


def test_a_loss_that_is_no_number_leaves_the_weights_where_it_is_read_late_too(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a device the loss is read behind the update, which at the first step would spoil all."""
    model, tokenizer = load_model(str(tiny_model), num_labels=1, precision="fp32")
    inject(model, "lora")
    data = encode(tokenizer, [("the cat",), ("a dog",)], [float("nan"), 0.0], 32)
    monkeypatch.setattr(TrainingPlan, "device", torch.device("cpu"))
    loop = Loop(model, injected(model), data, changed(PLAN, kind="regression", device="cuda"))
    with pytest.raises(Diverged, match=r"before any update.*labels or weights are at fault"):
        loop.step([data.batch([0, 1])], 2, 2)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_loop_runs_on_cuda(tiny_model: Path, tiny_task: Task) -> None:
    model, tokenizer = load_model(str(tiny_model), precision="bf16")
    inject(model, "lora").to("cuda")
    memory = MemoryMeter("cuda")
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    loop = Loop(model, injected(model), train, changed(PLAN, device="cuda"))
    fitted = fit(loop, train, lambda *_: None, lambda *_: None, memory)
    assert fitted.memory is not None
    assert fitted.memory.train_peak_mib is not None
    assert losses(fitted)[-1] < losses(fitted)[0]


def test_regression_is_the_mean_squared_error(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model), num_labels=1, precision="fp32")
    inject(model, "head")
    data = encode(tokenizer, [("the cat",), ("a dog",)], [1.5, 4.0], 32)
    run = changed(PLAN, kind="regression", head_lr=1e-12, epochs=1)
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    predictions = outputs(model, data).squeeze(-1)
    loss = Loop(model, injected(model), data, run).step([data.batch([0, 1])], 2, 2)
    assert loss == pytest.approx(((predictions - torch.tensor([1.5, 4.0])) ** 2).mean().item())
    assert isinstance(data, Encoded)


def test_a_rehearsals_sample_is_a_share_of_train_or_the_least_there_may_be(
    tiny_model: Path, tiny_task: Task
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    rehearsal = Rehearsal(make("lora"), train, PLAN)
    sizes = {
        (share, least): [len(batch.labels) for batch in rehearsal.sample(share, least)]
        for share, least in ((0.5, 4), (0.1, 20), (0.1, 64))
    }
    assert sizes == {(0.5, 4): [8, 8, 8], (0.1, 20): [7, 7, 6], (0.1, 64): [8] * 6}
    labels = torch.cat([batch.labels for batch in rehearsal.sample(0.5, 4)]).tolist()
    assert abs(labels.count(1) - tiny_task.train.labels.count(1) / 2) <= 1


def test_a_rehearsal_trains_for_as_many_updates_as_asked_and_the_same_each_time(
    tiny_model: Path, tiny_task: Task
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    found = []
    for updates in (5, 5, 0):
        model, _ = load_model(str(tiny_model), precision="fp32")
        torch.manual_seed(0)
        inject(model, "lora")
        rehearsal = Rehearsal(injected(model), train, PLAN)
        rehearsal.fit(model, rehearsal.sample(0.5, 4), updates)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_rehearsal_takes_every_batch_once_an_epoch_each_time_in_another_order(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    train = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
    model, _ = load_model(str(tiny_model), precision="fp32")
    inject(model, "head")
    rehearsal = Rehearsal(injected(model), train, PLAN)
    batches = rehearsal.sample(1.0, 4)
    names = {batch.inputs["input_ids"].data_ptr(): i for i, batch in enumerate(batches)}
    taken: list[int] = []

    def step(self: Loop, parts: list[Any], n: int, usual: float) -> float:
        taken.append(names[parts[0].inputs["input_ids"].data_ptr()])
        return 0.0

    monkeypatch.setattr(Loop, "step", step)
    rehearsal.fit(model, batches, 4 * len(names))
    epochs = [taken[i : i + len(names)] for i in range(0, len(taken), len(names))]
    assert all(sorted(epoch) == list(range(len(names))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_dev_is_answered_in_the_precision_that_is_trained_in(
    tiny_model: Path, tiny_task: Task
) -> None:
    """Else a model that computes in bf16 would be judged by what it gives in fp32."""
    model, tokenizer = load_model(str(tiny_model), precision="fp32")
    dev = encode(tokenizer, tiny_task.dev.texts, tiny_task.dev.labels, 32)
    found = compute_outputs(model, dev, plan(autocast=True))
    by_precision = [outputs(model, dev, autocast=autocast) for autocast in (True, False)]
    assert torch.equal(found, by_precision[0]) and not torch.equal(found, by_precision[1])
