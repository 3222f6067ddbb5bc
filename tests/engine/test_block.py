"""A block by two nodes gives the bits of its modules, and leaves to them what is more than it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.engine import block as block_module
from peftlab.engine import dropout, fast
from peftlab.engine.weights import onednn_multiplies
from peftlab.layers import PreTrainedModel
from peftlab.methods import inject, make
from tiny import batch, in_eight_bits, passes, tiny

KINDS = ("bert", "roberta", "xlm-roberta", "electra")
# all modules that the nodes stand for
PARTS = [
    *("attention", "attention.self", "attention.self.query", "attention.self.key"),
    *("attention.output", "attention.output.dense"),
    *("attention.output.LayerNorm", "attention.output.dropout", "intermediate"),
    *("intermediate.dense", "intermediate.intermediate_act_fn"),
    *("output", "output.dense", "output.LayerNorm", "output.dropout"),
]

pytestmark = pytest.mark.skipif(
    not onednn_multiplies(nn.Linear(2, 2, dtype=torch.bfloat16)),
    reason="oneDNN multiplies no bf16 here, so no layer is replaced",
)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes that a pass makes, in its order."""
    made: list[str] = []
    for name in ("_Attended", "_Finished"):
        node = getattr(block_module, name)

        def apply(*args: Any, name: str = name, node: Any = node) -> Any:
            made.append(name)
            return node.apply(*args)

        stand_in = type(name, (), {"apply": staticmethod(apply)})
        monkeypatch.setattr(block_module, name, stand_in)
    return made


def trained(model: PreTrainedModel, method: str, **settings: Any) -> PreTrainedModel:
    inject(model, make(method, settings)).train()
    with torch.no_grad():  # away from the start, where B is 0
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    return model


def inside(model: PreTrainedModel, change: Callable[[], Any] = lambda: None) -> Any:
    """The outputs and gradients of a pass in the engine, behind a `change` there."""
    torch.manual_seed(0)
    with fast(model):
        torch.manual_seed(5)
        change()
        return passes(model, batch())


def by_modules(model: PreTrainedModel, change: Callable[[], Any] = lambda: None) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.engine.fuse_blocks", lambda *_: None)
        return inside(model, change)


def check_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_of_berts_blocks(kind: str, p: float, nodes: list[str]) -> None:
    model = trained(tiny(kind, p=p), "lora")
    wanted = by_modules(model)
    assert not nodes
    check_bits(inside(model), wanted)
    assert nodes == ["_Attended", "_Finished"] * 2


@pytest.mark.parametrize("method", ["lora-fa", "dylora", "pissa", "lora-drop", "lora-plus", "head"])
def test_methods_whose_updates_are_low_rank_or_none(method: str, nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), method)
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended", "_Finished"] * 2


@pytest.mark.parametrize("method", ["dora", "vera"])
def test_methods_that_change_more_than_a_product(method: str, nodes: list[str]) -> None:
    """Their query, key and value are computed by modules, all behind attention by a node."""
    model = trained(tiny(p=0.1), method)
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Finished"] * 2


@pytest.mark.parametrize("method", ["bitfit", "ia3"])
def test_methods_that_train_what_the_nodes_hold_frozen(method: str, nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), method)
    check_bits(inside(model), by_modules(model))
    assert not nodes


def test_adapters_behind_attention(nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), "houlsby")
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended"] * 2


def test_a_rank_that_torch_multiplies(nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), "lora", rank=24)
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended", "_Finished"] * 2


def test_adapters_on_all_layers(nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), "lora", targets="all-linear")
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended"] * 2


def test_dropout_before_an_update(nodes: list[str]) -> None:
    """It is not added to the joined product."""
    model = trained(tiny(p=0.1), "lora", dropout=0.1)
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Finished"] * 2


def test_a_base_in_eight_bits(nodes: list[str]) -> None:
    model = trained(in_eight_bits(), "lora")
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended", "_Finished"] * 2


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", PARTS)
def test_hooks_and_other_code_inside_the_engine_are_run(
    name: str, number: int, nodes: list[str]
) -> None:
    model = trained(tiny(p=0.1), "lora")
    seen: list[str] = []

    def with_hook(run: Callable[..., Any]) -> Any:
        hooks: list[Any] = []

        def hook() -> None:
            module = model.get_submodule(f"bert.encoder.layer.{number}.{name}")
            hooks.append(module.register_forward_hook(lambda *_: seen.append(name)))

        found = run(model, hook)
        hooks[0].remove()
        return found

    found = with_hook(inside)
    assert seen == [name]
    whole = ["_Attended", "_Finished"]
    left = whole if name == "attention.self" else ["_Finished"] if "self." in name else whole[:1]
    assert nodes == ([*whole, *left] if number else [*left, *whole])
    check_bits(found, with_hook(by_modules))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", PARTS)
def test_another_forward_is_called(name: str, number: int) -> None:
    model = trained(tiny(p=0.1), "lora")
    seen: list[str] = []

    def replace() -> None:
        module = model.get_submodule(f"bert.encoder.layer.{number}.{name}")
        theirs = module.forward
        module.forward = lambda *args, **kwargs: [seen.append(name), theirs(*args, **kwargs)][1]

    inside(model, replace)
    assert seen == [name]


@pytest.mark.parametrize("name", ["attention.self", "attention.self.query", "output.dense"])
def test_a_hook_that_has_no_hash(name: str) -> None:
    @dataclass
    class Count:
        calls: int = 0

        def __call__(self, *_: Any) -> None:
            self.calls += 1

    model, count = trained(tiny(p=0.1), "lora"), Count()
    block = model.bert.encoder.layer[0]
    inside(model, lambda: block.get_submodule(name).register_forward_hook(count))
    assert count.calls == 1


def test_a_forward_put_in_inside_is_the_callers_own() -> None:
    """On leaving the engine it stays; taken out again, nothing is left to put back."""
    model = trained(tiny(), "lora")
    first, last = (block.attention.self for block in model.bert.encoder.layer)

    def replace() -> None:
        for attention in (first, last):
            attention.forward = functools.partial(type(attention).forward, attention)
        del last.forward

    wanted = by_modules(model)
    check_bits(inside(model, replace), wanted)
    assert first.forward.func is type(first).forward
    assert "forward" not in vars(last)


def test_the_last_blocks_inputs_are_cut_by_name_too() -> None:
    model = trained(tiny(), "lora")
    half = model.bert.encoder.layer[-1].attention

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return half.output(hidden_states=half.self(x)[0], input_tensor=x), None

    wanted = by_modules(model)
    check_bits(inside(model, lambda: setattr(half, "forward", forward)), wanted)


@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora", "head", "houlsby"])
def test_no_more_is_kept_for_the_backward_pass(method: str) -> None:
    """LoRA-FA's A is a constant, so nothing of the size of x is kept for it."""
    model = trained(tiny(p=0.1), method)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            inside(model)
        return sum(sizes.values())

    by_nodes = kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.engine.fuse_blocks", lambda *_: None)
        assert by_nodes <= kept()


def test_a_norm_that_is_unfrozen_inside_has_a_gradient() -> None:
    model = trained(tiny(), "lora")
    norm = model.bert.encoder.layer[0].output.LayerNorm
    found = inside(model, lambda: norm.requires_grad_(True))
    assert found["bert.encoder.layer.0.output.LayerNorm.weight"].any()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "name, other",
    [
        ("attention.output.dense", lambda: nn.Linear(32, 32, dtype=torch.bfloat16)),
        ("attention.output.LayerNorm", lambda: nn.LayerNorm(32, eps=0.1, dtype=torch.bfloat16)),
        ("attention.self.query", lambda: nn.Linear(32, 32, dtype=torch.bfloat16)),
        ("output.LayerNorm", lambda: nn.LayerNorm(32, eps=0.1, dtype=torch.bfloat16)),
        ("output.dropout", lambda: nn.Dropout(0.9)),
        ("intermediate.intermediate_act_fn", nn.ReLU),
        ("intermediate.dense", lambda: nn.Linear(32, 64, dtype=torch.bfloat16)),
        ("intermediate", lambda: nn.Linear(32, 64, dtype=torch.bfloat16)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_module_inside_is_called(
    name: str, other: Callable[[], nn.Module], number: int, nodes: list[str]
) -> None:
    model = trained(tiny(), "lora").eval()
    with fast(model):
        before = model(**batch()).logits
        nodes.clear()
        model.bert.encoder.layer[number].set_submodule(name, other().train())
        after = model(**batch()).logits
        assert after.shape == before.shape and not torch.equal(after, before)
    whole = ["_Attended", "_Finished"]
    left = ["_Finished"] if "self." in name else ["_Attended"]
    assert nodes == ([*whole, *left] if number else [*left, *whole])


def test_widths_that_the_kernels_do_not_take(nodes: list[str]) -> None:
    config = tiny().config
    config.intermediate_size = 66
    model = trained(type(tiny())(config).to(torch.bfloat16), "lora")
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended"] * 2


def test_a_feed_forward_of_a_callers_own(nodes: list[str]) -> None:
    model = trained(tiny(), "lora")

    def replace() -> None:
        model.bert.encoder.layer[0].feed_forward_chunk = lambda x: x

    check_bits(inside(model, replace), by_modules(model, replace))
    assert nodes == ["_Attended", "_Attended", "_Finished"]


def test_feed_forward_layers_in_chunks(nodes: list[str]) -> None:
    model = trained(tiny(p=0.1), "lora")
    model.bert.encoder.layer[0].chunk_size_feed_forward = 1
    check_bits(inside(model), by_modules(model))
    assert nodes == ["_Attended", "_Attended", "_Finished"]


def test_without_the_kernel_of_dropout_modules_compute_the_second_half(
    monkeypatch: pytest.MonkeyPatch, nodes: list[str]
) -> None:
    monkeypatch.setattr(dropout.KERNEL, "_built", False)
    inside(trained(tiny(p=0.1), "lora"))
    assert nodes == ["_Attended"] * 2


def test_a_norm_changed_before_the_backward_pass_is_refused() -> None:
    model = trained(tiny(), "lora")
    with fast(model):
        logits = model(**batch()).logits
        with torch.no_grad():
            model.bert.encoder.layer[0].output.LayerNorm.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.sum().backward()


def test_a_block_may_be_called_by_its_arguments_names(nodes: list[str]) -> None:
    model = trained(tiny(), "lora").eval()
    block = model.bert.encoder.layer[0]
    with fast(model), torch.no_grad():
        wanted = model(**batch()).logits
        by_node = block.forward
        block.forward = lambda x, *masks, **named: by_node(hidden_states=x)
        assert torch.equal(model(**batch()).logits, wanted)
        block.forward = by_node
    assert nodes == ["_Attended", "_Finished"] * 4


def test_without_a_backward_pass_nothing_is_kept() -> None:
    """What a node would save for it is freed when the next kernel has read it."""
    model = trained(tiny(p=0.1), "lora").eval()
    widened: list[weakref.ref[torch.Tensor]] = []
    found: list[bool] = []
    gelu, norm = torch.ops.peftlab.gelu, block_module.add_and_norm

    def noted_gelu(x: torch.Tensor) -> torch.Tensor:
        widened.append(weakref.ref(x))
        return gelu(x)

    def noted_norm(*args: Any) -> Any:
        found.extend(one() is not None for one in widened)
        widened.clear()
        return norm(*args)

    with pytest.MonkeyPatch.context() as patch, fast(model), torch.no_grad():
        patch.setattr(block_module, "add_and_norm", noted_norm)
        patch.setattr(torch.ops.peftlab, "gelu", noted_gelu)
        model(**batch())
    assert found == [False] * 2


def test_hidden_states_asked_for_before_do_not_matter(nodes: list[str]) -> None:
    """Transformers then leaves hooks on blocks and on attention."""
    model = trained(tiny(p=0.1), "lora")
    wanted = inside(model)
    assert len(model(**batch(), output_hidden_states=True).hidden_states) == 3
    nodes.clear()
    check_bits(inside(model), wanted)
    assert nodes == ["_Attended", "_Finished"] * 2


def test_hidden_states_and_a_callers_autocast_are_left_to_modules(nodes: list[str]) -> None:
    model = trained(tiny(), "lora").eval()
    with fast(model):
        with torch.inference_mode():
            model(**batch())
        assert nodes == ["_Attended", "_Finished"] * 2
        nodes.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch())
        model(**batch(), output_hidden_states=True)
        assert not nodes
        model(**batch())  # by the hooks that transformers has left
        assert nodes == ["_Attended", "_Finished"] * 2
