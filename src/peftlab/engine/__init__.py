"""The engine: inside `with fast(model)` the same training, at the speed of its matrix products.

    frozen.py     frozen layers as bare products; query, key and value as one
    low_rank.py   low-rank updates added to such a product, in C++
    weights.py    their weights and products, in bf16 and in eight bits
    packing.py    the tokens of a batch end to end, without padding; the last block only for the
                  token that the classifier reads
    sentences.py  attention of a packed batch, in C++
    attention.py  attention of a padded batch, as plain products instead of a CPU's flash kernel
    mpnet.py      attention of a packed batch for MPNet, which has a module of its own
    dropout.py    dropout, residual sum and LayerNorm as one pass, in C++
    gelu.py       gelu in bf16, in C++
    block.py      a block of BERT's by two autograd nodes
    bits.py       random bits for dropout, here and in attention
    heap.py       memory that a step frees is kept for the next one

Outside the context the model is plain transformers again, its weights the same bits: it can be
copied, saved and merged. Tests hold each part to the code that it replaces (tests/engine).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.engine import dropout, gelu, low_rank, sentences
from peftlab.engine.attention import can_choose_attention, use_plain_attention
from peftlab.engine.bits import Bits, NoBits
from peftlab.engine.block import fuse_blocks
from peftlab.engine.frozen import FrozenLinear, Joined, refuse_assigning
from peftlab.engine.heap import keep_heap, trim_heap
from peftlab.engine.mpnet import is_mpnet, replace_attention
from peftlab.engine.packing import (
    Layout,
    can_cut_last_block,
    cut_last_block,
    pack_batches,
    track_only_logits,
)
from peftlab.engine.weights import onednn_multiplies
from peftlab.layers import gain, products, rows
from peftlab.layers.int8 import Int8Linear
from peftlab.layers.linear import (
    QuantisedLinear,
    base_dtype,
    features,
    is_conv1d,
    weight_of,
)
from peftlab.layers.lora import LowRank
from peftlab.layers.precision import is_unmodified
from peftlab.models import state_of
from peftlab.models.targets import CROSSING, SIBLINGS

KERNELS = tuple(
    module.KERNEL for module in (sentences, dropout, gelu, products, low_rank, gain, rows)
)


@contextmanager
def fast(model: Any, enabled: bool = True, real: bool = True) -> Iterator[Layout]:
    """Make `model` fast inside the context, and plain again on leaving it, also after an error.

    Inside another `fast` of the same model it does nothing. One thread at a time may use the model
    meanwhile. The context's value is the layout of packed batches.

    Args:
        model: of transformers, injected with a method or not.
        enabled: whether to do anything at all.
        real: whether the model has numbers. For one that has only shapes (torch's FakeTensorMode)
            dropout masks are shapes too, the heap is left alone, and the caller must set the
            `lengths` of a batch's sentences.
    """
    with ExitStack() as undo:
        state, layout = state_of(model), Layout()
        if enabled and not state.fast:
            state.fast = True
            undo.callback(setattr, state, "fast", False)
            cuts_last_block = can_cut_last_block(model)  # decided before any module is replaced
            if cuts_last_block:
                track_only_logits(model, layout, undo)
            if model.device.type == "cpu":
                _speed_up_on_cpu(model, layout, undo, real)
            if cuts_last_block:
                cut_last_block(model, layout, undo)
        yield layout


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, those of layers that the engine replaces, and packed copies."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            yield from module.tensors
        if isinstance(module, QuantisedLinear):
            yield from module.unregistered


def can_pack(model: Any) -> bool:
    """Whether `fast` packs the batches of `model` on a CPU."""
    has_attention = is_mpnet(model) or can_choose_attention(model)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return (
        can_cut_last_block(model)
        and has_attention
        and dtypes <= sentences.DTYPES
        and not _recomputes_activations(model)
        and sentences.KERNEL.is_built()
    )


def kernels_of(model: Any, enabled: bool = True) -> str:
    """The files of the C++ kernels that `model` inside `fast` uses on a CPU, "torch" if none.

    Called outside of the engine. With `enabled=False`, those that it uses without.
    """
    uses = {
        sentences: enabled and can_pack(model),
        dropout: enabled and not _recomputes_activations(model) and dropout.serves(model),
        gelu: enabled and not _recomputes_activations(model) and gelu.serves(model),
        products: _has_native_codes(model) or (enabled and _has_native_products(model)),
        low_rank: enabled and _has_native_updates(model),
        gain: gain.serves(model),
    }
    return ", ".join(module.KERNEL.name for module, used in uses.items() if used) or "torch"


def _speed_up_on_cpu(model: Any, layout: Layout, undo: ExitStack, real: bool) -> None:
    bits = Bits() if real else NoBits()
    packs = can_pack(model)  # decided before any module is replaced
    # a layer recomputed in the backward pass needs the same masks again, and torch replays its own
    # generator only
    if not _recomputes_activations(model):
        if packs:
            pack_batches(model, layout, undo)
            if is_mpnet(model):
                replace_attention(model, bits, layout, undo)
        undo.enter_context(use_plain_attention(model, bits, layout))
        _replace_dropout(model, bits, undo)
        dropout.fuse_residuals(model, bits, undo)
        _replace_gelu(model, undo)
    if real:
        undo.enter_context(keep_heap())
    _join_frozen_layers(model, undo)
    if packs:
        fuse_blocks(model, bits, layout, undo)
    if real:
        trim_heap()  # the layers' former weights, which the joined ones replace


def _recomputes_activations(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _replace_dropout(model: nn.Module, bits: Bits, undo: ExitStack) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout and module.p > 0 and is_unmodified(module):
            fast_dropout = dropout.FastDropout(module.p, bits).train(module.training)
            _swap(model, name, module, fast_dropout, undo)


def _replace_gelu(model: nn.Module, undo: ExitStack) -> None:
    if gelu.serves(model):
        for name, module in gelu.gelus_of(model):
            _swap(model, name, module, gelu.FastGelu().train(module.training), undo)


def _join_frozen_layers(model: nn.Module, undo: ExitStack) -> None:
    refuse_assigning(model, undo)
    for names in _joinable_groups(model):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        # weights made here stay in the model: made under a caller's inference_mode, they could take
        # part in no later training
        with torch.inference_mode(False):
            joined = Joined(layers, [_joinable_adapter(model, name) for name in names])
            undo.callback(joined.separate)
            joined.share()
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            _swap(model, name, layer, FrozenLinear(joined, index), undo)


def _swap(model: nn.Module, name: str, old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    model.set_submodule(name, new)
    undo.callback(lambda: model.set_submodule(name, old.train(new.training)))


def _joinable_groups(model: nn.Module) -> list[list[str]]:
    """The names of the frozen layers, those with the same input in one group."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    groups: dict[tuple[str, tuple[str, ...], type, int], list[str]] = {}
    for name, module in model.named_modules():
        if not _is_frozen_linear(module):
            continue
        if not isinstance(module, Int8Linear) and not _is_multiplied(module, owners):
            continue
        parent, leaf = _split_name(name)
        crosses = parent.rpartition(".")[2] in CROSSING  # its query and key have different inputs
        siblings = next((names for names in SIBLINGS if leaf in names and not crosses), (leaf,))
        key = (parent, siblings, type(module), features(module).inside)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _has_native_codes(model: nn.Module) -> bool:
    """Whether products.cpp multiplies by any weight in eight bits, in the engine or without."""
    return any(isinstance(module, Int8Linear) and module.is_native for module in model.modules())


def _has_native_products(model: nn.Module) -> bool:
    """Whether products.cpp multiplies by any joined weight in bf16."""
    for names in _joinable_groups(model):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        if isinstance(layers[0], Int8Linear):
            continue
        if products.serves([weight_of(layer) for layer in layers]):
            return True
    return False


def _has_native_updates(model: nn.Module) -> bool:
    """Whether low_rank.cpp adds the updates of any joined product."""
    for names in _joinable_groups(model):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        adapters = [_joinable_adapter(model, name) for name in names]
        pairs = [matrix for one in adapters if one is not None for matrix in one.pair()[:2]]
        width = sum(features(layer).outside for layer in layers)
        if pairs and low_rank.serves(pairs, width, base_dtype(layers[0])):
            return True
    return False


def _is_multiplied(module: Any, owners: Counter[int]) -> bool:
    """Whether the layer is faster by oneDNN, and shares its weight with no other."""
    return owners[id(module.weight)] == 1 and onednn_multiplies(module)


def _split_name(name: str) -> tuple[str, str]:
    """The parent of a layer and its name there; an adapter's `base` goes by the adapter."""
    parent, _, leaf = name.removesuffix(".base").rpartition(".")
    return parent, leaf


def _joinable_adapter(model: nn.Module, name: str) -> LowRank | None:
    """The low-rank adapter of the layer of this name, if both have the same input."""
    parent, _, leaf = name.rpartition(".")
    adapter = model.get_submodule(parent)
    if leaf == "base" and isinstance(adapter, LowRank) and type(adapter.dropout) is nn.Identity:
        return adapter
    return None


def _is_frozen_linear(module: Any) -> bool:
    is_linear = type(module) is nn.Linear or is_conv1d(module) or isinstance(module, Int8Linear)
    is_trained = any(p.requires_grad for p in module.parameters())
    return is_linear and not is_trained and is_unmodified(module)
