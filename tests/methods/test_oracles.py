"""Equalities between methods: each is another one where its own idea has no effect.

Unless a test says otherwise, both sides are trained for some steps from the same pairs on the same
batches, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.bench.process import count
from peftlab.layers import LoRALinear, nf4, quantise_linears
from peftlab.methods import LoRA, Method, inject, injected, make
from peftlab.methods.dora import DoRALinear
from peftlab.methods.lora_drop import keep
from peftlab.models import linear_names
from peftlab.training import Step
from tiny import bert

TARGETS = "query,value,ffn-in,ffn-out"
STEPS = 30


def tiny(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model = bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def adapted(name: str, base: PreTrainedModel | None = None, **settings: Any) -> PreTrainedModel:
    """A method on the tiny model; A is drawn alike for all of one rank."""
    model = tiny() if base is None else base
    torch.manual_seed(5)
    return inject(model, make(name, {"alpha": 6.0, "targets": TARGETS} | settings))


def batch(index: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(index)
    return {
        "input_ids": torch.randint(1, 40, (8, 7), generator=draws),
        "attention_mask": torch.ones(8, 7).long(),
        "labels": torch.randint(0, 2, (8,), generator=draws),
    }


def train(model: Any, steps: int = STEPS, warmup: int = 3, **changes: Any) -> list[float]:
    """Losses of the run. `changes` are put into the optimizer's groups."""
    method = injected(model)
    optimizer = method.make_optimizer(method.parameter_groups(model, 1e-2, 1e-2, 0.01))
    for group in optimizer.param_groups:
        group |= changes
    losses = []
    model.train()
    for index in range(steps):
        step = Step(index, warmup, steps, seed=0)
        method.before_step(model, step)
        loss = model(**batch(index)).loss
        loss.backward()
        method.before_update(model, step)
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(**batch(99)).logits
    return result


def equal(one: PreTrainedModel, other: PreTrainedModel, **settings: Any) -> None:
    """Bit for bit, over a whole run; and training has changed something."""
    start = logits(one)
    assert train(one, **settings) == train(other, **settings)
    assert torch.equal(logits(one), logits(other))
    assert (logits(one) - start).abs().max() > 0.1


def test_lora_plus_with_ratio_1_is_lora() -> None:
    equal(adapted("lora-plus", rank=3, ratio=1.0), adapted("lora", rank=3))


def test_lora_plus_with_another_ratio_is_not() -> None:
    one, other = adapted("lora-plus", rank=3, ratio=2.0), adapted("lora", rank=3)
    assert train(one) != train(other)


def test_rank_stabilised_lora_of_rank_1_is_lora() -> None:
    equal(adapted("lora", rank=1, rank_stabilised=True), adapted("lora", rank=1))


def test_dylora_of_rank_1_is_lora_of_rank_1() -> None:
    equal(adapted("dylora", rank=1), adapted("lora", rank=1))


@pytest.mark.parametrize("strict", [True, False])
def test_dylora_of_rank_1_that_updates_the_last_row_is_lora_of_rank_1(strict: bool) -> None:
    equal(adapted("dylora", rank=1, update="last", strict=strict), adapted("lora", rank=1))


def test_delta_lora_with_delta_0_is_lora() -> None:
    equal(adapted("delta-lora", rank=3, delta=0.0), adapted("lora", rank=3))


def test_delta_lora_that_starts_after_the_end_is_lora() -> None:
    equal(adapted("delta-lora", rank=3, start=STEPS), adapted("lora", rank=3))


def test_delta_lora_that_starts_with_the_last_step_is_not() -> None:
    one, other = adapted("delta-lora", rank=3, start=STEPS - 1), adapted("lora", rank=3)
    assert train(one) == train(other)  # the last loss is from before the last update
    assert not torch.equal(logits(one), logits(other))


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_delta_lora_from_the_first_step_is_lora_at_a_larger_alpha(delta: float) -> None:
    """But for AdamW's epsilon, which breaks its invariance to the gradient's scale."""
    one = adapted("delta-lora", rank=3, delta=delta, start=0)
    other = adapted("lora", rank=3, alpha=(1 + delta) * 6.0)
    same = adapted("lora", rank=3)
    runs = [train(model, eps=1e-16) for model in (one, other, same)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-7)
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-6, atol=1e-8)
    assert (logits(one) - logits(same)).abs().max() > 1e-2


def test_delta_loras_control_is_lora_at_a_larger_alpha() -> None:
    one = adapted("delta-lora", rank=3, delta=0.5, control=True)
    equal(one, adapted("lora", rank=3, alpha=9.0))


def test_lora_drop_with_threshold_1_is_lora() -> None:
    """Every layer keeps a pair of its own, also one without any importance."""
    assert set(keep({"a": 1.0, "b": 0.0, "c": 1e-30}, threshold=1.0)) == {"a", "b", "c"}

    class Rehearsal:
        def sample(self, share: float, least: int) -> list[Any]:
            return []

        def fit(self, model: PreTrainedModel, batches: list[Any], steps: int) -> None:
            assert steps == 20

    one, other = adapted("lora-drop", rank=3, threshold=1.0), adapted("lora", rank=3)
    torch.manual_seed(5)  # stage 2 draws its pairs anew
    injected(one).prepare(one, Rehearsal())
    assert count(one) == count(other)
    assert injected(one).state(one) == {"shared": []}
    equal(one, other)


def test_dora_with_the_magnitude_of_loras_weight_is_lora() -> None:
    one, other = adapted("dora", rank=3), adapted("lora", rank=3)
    train(other)
    pairs = {n: layer for n, layer in other.named_modules() if isinstance(layer, LoRALinear)}
    for name, lora in pairs.items():
        layer = one.get_submodule(name)
        weight = lora.base.weight + lora.scaling * lora.lora_B @ lora.lora_A
        with torch.no_grad():
            layer.lora_A.copy_(lora.lora_A)
            layer.lora_B.copy_(lora.lora_B)
            layer.magnitude.copy_(weight.norm(dim=1))
    one.load_state_dict(
        {
            k: v
            for k, v in other.state_dict().items()
            if k.startswith(("classifier", "bert.pooler"))
        },
        strict=False,
    )
    assert sum(isinstance(layer, DoRALinear) for layer in one.modules()) == len(pairs) == 8
    torch.testing.assert_close(logits(one), logits(other))


def test_qlora_whose_quantiser_changes_nothing_is_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[int, Tensor] = {}

    def quantise(weight: Tensor) -> nf4.Quantised:
        key = torch.tensor(len(held))
        held[len(held)] = weight.detach().clone()
        return nf4.Quantised(key, key, key, key)

    def dequantise(kept: nf4.Quantised, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return held[int(kept.codes)].view(shape).to(dtype)

    monkeypatch.setattr(nf4, "_quantise", quantise)
    monkeypatch.setattr(nf4, "_dequantise", dequantise)
    base = tiny(torch.float32)
    quantise_linears(base, linear_names(base), "fp32")
    one = adapted("qlora", base, rank=3)
    other = adapted("lora", tiny(torch.float32), rank=3)
    assert train(one, 8) == pytest.approx(train(other, 8), rel=1e-4)
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-3, atol=1e-4)
    assert len(held) == 12


def test_lora_fa_is_lora_whose_a_has_no_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(method: LoRA, model: PreTrainedModel, *rates: float) -> list[dict[str, Any]]:
        frozen = [p for name, p in model.named_parameters() if name.endswith("lora_A")]
        ids = {id(p) for p in frozen}
        rest = Method.parameter_groups(method, model, *rates)
        rest = [g | {"params": [p for p in g["params"] if id(p) not in ids]} for g in rest]
        return [*rest, {"params": frozen, "lr": 0.0, "weight_decay": 0.0}]

    monkeypatch.setattr(LoRA, "parameter_groups", groups)
    equal(adapted("lora-fa", rank=3), adapted("lora", rank=3))


def test_layers_of_all_that_share_loras_are_loras() -> None:
    """So what is proven of LoRA's layer holds for LoRA+, LoRA-FA and LoRA-drop."""
    for name in ("lora-plus", "lora-fa", "lora-drop"):
        model = adapted(name, rank=3)
        plain = adapted("lora", rank=3)
        layers, others = (
            [layer for layer in one.modules() if isinstance(layer, LoRALinear)]
            for one in (model, plain)
        )
        assert len(layers) == 8
        start = logits(plain)
        for layer, other in zip(layers, others, strict=True):  # at B = 0 all are the base
            with torch.no_grad():
                layer.lora_B.copy_(other.lora_B.normal_())
        assert torch.equal(logits(model), logits(plain))
        assert not torch.equal(start, logits(plain))
