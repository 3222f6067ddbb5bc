"""What callers do around the engine: modes, hooks, masks and configurations of their own."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bert.modeling_bert import BertPooler
from transformers.utils import can_return_tuple

import peftlab
from peftlab.engine import fast
from peftlab.engine.frozen import FrozenLinear
from peftlab.engine.weights import onednn_multiplies
from peftlab.errors import RequestError
from peftlab.layers import WeightAdapter, quantise_linears
from peftlab.methods import inject
from peftlab.models import linear_names, state_of
from tiny import batch, in_eight_bits, passes, tiny


@torch.no_grad()
def check_alike(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Inside the engine and outside of it `model` gives the same logits."""
    plain = model(**inputs).logits
    with fast(model):
        assert torch.allclose(model(**inputs).logits, plain, atol=1e-5)


@pytest.mark.parametrize("make", [tiny, in_eight_bits])
def test_a_model_that_answered_under_inference_mode_still_trains(make: Any) -> None:
    model = inject(make(), "lora")
    with torch.inference_mode(), fast(model):
        model(**batch())
    assert not [name for name, p in model.named_parameters() if p.is_inference()]
    assert not [name for name, b in model.named_buffers() if b.is_inference()]
    model.train()(**batch()).logits.float().sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", ["fp32", "int8"])
@pytest.mark.parametrize("back", [False, True])
def test_a_caller_s_autocast_is_taken(held: str, dtype: torch.dtype, back: bool) -> None:
    model = tiny(dtype=torch.float32)
    if held == "int8":
        quantise_linears(model, linear_names(model), "fp32", held)
    inject(model, "lora").train()
    found: dict[bool, torch.Tensor] = {}
    for is_fast in (False, True):
        with fast(model, is_fast):
            with torch.autocast("cpu", dtype):
                loss = model(**batch()).logits.float().square().sum()
                if back:
                    loss.backward()
            if not back:
                loss.backward()
        found[is_fast] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        )
        model.zero_grad()
    error = (found[True] - found[False]).norm() / found[False].norm()
    assert error < 0.05


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_a_hook_of_a_caller_s_sees_what_the_model_gives(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    block = next(m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))[-1]

    def mixed(module: nn.Module, inputs: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        moved = h + h[:, :2].mean(1, keepdim=True)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    block.register_forward_hook(mixed)
    check_alike(model, batch())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "albert", "modernbert"])
@pytest.mark.parametrize("form", ["float", "half", "four dimensions"])
def test_masks_of_every_kind_say_the_same(kind: str, form: str) -> None:
    model, inputs = tiny(kind, torch.float32).eval(), batch()
    mask = inputs["attention_mask"]
    if form == "float":
        inputs["attention_mask"] = mask.float()
    elif form == "half":
        inputs["attention_mask"] = mask * 0.5
    elif kind == "mpnet":
        return  # takes no such mask
    else:
        inputs["attention_mask"] = mask[:, None, None, :].bool().expand(-1, -1, mask.shape[1], -1)
    check_alike(model, inputs)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_feed_forward_layer_in_chunks_is_left_alone(kind: str) -> None:
    model = tiny(kind, torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 3
    model.config.chunk_size_feed_forward = 3
    check_alike(model, batch())


class Narrow(nn.Module):
    """An attention whose value reads another input than its query and key."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(32, 16), nn.Linear(32, 16)
        self.value = nn.Linear(64, 16)


def test_siblings_of_other_input_sizes_are_no_siblings() -> None:
    model = tiny(dtype=torch.float32).requires_grad_(False)
    extra = model.base_model.encoder.layer[0].attention.extra = Narrow().requires_grad_(False)
    names = [name for name, _ in model.named_modules() if ".extra." in name]
    quantise_linears(model, names, "fp32", "int8")  # which the engine takes on any processor
    with torch.no_grad(), fast(model):
        model(**batch())
        query, key, value = (vars(part)["joined"] for part in extra.children())
    assert query is key and query is not value


class Frozen(WeightAdapter):
    """A layer whose base is asked without autograd."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.w = nn.Parameter(0.05 * torch.ones(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.base(x)
        return y + nn.functional.linear(x, self.w.to(x.dtype))

    def merged_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.w


@pytest.mark.parametrize("held", ["bf16", "int8"])
def test_a_layer_asked_without_autograd_takes_no_gradient_from_its_siblings(held: str) -> None:
    model = tiny().requires_grad_(False)
    for block in model.base_model.encoder.layer:
        own = block.attention.self
        own.value.weight *= 20  # else next to all goes past attention
    if held == "int8":
        quantise_linears(model, linear_names(model), "bf16", held)
    for block in model.base_model.encoder.layer:
        own = block.attention.self
        own.query = Frozen(own.query)
    model.base_model.embeddings.word_embeddings.weight.requires_grad_()
    slow = passes(model, batch())
    with fast(model):
        quick = passes(model, batch())
        joined = [m.joined for m in model.modules() if isinstance(m, FrozenLinear)]
        assert not any(one.pending for one in joined)  # nothing is held until the next pass
        is_replaced = held == "int8" or onednn_multiplies(nn.Linear(2, 2).bfloat16())
        assert bool(joined) == is_replaced
    for name, wanted in slow.items():
        error = (quick[name] - wanted).double().norm() / wanted.double().norm()
        assert error < 0.08, name  # of bf16; .16 where key and value have no gradient


def again(forward: Any, reentrant: bool, *inputs: Any, **named: Any) -> Any:
    return checkpoint(functools.partial(forward, **named), *inputs, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_a_caller_computes_again_is_no_other_dropout_in_silence(
    reentrant: bool,
) -> None:
    """Its masks would be others than those of the pass whose gradient is taken."""
    model = tiny(dtype=torch.float32, p=0.3).train()
    for block in model.base_model.encoder.layer:
        block.forward = functools.partial(again, block.forward, reentrant)
    with fast(model):
        loss = model(**batch()).logits.sum()
        with pytest.raises(
            RequestError, match=r"gradient_checkpointing_enable\(\), or .*fast=False"
        ):
            loss.backward()
    model(**batch()).logits.sum().backward()


def test_a_pooler_that_is_the_caller_s_own_is_run_whatever_it_calls_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @functools.wraps(BertPooler.forward)  # which takes __module__ along
    def mean(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden.mean(1)))

    monkeypatch.setattr(BertPooler, "forward", mean)
    model = tiny(dtype=torch.float32).eval()
    check_alike(model, batch())


def test_a_class_of_the_caller_s_own_is_run_whatever_it_changes() -> None:
    class Mean(BertPooler):
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.activation(self.dense(hidden.mean(1)))

    model = tiny(dtype=torch.float32).eval()
    model.bert.pooler.__class__ = Mean
    check_alike(model, batch())


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_a_scripted_part_is_run() -> None:
    model = tiny(dtype=torch.float32).eval()
    for block in model.bert.encoder.layer:
        block.intermediate.intermediate_act_fn = torch.jit.trace(nn.ReLU(), torch.ones(2))
    check_alike(model, batch())


@pytest.mark.parametrize(
    "decorate", [torch.no_grad(), torch.autocast("cpu", enabled=False), can_return_tuple]
)
def test_a_pooler_under_somebody_s_decorator_is_the_caller_s_own(decorate: Any) -> None:
    class Mean(BertPooler):
        @decorate
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return self.activation(self.dense(hidden.mean(1)))

    model = tiny(dtype=torch.float32).eval()
    model.bert.pooler.__class__ = Mean
    check_alike(model, batch())


def test_a_hook_on_all_modules_sees_what_the_model_gives() -> None:
    def mixed(module: nn.Module, inputs: Any, output: Any) -> Any:
        return output + output[:, :1] if isinstance(module, nn.LayerNorm) else None

    model = tiny(dtype=torch.float32).eval()
    handle = nn.modules.module.register_module_forward_hook(mixed)
    try:
        with torch.no_grad():
            plain = model(**batch()).logits
            with fast(model):
                assert torch.allclose(model(**batch()).logits, plain, atol=1e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_last_block_that_is_also_an_earlier_one_is_computed_whole(
    kind: str, masked: bool
) -> None:
    model, inputs = tiny(kind, torch.float32).eval(), batch()
    blocks = next(m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    blocks[1] = blocks[0]
    if not masked:
        del inputs["attention_mask"]
    check_alike(model, inputs)


@pytest.mark.parametrize("make", [tiny, in_eight_bits])
def test_weights_are_saved_and_loaded_inside_as_they_are_outside(make: Any) -> None:
    model, other = (inject(make(), "lora").eval() for _ in range(2))
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            tensor.copy_(tensor.roll(1, 0))
            if name.endswith("bias"):
                tensor.normal_()
    wanted = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad(), fast(model):
        before = model(**batch()).logits
        assert list(model.state_dict()) == list(wanted)
        model.load_state_dict(wanted)
        inside = model(**batch()).logits
        assert all(torch.equal(model.state_dict()[name], one) for name, one in wanted.items())
        state, held = other.state_dict(), model.bert.embeddings.word_embeddings.weight
        with pytest.raises(RequestError, match="leave out assign=True"):
            model.load_state_dict(state, assign=True)
        assert model.bert.embeddings.word_embeddings.weight is held  # nothing was loaded
        model.load_state_dict(state)
        with fast(other):
            assert torch.equal(inside, other(**batch()).logits)
    assert not torch.equal(inside, before)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in wanted.items())


def test_what_would_be_lost_behind_the_engine_is_refused_inside(tiny_model: Path) -> None:
    model = peftlab.load_model(str(tiny_model), precision="bf16")[0]
    with fast(model), pytest.raises(RequestError, match=r"can't be injected, since .*before it"):
        inject(model, "lora")
    inject(model, "lora")
    with fast(model), pytest.raises(RequestError, match="can't be merged"):
        peftlab.merge(model)
    with fast(model), pytest.raises(RequestError, match="can't be copied"):
        copy.deepcopy(model)
    peftlab.merge(model)
    with fast(model), pytest.raises(RequestError, match="can't be unmerged"):
        peftlab.unmerge(model)
    peftlab.unmerge(model)
    assert not state_of(copy.deepcopy(model)).fast  # and outside it can be


def test_a_part_of_the_model_is_not_copied_inside(tiny_model: Path) -> None:
    """The copy would keep the engine's modules, and answer for one token alone."""
    model, _ = peftlab.load_model(str(tiny_model), precision="bf16")
    with fast(model), pytest.raises(RequestError, match="can't be copied"):
        copy.deepcopy(model.base_model)
    copy.deepcopy(model.base_model)


def test_a_weight_is_not_unfrozen_inside(tiny_model: Path) -> None:
    """It had no gradient, without a word."""
    model, tokenizer = peftlab.load_model(str(tiny_model), precision="bf16")
    inject(model, "lora")
    inputs = tokenizer(["a cat", "a dog"], return_tensors="pt", padding=True)
    with fast(model):
        model(**inputs)
        frozen = [module for module in model.modules() if isinstance(module, FrozenLinear)]
        frozen[0].weight.requires_grad_(True)
        with pytest.raises(RequestError, match="can't be unfrozen"):
            model(**inputs)
