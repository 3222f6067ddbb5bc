"""The engine: inside `with fast(model)` the same training, at the speed of its matrix products.

    frozen.py     frozen layers as bare products; query, key and value as one; updates beside them
    weights.py    their weights and products, in bf16 and in eight bits
    packing.py    the tokens of a batch end to end, without padding; the last block only for the
                  token that the classifier reads
    sentences.py  attention of such a batch, in C++
    attention.py  else plain products instead of a CPU's flash kernel
    mpnet.py      both for a model that has an attention of its own
    dropout.py    dropout, residual sum and LayerNorm as one pass, in C++
    bits.py       random bits, of dropout here and in attention
    heap.py       memory that a step frees is the next one's, not the kernel's

Outside the context the model is plain transformers again, its weights the same bits: it can be
copied, saved and merged. Each part stands beside what it replaces, and a test holds the two
together (tests/engine).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.engine import dropout, sentences
from peftlab.engine.attention import lets_choose, plain_attention
from peftlab.engine.bits import Bits, NoBits
from peftlab.engine.frozen import FrozenLinear, Joined, refuse_assigning
from peftlab.engine.heap import give_back, kept_heap
from peftlab.engine.mpnet import is_mpnet, replace_attention
from peftlab.engine.packing import Laid, cut_to_position, ends_at_first, notice, pack_batches
from peftlab.engine.weights import onednn_multiplies
from peftlab.layers import native, rows
from peftlab.layers.int8 import Int8Linear
from peftlab.layers.linear import QuantisedLinear, features, is_conv1d
from peftlab.layers.lora import LowRank
from peftlab.layers.precision import is_bare
from peftlab.models import state_of
from peftlab.models.targets import CROSSING, SIBLINGS


@contextmanager
def fast(model: Any, enabled: bool = True, real: bool = True) -> Iterator[Laid]:
    """Make `model` fast inside the context, and plain again behind it, whatever happens there.

    Inside another `fast` of the same model it does nothing. One thread at a time may use the model
    meanwhile. The context is how batches lie, where they are packed.

    Args:
        model: of transformers, injected with a method or not.
        enabled: whether to do anything at all.
        real: whether the model has numbers. Of one that has only shapes (torch's FakeTensorMode)
            masks are shapes too, the heap is left alone, and the context must be told the lengths
            of a batch's sentences.
    """
    with ExitStack() as undo:
        state, laid = state_of(model), Laid()
        if enabled and not state.fast:
            state.fast = True
            undo.callback(setattr, state, "fast", False)
            is_cut = ends_at_first(model)  # as it was before anything stands in for its parts
            if is_cut:
                notice(model, laid, undo)
            if model.device.type == "cpu":
                _for_cpu(model, laid, undo, real)
            if is_cut:
                cut_to_position(model, laid, undo)
        yield laid


def own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, what the engine stands in for and what is packed among them."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            yield from module.tensors
        if isinstance(module, QuantisedLinear):
            yield from module.unregistered


def packs(model: Any) -> bool:
    """Whether `fast` lays the batches of `model` end to end, on a CPU."""
    attends = is_mpnet(model) or lets_choose(model)
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return (
        ends_at_first(model)
        and attends
        and dtypes <= sentences.DTYPES
        and not _computes_again(model)
        and sentences.is_built()
    )


def kernels_of(model: Any) -> str:
    """The engine's kernels in C++ that serve `model` on a CPU, "torch" if none; outside of it."""
    serve = {sentences: packs(model), dropout: not _computes_again(model) and dropout.serves(model)}
    return ", ".join(part.SOURCE.name for part, serves in serve.items() if serves) or "torch"


def kernels() -> dict[str, str]:
    """What has become of the kernels in C++, in words, by the names of their files."""
    parts = (sentences, dropout, rows)
    return {part.SOURCE.name: native.standing(part.SOURCE, *part.FLAGS) for part in parts}


def _for_cpu(model: Any, laid: Laid, undo: ExitStack, real: bool) -> None:
    # a layer computed again in the backward pass must meet the same masks, and torch replays its
    # own generator only
    if not _computes_again(model):
        bits = Bits() if real else NoBits()
        if packs(model):
            pack_batches(model, laid, undo)
            if is_mpnet(model):
                replace_attention(model, bits, laid, undo)
        undo.enter_context(plain_attention(model, bits, laid))
        _replace_dropout(model, bits, undo)
        dropout.join_residuals(model, bits, undo)
    if real:
        undo.enter_context(kept_heap())
    _join(model, undo)
    if real:
        give_back()  # the weights that are parts of joined ones now


def _computes_again(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _replace_dropout(model: nn.Module, bits: Bits, undo: ExitStack) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout and module.p > 0 and is_bare(module):
            quick = dropout.FastDropout(module.p, bits).train(module.training)
            _swap(model, name, module, quick, undo)


def _join(model: nn.Module, undo: ExitStack) -> None:
    refuse_assigning(model, undo)
    for names in _groups(model):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        # the weights that are made here stay in the model: under a caller's inference_mode they
        # could never be trained beside again
        with torch.inference_mode(False):
            joined = Joined(layers, [_adapter(model, name) for name in names])
            undo.callback(joined.part)
            joined.share()
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            _swap(model, name, layer, FrozenLinear(layer, joined, index), undo)


def _swap(model: nn.Module, name: str, old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    model.set_submodule(name, new)
    undo.callback(lambda: model.set_submodule(name, old.train(new.training)))


def _groups(model: nn.Module) -> list[list[str]]:
    """The frozen layers, those of one input together."""
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    groups: dict[tuple[str, tuple[str, ...], type, int], list[str]] = {}
    for name, module in model.named_modules():
        if not _is_frozen_linear(module):
            continue
        if not isinstance(module, Int8Linear) and not _is_multiplied(module, owners):
            continue
        parent, own = _place(name)
        crosses = parent.rpartition(".")[2] in CROSSING  # its query has another input than its key
        family = next((names for names in SIBLINGS if own in names and not crosses), (own,))
        kind = (parent, family, type(module), features(module).inside)
        groups.setdefault(kind, []).append(name)
    return list(groups.values())


def _is_multiplied(module: Any, owners: Counter[int]) -> bool:
    """Whether oneDNN gains by the layer, and its weight is no other's."""
    return owners[id(module.weight)] == 1 and onednn_multiplies(module)


def _place(name: str) -> tuple[str, str]:
    """Where a layer stands, and what it is called there: an adapter's `base` by the adapter."""
    parent, _, own = name.removesuffix(".base").rpartition(".")
    return parent, own


def _adapter(model: nn.Module, name: str) -> LowRank | None:
    """What updates the layer of this name, if the update's input is the layer's own."""
    parent, _, own = name.rpartition(".")
    adapter = model.get_submodule(parent)
    if own == "base" and isinstance(adapter, LowRank) and type(adapter.dropout) is nn.Identity:
        return adapter
    return None


def _is_frozen_linear(module: Any) -> bool:
    is_linear = type(module) is nn.Linear or is_conv1d(module) or isinstance(module, Int8Linear)
    learns = any(p.requires_grad for p in module.parameters())
    return is_linear and not learns and is_bare(module)
