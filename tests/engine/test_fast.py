"""Inside `fast` every method and architecture computes what it did, and no trace is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftlab.bench.process import activation_checkpointing
from peftlab.engine import fast, kernels_of, sentences
from peftlab.engine.dropout import FastDropout
from peftlab.engine.frozen import FrozenLinear
from peftlab.engine.gelu import FastGelu
from peftlab.engine.packing import N_QUERIES
from peftlab.engine.replace_method import replace_method
from peftlab.engine.weights import onednn_multiplies
from peftlab.methods import METHODS, inject, make
from peftlab.models import ARCHITECTURES, state_of
from tiny import COMMON, EXTRA, batch, compare, in_eight_bits, passes, tiny

CAUSAL = {"gpt2", "llama", "mistral", "qwen2", "qwen3"}
OWN_ATTENTION = {"deberta-v2", "mpnet"}  # in their own code


needs_bf16 = pytest.mark.skipif(
    not onednn_multiplies(torch.nn.Linear(2, 2, dtype=torch.bfloat16)),
    reason="oneDNN multiplies no bf16 here, so no layer is replaced",
)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"qlora"}))
def test_every_method_in_fp32(method: str) -> None:
    """Sums in another order, of up to 64 terms: fp32's ε, 1.2e-7, some hundred times."""
    compare(tiny("bert", torch.float32), method, 2e-5)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"qlora", "full", "bitfit"}))
def test_every_method_in_bf16(method: str) -> None:
    """Two layers of some ten roundings each, of bf16's ε/2 = 2⁻⁹: √20 · 2⁻⁹ ≈ 1 %, times 5."""
    compare(tiny("bert", torch.bfloat16), method, 5e-2)


@needs_bf16
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "houlsby", "lora-drop", "head"])
def test_a_base_in_eight_bits(method: str) -> None:
    """Both sides are in eight bits; joined layers' gradients share a row's scale: 1 % a layer."""
    compare(in_eight_bits(), method, 5e-2)


@needs_bf16
def test_layers_in_eight_bits_are_joined_and_left_as_they_were() -> None:
    model = in_eight_bits()
    before = dict(model.named_modules())
    codes = {name: b.clone() for name, b in model.named_buffers() if name.endswith("codes")}
    with fast(model):
        places = [m for m in model.modules() if isinstance(m, FrozenLinear)]
        assert len({id(place.joined) for place in places}) == 2 * 4  # of 2 blocks: qkv, out, ffn
        assert len(places) == 2 * 6
    assert dict(model.named_modules()) == before
    assert all(torch.equal(model.get_buffer(name), codes[name]) for name in codes)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_architecture(kind: str) -> None:
    compare(tiny(kind, torch.float32), "lora", 2e-5)
    compare(tiny(kind, torch.bfloat16), "lora", 8e-2)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_behind_the_context_the_model_is_as_it_was(kind: str, tmp_path: Path) -> None:
    model = inject(tiny(kind, p=0.1), make("lora")).train()
    before = {name: (type(m), m, {*vars(m)}) for name, m in model.named_modules()}
    hooks = {name: dict(m._forward_pre_hooks) for name, m in model.named_modules()}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    chosen = model.config._attn_implementation
    with fast(model):
        if kind not in CAUSAL | OWN_ATTENTION:
            assert model.config._attn_implementation == "peftlab"
        model.eval()
    assert model.config._attn_implementation == chosen
    for name, module in model.named_modules():
        assert before[name] == (type(module), module, {*vars(module)}), name
        assert not module.training  # a mode chosen inside holds outside
        assert dict(module._forward_pre_hooks) == hooks[name], name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not state_of(model).fast
    inputs = batch()
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)
    plain = tiny(kind)
    with fast(plain):
        pass
    plain.save_pretrained(tmp_path / "saved")


def test_an_error_inside_leaves_it_plain_too() -> None:
    model = inject(tiny(p=0.1), make("lora"))
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), fast(model):
        raise KeyboardInterrupt
    assert not any(isinstance(m, FrozenLinear | FastDropout) for m in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


@needs_bf16
def test_inside_it_is_joined_and_sliced() -> None:
    """Else all the tests above would compare the slow path with itself."""
    model = inject(tiny(p=0.1), make("lora"))
    rows: list[int] = []
    with fast(model):
        layers = {n: m for n, m in model.named_modules() if isinstance(m, FrozenLinear)}
        joined = {id(layer.joined) for layer in layers.values()}
        assert (len(layers), len(joined)) == (12, 8)  # two blocks of six layers in four products
        assert sum(isinstance(m, FastDropout) for m in model.modules()) > 4
        last = model.bert.encoder.layer[1].intermediate
        last.register_forward_hook(lambda m, inputs, y: rows.append(y.shape[1]))
        asked = [hasattr(block.attention.self, N_QUERIES) for block in model.bert.encoder.layer]
        model(**batch())
    assert rows == [1]
    assert asked == [False, True]
    assert not any(hasattr(module, N_QUERIES) for module in model.modules())


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_only_the_last_blocks_attention_leaves_queries_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    attention = sentences.attention

    def noted(*arguments: Any) -> torch.Tensor:
        wanted.append(arguments[-1].n_queries)
        return attention(*arguments)

    monkeypatch.setattr(sentences, "attention", noted)
    model = tiny(kind)
    with fast(model):
        model(**batch())
    assert wanted == [0, 1]  # 0: none is left out


def test_which_kernels_compute_a_model() -> None:
    all_of_them = "sentences.cpp, dropout.cpp, gelu.cpp"
    assert kernels_of(tiny("bert")) == kernels_of(tiny("mpnet")) == all_of_them
    assert kernels_of(tiny("gpt2")) == "torch"
    assert kernels_of(tiny("gpt2", p=0.1)) == "dropout.cpp"
    recomputed = tiny("bert")
    recomputed.bert.encoder.gradient_checkpointing = True
    assert kernels_of(recomputed) == "torch"
    with fast(recomputed):
        assert not any(isinstance(module, FastGelu) for module in recomputed.modules())


def test_turned_off_it_does_nothing() -> None:
    model = inject(tiny(p=0.1), make("lora"))
    with fast(model, enabled=False):
        assert not any(isinstance(m, FrozenLinear | FastDropout) for m in model.modules())


@needs_bf16
def test_inside_itself_it_does_nothing_more() -> None:
    model = inject(tiny(), make("lora"))
    with fast(model):
        with fast(model):
            pass
        assert any(isinstance(m, FrozenLinear) for m in model.modules())
    assert not any(isinstance(m, FrozenLinear) for m in model.modules())


def test_recomputed_layers_keep_torchs_own_dropout() -> None:
    """GPT-2's last layer is not sliced, so both passes draw the same numbers."""
    model = inject(tiny("gpt2", p=0.1), make("lora")).train()
    with activation_checkpointing(model, True), fast(model):
        assert not any(isinstance(m, FastDropout) for m in model.modules())
        torch.manual_seed(0)
        quick = passes(model, batch())
    torch.manual_seed(0)
    slow = passes(model, batch())
    for name, wanted in slow.items():
        assert (quick[name] - wanted).float().norm() <= 5e-2 * wanted.float().norm() + 1e-6, name


def test_a_shared_weight_is_left_alone() -> None:
    model = tiny()
    one, other = (model.bert.encoder.layer[i].intermediate.dense for i in (0, 1))
    other.weight = one.weight
    model.requires_grad_(False)
    with fast(model):
        found = [n for n, m in model.named_modules() if isinstance(m, FrozenLinear)]
        assert not any("intermediate" in name for name in found)
        model(**batch())


@needs_bf16
def test_methods_read_the_weight_of_a_layer_inside() -> None:
    model = inject(tiny(), make("dora"))
    layer = model.bert.encoder.layer[0].attention.self.query
    weight, norm = layer.merged().weight, layer.norm()
    with fast(model):
        assert isinstance(layer.base, FrozenLinear)
        assert torch.equal(layer.merged().weight, weight)
        torch.testing.assert_close(layer.norm(), norm, rtol=2**-7, atol=0)


def test_padding_beyond_a_window_is_no_nan_under_autocast() -> None:
    """A padded query that sees no key at all: -inf for every one of them would be."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("modernbert", **COMMON, **EXTRA["modernbert"], local_attention=4)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    inject(model, make("full")).train()
    ids = torch.randint(3, 40, (2, 24))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.autocast("cpu", torch.bfloat16):
        slow = passes(model, inputs)
        with fast(model):
            quick = passes(model, inputs)
    for name, wanted in slow.items():
        assert quick[name].isfinite().all(), name
        assert (quick[name] - wanted).norm() <= 0.1 * wanted.norm() + 1e-3, name


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("place", ["attention.self.query", "output.dense"])
def test_a_layer_s_outputs_may_be_changed_in_place(kind: str, place: str, enabled: bool) -> None:
    """Longformer scales its queries so, and Falcon sums its residuals."""
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = in_eight_bits() if kind == "int8" else tiny(dtype=dtype)
    inject(model, make("lora")).train()

    def halved(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        with fast(model, enabled):
            layer = model.get_submodule(f"bert.encoder.layer.0.{place}")
            hook = layer.register_forward_hook(lambda module, inputs, y: change(y))
            found = passes(model, batch())
            hook.remove()
        return found

    aside, within = halved(lambda y: y / 2), halved(lambda y: y.div_(2))
    for name, wanted in aside.items():
        torch.testing.assert_close(within[name], wanted)


@needs_bf16
def test_a_caller_s_own_code_around_a_layer_is_run() -> None:
    model = inject(tiny(p=0.1), make("lora")).train()
    block = model.bert.encoder.layer[0]
    seen: list[str] = []
    block.intermediate.dense.register_full_backward_hook(lambda *_: seen.append("back"))
    block.output.dropout.register_forward_hook(lambda *_: seen.append("dropout"))
    theirs = block.output.dense.forward
    block.output.dense.forward = lambda x: [seen.append("forward"), theirs(x)][1]
    with fast(model):
        passes(model, batch())
    assert seen == ["forward", "dropout", "back"]


def test_answers_draw_nothing() -> None:
    """Else whoever evaluates between epochs would train otherwise."""
    model = tiny(p=0.1).eval()
    before = torch.get_rng_state()
    with torch.no_grad(), fast(model):
        model(**batch())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_inside_the_engine_too_an_answer_has_no_dropout_in_it(kind: str) -> None:
    model = tiny(kind, torch.float32, p=0.5).eval()
    with torch.no_grad():
        wanted = model(**batch()).logits
        with fast(model):
            found = model(**batch()).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_method_of_somebody_s_own_is_put_back() -> None:
    module, own = torch.nn.Linear(2, 2), lambda x: -x
    module.forward = own
    with ExitStack() as undo:
        replace_method(module, "forward", lambda module, original, x: 2 * original(x), undo)
        assert torch.equal(module(torch.ones(1, 2)), -2 * torch.ones(1, 2))
    assert module.forward is own
    plain = torch.nn.Linear(2, 2)
    with ExitStack() as undo:
        replace_method(plain, "forward", lambda module, original, x: x, undo)
    assert "forward" not in vars(plain)
