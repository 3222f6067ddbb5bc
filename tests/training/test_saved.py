"""What the meter of saved tensors counts, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.bench.process import activation_checkpointing
from peftlab.engine import fast, model_tensors
from peftlab.engine.frozen import FrozenLinear
from peftlab.engine.packing import rows_for
from peftlab.engine.weights import onednn_multiplies
from peftlab.layers import LoRALinear
from peftlab.methods import METHODS, inject, injected, make
from peftlab.models import load_model
from peftlab.tasks import Task
from peftlab.training import FitResult, Loop, MemoryMeter, SavedMeter, encode, fit
from peftlab.training.passes import batch_loss, parts_in, widest
from plans import changed, plan

PLAN = plan(
    kind="classes", epochs=1, batch_size=8, lr=1e-3, head_lr=1e-3, weight_decay=0.0, warmup=0.1,
    clip=1.0, seed=0, device="cpu", autocast=False,
)  # fmt: skip
HIDDEN = 32
needs_bf16 = pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2).bfloat16()), reason="no bf16 products in oneDNN here"
)


def saved_bytes(run: Callable[[], Tensor], *own: Tensor) -> float:
    with SavedMeter(own) as saved:
        kept = run()
    assert kept.requires_grad
    return saved.mib() * 2**20


def test_each_storage_counts_once_and_weights_and_inputs_do_not() -> None:
    """Relu keeps its output, which is the second layer's input; cross-entropy its log-softmax."""
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    x, labels = torch.randn(7, 20), torch.zeros(7, dtype=torch.long)
    found = saved_bytes(lambda: F.cross_entropy(model(x), labels), *model_tensors(model), x, labels)
    total_of_weights = 1  # which cross-entropy divides by
    assert found == 4 * (7 * 30 + 7 * 5 + total_of_weights)


def test_what_leads_nowhere_does_not_count() -> None:
    x = torch.randn(50, requires_grad=True)

    def run() -> Tensor:
        x.exp().exp()  # dropped at once
        return x.exp()

    assert saved_bytes(run, x) == 4 * 50


def test_lora_keeps_what_its_equation_needs() -> None:
    """Of each update x Aᵀ (n, rank), and x for A; the first x is the input, the second relu's."""
    frozen = [nn.Linear(20, 30).requires_grad_(False), nn.Linear(30, 5).requires_grad_(False)]
    model = nn.Sequential(
        LoRALinear(frozen[0], rank=2, scaling=1.0), nn.ReLU(), LoRALinear(frozen[1], 2, 1.0)
    )
    x = torch.randn(7, 20)
    found = saved_bytes(lambda: model(x).sum(), *model_tensors(model), x)
    assert found == 4 * (7 * 2 + 7 * 2 + 7 * 30)


@pytest.fixture
def trained(tiny_model: Path, tiny_task: Task) -> Callable[..., tuple[FitResult, Loop]]:
    def go(name: str, **changes: Any) -> tuple[FitResult, Loop]:
        model, tokenizer = load_model(str(tiny_model), precision="fp32")
        inject(model, name)
        data = encode(tokenizer, tiny_task.train.texts, tiny_task.train.labels, 32)
        loop = Loop(model, injected(model), data, changed(PLAN, **changes))
        return fit(loop, data, lambda *_: None, lambda *_: None, MemoryMeter()), loop

    return go


def activations(fitted: FitResult) -> float:
    assert fitted.memory is not None
    found = fitted.memory.by_part["activations"]
    assert found is not None
    return found * 2**20


def rows(loop: Loop) -> int:
    """That the widest part was laid in; half a batch has more than half of them."""
    part = widest(parts_in(0, loop.train, loop.plan), loop.train, loop.plan)
    return rows_for(sum(loop.train.lengths[index] for index in part))


def test_head_keeps_what_its_head_needs_and_nothing_of_the_base(
    trained: Callable[..., tuple[FitResult, Loop]],
) -> None:
    """The pooler's input, its tanh, dropout's output, log-softmax and its divisor; no mask."""
    fitted, _ = trained("head")
    assert activations(fitted) == 4 * (8 * 3 * HIDDEN + 8 * 2 + 1)


def test_the_base_s_activations_grow_with_the_part_and_adapters_keep_more_than_a_head(
    trained: Callable[..., tuple[FitResult, Loop]],
) -> None:
    head, lora, full = (activations(trained(name)[0]) for name in ("head", "lora", "full"))
    assert 10 * head < lora < full
    each = lora / rows(trained("lora")[1])
    for changes in ({"batch_size": 16}, {"accumulation": 2}):
        fitted, loop = trained("lora", **changes)
        assert activations(fitted) / rows(loop) == pytest.approx(each, rel=0.05)
    halved = activations(trained("lora", accumulation=2)[0])
    assert 0.5 * lora <= halved < 0.6 * lora < activations(trained("lora", batch_size=16)[0]) / 1.8


def test_the_peak_is_the_sum_of_its_parts_and_a_rest(
    trained: Callable[..., tuple[FitResult, Loop]],
) -> None:
    memory = trained("lora")[0].memory
    assert memory is not None
    *_, last = memory.by_part
    assert last == "rest"
    if memory.train_peak_mib is not None and memory.by_part["rest"]:
        parts = [value for value in memory.by_part.values() if value is not None]
        assert sum(parts) == pytest.approx(memory.train_peak_mib)


def test_with_checkpointing_it_counts_what_is_kept_then(tiny_model: Path, tiny_task: Task) -> None:
    found = []
    for checkpointing in (False, True):
        model, tokenizer = load_model(str(tiny_model), precision="fp32")
        inject(model, "lora")
        data = encode(tokenizer, tiny_task.train.texts[:8], tiny_task.train.labels[:8], 32)
        loop = Loop(model, injected(model), data, PLAN)
        with activation_checkpointing(model, checkpointing):
            loop.try_widest()
        assert loop.saved_mib is not None
        found.append(loop.saved_mib * 2**20)
    inputs = 2 * 4 * 8 * data.width(range(8)) * HIDDEN  # of two layers
    assert inputs <= found[1] < found[0] / 2


def test_steps_that_are_timed_are_not_watched(
    trained: Callable[..., tuple[FitResult, Loop]], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []
    note = SavedMeter._note
    step = Loop.step
    now: list[Loop] = []

    def noted(self: SavedMeter, tensor: Tensor) -> Tensor:
        updates.append(len(now))
        return note(self, tensor)

    def stepped(self: Loop, *batch: Any) -> float:
        now.append(self)
        return step(self, *batch)

    monkeypatch.setattr(SavedMeter, "_note", noted)
    monkeypatch.setattr(Loop, "step", stepped)
    trained("lora")
    assert len(now) == 6
    assert set(updates) == {0}


@pytest.fixture
def in_bf16(tiny_model: Path, tiny_task: Task) -> Callable[[str], tuple[Any, Any]]:
    """A model inside the engine, trained layers apart in bf16 where the method allows it."""

    def build(name: str) -> tuple[Any, Any]:
        precision = make(name).base_precision or "bf16"
        model, tokenizer = load_model(str(tiny_model), precision=precision)
        torch.manual_seed(0)
        inject(model, name).train()
        data = encode(tokenizer, tiny_task.train.texts[:8], tiny_task.train.labels[:8], 32)
        return model, data.batch(range(8))

    return build


@pytest.mark.parametrize("name", METHODS)
def test_watching_changes_no_gradient(name: str, in_bf16: Callable[[str], tuple[Any, Any]]) -> None:
    found = []
    for watched in (False, True):
        model, batch = in_bf16(name)
        torch.manual_seed(1)
        with fast(model):
            if watched:
                with SavedMeter(model_tensors(model)):
                    loss = batch_loss(model, batch, PLAN)
            else:
                loss = batch_loss(model, batch, PLAN)
            loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() != set()
    for key, gradient in found[0].items():
        assert torch.equal(found[1][key], gradient), key


@pytest.mark.parametrize("name", METHODS)
def test_no_function_of_ours_keeps_a_tensor_that_the_meter_does_not_see(
    name: str, in_bf16: Callable[[str], tuple[Any, Any]]
) -> None:
    """What hangs on `ctx` is unseen, unlike what `save_for_backward` is given."""
    model, batch = in_bf16(name)
    with fast(model):
        loss = batch_loss(model, batch, PLAN)
        for node in nodes(loss.grad_fn):
            for key, value in getattr(node, "__dict__", {}).items():
                held = value if isinstance(value, list | tuple) else [value]
                assert not any(isinstance(v, Tensor) for v in held), f"{type(node).__name__}.{key}"


def nodes(start: Any) -> Iterator[Any]:
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [function for function, _ in node.next_functions]
            yield node


@needs_bf16
def test_joined_weights_are_the_model_s_own(in_bf16: Callable[[str], tuple[Any, Any]]) -> None:
    """A product that autograd sees keeps the weight that query, key and value share."""
    model, _ = in_bf16("lora")
    with fast(model):
        joined = [m for m in model.modules() if isinstance(m, FrozenLinear)]
        x = torch.randn(3, joined[0].in_features, requires_grad=True).bfloat16()
        inside = set(model.parameters()) | set(model.buffers())
        assert not any(p is joined[0].weight for p in inside)
        assert saved_bytes(lambda: joined[0].product(x), *inside, x) > 0
        assert saved_bytes(lambda: joined[0].product(x), *model_tensors(model), x) == 0
