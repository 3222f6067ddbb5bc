"""LoRA-drop: importance, what is kept and what is shared, and the start of stage 2."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from peftlab.bench.process import count
from peftlab.errors import RequestError
from peftlab.layers import LoRALinear
from peftlab.methods import LoRA, LoRADrop, inject, injected
from peftlab.methods.lora_drop import importance, keep, share
from peftlab.models import ARCHITECTURES
from peftlab.training import Batch
from peftlab.training.guard import check_groups

LAYERS = 4
SCORES = {f"layer{i}": score for i, score in enumerate([0.5, 3.0, 0.0, 2.0, 2.0, 0.25, 8.0])}
THRESHOLDS = [0.01, 0.3, 0.5, 0.6, 0.9, 0.95, 0.999, 1.0]


def tiny(**settings: Any) -> PreTrainedModel:
    """Four blocks, query and value adapted, B away from zero."""
    torch.manual_seed(0)
    model = inject(architecture("bert"), LoRADrop(rank=2, alpha=4.0, **settings))
    for layer in layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model


def architecture(model_type: str, **settings: Any) -> PreTrainedModel:
    common = {
        "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 12, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    extra: dict[str, dict[str, Any]] = {
        "distilbert": {"dim": 8, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 12},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                       "share_att_key": True},
        "modernbert": {"cls_token_id": 2, "sep_token_id": 3},
        "qwen3": {"num_key_value_heads": 1, "head_dim": 4},
        **{name: {"num_key_value_heads": 1} for name in ("llama", "mistral", "qwen2")},
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **common | extra.get(model_type, {}) | settings)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


def layers(model: PreTrainedModel) -> dict[str, LoRALinear]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def batch_of(lengths: list[int], padded_to: int | None = None) -> Batch:
    """Examples of these lengths, each the same whatever stands beside it."""
    width = padded_to or max(lengths)
    ids, mask = torch.zeros(len(lengths), width).long(), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.arange(length) * length % 36 + 4
        mask[row, :length] = 1
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.arange(len(lengths)) % 2)


@dataclass
class FakeRehearsal:
    """Stage 1 that leaves pairs and a head which are clearly not fresh."""

    asked: list[Any] = field(default_factory=list)
    stage_1: dict[str, Tensor] = field(default_factory=dict)

    def sample(self, share: float, least: int) -> list[Batch]:
        self.asked.append((share, least))
        return [batch_of([3, 5]), batch_of([7, 2])]

    def fit(self, model: PreTrainedModel, batches: list[Batch], steps: int) -> None:
        self.asked.append(steps)
        torch.manual_seed(9)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
                    self.stage_1[name] = parameter.clone()


def test_importance_is_the_squared_size_of_the_update_over_all_tokens() -> None:
    model, batch = tiny().eval(), batch_of([6, 6, 6])
    seen: dict[str, Tensor] = {}
    for name, layer in layers(model).items():
        layer.register_forward_hook(lambda _, x, out, name=name: seen.update({name: x[0]}))
    scores = importance(model, [batch])
    assert len(scores) == 2 * LAYERS
    for name, layer in layers(model).items():
        delta = (layer.scaling * layer.lora_B @ layer.lora_A).detach()  # (out, in)
        expected = sum((delta @ token).square().sum().item() for token in seen[name].view(-1, 8))
        assert scores[name] == pytest.approx(expected, rel=1e-4)
        assert scores[name] > 0


def test_importance_does_not_depend_on_the_order_or_the_make_up_of_batches() -> None:
    model = tiny()
    one = importance(model, [batch_of([3, 9]), batch_of([7, 5])])
    other = importance(model, [batch_of([5]), batch_of([7, 3, 9])])
    assert one == pytest.approx(other, rel=1e-4)


def test_importance_does_not_depend_on_padding() -> None:
    model = tiny()
    tight = importance(model, [batch_of([3, 9])])
    padded = importance(model, [batch_of([3, 9], padded_to=20)])
    assert padded == pytest.approx(tight, rel=1e-4)
    more = importance(model, [batch_of([3, 9, 6])])
    assert all(more[name] > 1.1 * score for name, score in tight.items())


def test_importance_is_taken_without_dropout() -> None:
    model = tiny(dropout=0.5).train()
    assert importance(model, [batch_of([3, 9])]) == importance(model, [batch_of([3, 9])])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_importance_can_be_told_on(model_type: str) -> None:
    """DeBERTa's queries and keys see relative positions too, which are no tokens."""
    model = inject(architecture(model_type), LoRADrop(rank=2, targets="query,key,value"))
    for layer in layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    scores = importance(model, [batch_of([3, 9])])
    assert scores.keys() == layers(model).keys()
    assert min(scores.values()) > 0
    padded = importance(model, [batch_of([3, 9], padded_to=12)])
    assert padded == pytest.approx(scores, rel=1e-3)


def test_more_is_kept_at_a_higher_threshold() -> None:
    kept = [keep(SCORES, threshold) for threshold in THRESHOLDS]
    for fewer, more in pairwise(kept):
        assert more[: len(fewer)] == fewer
    assert len(kept[0]) == 1
    assert set(kept[-1]) == set(SCORES)


@pytest.mark.parametrize("threshold", THRESHOLDS[:-1])
def test_kept_layers_are_the_fewest_that_reach_the_threshold(threshold: float) -> None:
    kept = keep(SCORES, threshold)
    needed = threshold * sum(SCORES.values())
    assert sum(SCORES[name] for name in kept) >= needed
    assert sum(sorted(SCORES.values())[-(len(kept) - 1) :] if len(kept) > 1 else [0]) < needed


def test_shared_layers_share_storage_and_receive_the_sum_of_gradients() -> None:
    alone, shared = tiny().train(), tiny().train()
    names = [name for name in layers(shared) if name.endswith("query")][1:]
    share(shared, [names])
    first = layers(shared)[names[0]]
    assert len({layers(shared)[name].lora_A.data_ptr() for name in names}) == 1
    assert len({id(layer.lora_A) for layer in layers(shared).values()}) == 2 * LAYERS - 2
    with torch.no_grad():
        for name in names:
            layers(alone)[name].lora_A.copy_(first.lora_A)
            layers(alone)[name].lora_B.copy_(first.lora_B)
    for model in (alone, shared):
        torch.manual_seed(0)
        batch = batch_of([6, 6, 6])
        model(**batch.inputs, labels=batch.labels).loss.backward()
    for factor in ("lora_A", "lora_B"):
        each = [layers(alone)[name].get_parameter(factor).grad for name in names]
        assert all(gradient.any() for gradient in each)
        torch.testing.assert_close(first.get_parameter(factor).grad, sum(each))


def prepared(threshold: float = 0.6) -> tuple[PreTrainedModel, FakeRehearsal, dict[str, Tensor]]:
    model, rehearsal = tiny(threshold=threshold), FakeRehearsal()
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    injected(model).prepare(model, rehearsal)
    return model, rehearsal, start


def test_stage_1_is_a_tenth_of_at_least_64_examples_and_20_updates() -> None:
    assert prepared()[1].asked == [(0.1, 64), 20]


def test_a_second_training_is_refused_where_layers_share_already() -> None:
    model, rehearsal, _ = prepared()
    before = {name: p.clone() for name, p in model.named_parameters()}
    asked = len(rehearsal.asked)
    with pytest.raises(RequestError, match="load the base anew with load_model"):
        injected(model).prepare(model, rehearsal)
    assert len(rehearsal.asked) == asked
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    alone, its_rehearsal, _ = prepared(threshold=1.0)  # LoRA's, which can be
    injected(alone).prepare(alone, its_rehearsal)


def test_stage_2_starts_where_stage_1_did() -> None:
    model, rehearsal, start = prepared()
    shared = {name for names in LoRADrop().state(model)["shared"] for name in names[1:]}
    assert shared
    for name, first in start.items():
        layer, _, factor = name.rpartition(".")
        assert not torch.equal(first, rehearsal.stage_1[name])
        if layer not in shared:
            assert torch.equal(model.get_submodule(layer).get_parameter(factor), first)
    assert all(p.requires_grad for layer in layers(model).values() for p in layer.parameters(False))


def test_queries_and_values_are_kept_and_shared_apart() -> None:
    model = prepared()[0]
    groups = injected(model).state(model)["shared"]
    kinds = [{name.rsplit(".", 1)[1] for name in names} for names in groups]
    assert sorted(kinds, key=str) == [{"query"}, {"value"}]
    assert all(1 < len(names) < LAYERS for names in groups)


def test_the_layers_that_share_are_the_least_important_of_their_kind() -> None:
    model, rehearsal, _ = prepared()
    trained = tiny()
    trained.load_state_dict(rehearsal.stage_1, strict=False)
    scores = importance(trained, rehearsal.sample(0.1, 64))
    for names in injected(model).state(model)["shared"]:
        kind = names[0].rsplit(".", 1)[1]
        of_kind = {name: score for name, score in scores.items() if name.endswith(kind)}
        assert set(of_kind) - set(names) == set(keep(of_kind, 0.6))


def test_trained_numbers_are_those_of_the_kept_pairs_and_one_shared_of_each_kind() -> None:
    model = prepared()[0]
    groups = injected(model).state(model)["shared"]
    pairs = sum(LAYERS - len(names) + 1 for names in groups)
    assert count(model).adapter == pairs * 2 * (8 + 8)
    assert pairs < 2 * LAYERS
    check_groups(model, injected(model).parameter_groups(model, 0.1, 0.1, 0.0))


def test_state_makes_the_structure_again_on_a_model_just_injected() -> None:
    model = prepared()[0].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    state = json.loads(json.dumps(injected(model).state(model)))
    again = tiny(threshold=0.6).eval()
    injected(again).restore(again, state)
    assert injected(again).state(again) == state
    assert count(again) == count(model)
    again.load_state_dict(dict(model.named_parameters()), strict=False)
    inputs = batch_of([6, 6]).inputs
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_shared_pair_merges_into_each_of_its_layers() -> None:
    model = prepared()[0]
    names = injected(model).state(model)["shared"][0]
    shared = layers(model)[names[0]]
    torch.nn.init.normal_(shared.lora_B)
    for name in names:
        layer = layers(model)[name]
        update = layer.merged().weight - layer.base.weight
        torch.testing.assert_close(update, shared.scaling * shared.lora_B @ shared.lora_A)
    assert not torch.equal(
        layers(model)[names[0]].merged().weight, layers(model)[names[1]].merged().weight
    )


def test_with_nothing_shared_stage_2_is_loras_run_bit_for_bit() -> None:
    def start(method: LoRA | LoRADrop) -> PreTrainedModel:
        model = architecture("bert")
        torch.manual_seed(1)
        return inject(model, method)

    torch.manual_seed(0)
    lora = start(LoRA(rank=2))
    torch.manual_seed(0)
    method = LoRADrop(rank=2, threshold=1.0)
    dropped = start(method)
    method.prepare(dropped, FakeRehearsal())
    for name, parameter in lora.named_parameters():
        assert torch.equal(parameter, dropped.get_parameter(name)), name
    assert method.notes(dropped) == ["no layers share a pair, each has its own: this run is LoRA's"]


def test_a_run_that_shares_is_not_called_loras() -> None:
    method = LoRADrop(rank=2, threshold=0.01)
    model = inject(architecture("bert"), method)
    method.prepare(model, FakeRehearsal())
    assert method.notes(model) == []


def test_layers_that_can_t_be_scored_keep_a_pair_of_their_own() -> None:
    """Of OPT's FFN the rows are flattened; where no layer of a kind was scored, all shared one."""
    assert keep({"a": 0.0, "b": 0.0}, threshold=0.9) == ["a", "b"]
    extra = {"word_embed_proj_dim": 8, "ffn_dim": 12}
    model = inject(architecture("opt", **extra), LoRADrop(rank=2, targets="query,ffn-in"))
    for layer in layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    scores = importance(model, [batch_of([5, 3])])
    assert scores.keys() == layers(model).keys()
    assert all(score > 0 for score in scores.values())


def test_what_listens_is_gone_when_a_batch_fails() -> None:
    model = tiny()
    with pytest.raises(KeyError):
        importance(model, [Batch({}, torch.tensor([0]))])
    assert not any(layer._forward_hooks for layer in layers(model).values())
