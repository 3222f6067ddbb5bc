"""No padding in the blocks: the tokens of a batch laid end to end.

    (batch, length, hidden)   what the embeddings give
    (1, rows, hidden)         in the blocks: a row for each token
    (batch, 1, hidden)        behind the last attention: the token that the classifier reads

Of a batch that is drawn at random a third is padding on CoLA and STS-B, a sixth on MRPC (LOG.md).
All that a block computes but attention is of each token by itself, and attention goes sentence by
sentence (sentences.py), where that can be built; else batches stay padded.

The number of rows is one of few, since a number that was met before needs no new kernels. The rows
beyond the last token are of no sentence: no key, no answer, so nothing flows back through them.

The last block is computed only for the token that the classifier reads, where that is the first:
attention needs every token's key and value, and nothing behind it more than one output a sentence.
Exact, forward and backward; of six layers it saves a tenth of the work. That is done where batches
are not packed, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftlab.layers import is_added
from peftlab.models import architecture_of, is_as_written

ASKED = "peftlab_asked"  # attribute of attention: of how many positions outputs are read
ASKS = ("output_attentions", "output_hidden_states")
FINE = 16  # numbers of rows from one power of two to the next


@dataclass(frozen=True)
class Packing:
    """Which row of a packed batch is which place of the padded one.

    Attributes:
        size, length: of the padded batch, which has size · length places.
        rows: (size · length,), of each place; padding's is the last, which is no token's.
        places: (number of rows,), of each row; of those that are no token's, any.
        bounds: (size + 1,), the rows of the first tokens, and the number of tokens, whose rows come
            first.
        n_tokens: that number.
    """

    size: int
    length: int
    rows: Tensor
    places: Tensor
    bounds: Tensor
    n_tokens: int

    @property
    def starts(self) -> Tensor:
        """(size,), the rows of the first tokens."""
        return self.bounds[:-1]

    def spread(self, x: Tensor) -> Tensor:
        """(number of rows, width) -> (size · length, width)."""
        return x.index_select(0, self.rows)

    def pack(self, x: Tensor) -> Tensor:
        """(size · length, width) -> (number of rows, width), 0 where no token is."""
        packed = x.index_select(0, self.places)
        packed[self.n_tokens :] = 0
        return packed


def packing(lengths: Sequence[int], length: int) -> Packing:
    """How sentences of these lengths lie, which were padded on the right to `length`.

    >>> packing([2, 1], 2).rows.tolist(), packing([2, 1], 2).starts.tolist()
    ([0, 1, 2, 3], [0, 2])
    """
    is_token = (np.arange(length) < np.asarray(lengths)[:, None]).ravel()
    n_tokens = int(is_token.sum())
    n_rows = rows_for(n_tokens)
    rows = np.full(len(is_token), n_rows - 1)
    rows[is_token] = np.arange(n_tokens)
    places = np.zeros(n_rows, dtype=rows.dtype)
    places[:n_tokens] = is_token.nonzero()[0]
    return Packing(
        size=len(lengths),
        length=length,
        rows=torch.from_numpy(rows),
        places=torch.from_numpy(places),
        bounds=torch.from_numpy(np.append(0, np.cumsum(lengths))),
        n_tokens=n_tokens,
    )


def rows_for(n_tokens: int) -> int:
    """The rows that so many tokens are laid in: one more at least, and a number that is met often.

    >>> [rows_for(n) for n in (5, 31, 300, 1000)]
    [6, 32, 304, 1024]
    """
    return met_often(n_tokens + 1, FINE)


def met_often(least: int, an_octave: int) -> int:
    """The next number of which there are so many from one power of two to the next.

    >>> [met_often(n, 4) for n in (3, 9, 100, 129)]
    [3, 10, 112, 160]
    """
    step: int = max(1, 2 ** ((least - 1).bit_length() - 1) // an_octave)
    return -(-least // step) * step


@dataclass
class Laid:
    """How the batch lies that is in the model now.

    Attributes:
        packing: None outside of a forward pass, and where nothing is packed.
        lengths: of the sentences of a batch that has only a shape, which its mask can't tell.
        only_logits: whether nothing but logits is asked of the model, in the pass that is on or was
            the last: layers that are computed again on the way back must meet it.
    """

    packing: Packing | None = None
    lengths: Sequence[int] | None = None
    only_logits: bool = True

    def read(self, mask: Tensor | None) -> None:
        """Take a batch's attention mask (size, length), if it is 1 for tokens, 0 behind them."""
        self.packing = None
        if mask is None or mask.dim() != 2:
            return
        if self.lengths is None:
            lengths = mask.sum(1, dtype=torch.long)
            places = torch.arange(mask.shape[1])
            if bool((lengths < 1).any()) or not torch.equal(mask > 0, places < lengths[:, None]):
                return
            self.packing = packing(lengths.tolist(), mask.shape[1])
        else:
            self.packing = packing(self.lengths, mask.shape[1])


class _Pack(torch.autograd.Function):
    """(size, length, width) -> (1, rows, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packing.pack(x.reshape(-1, x.shape[-1])).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        found: Packing = ctx.packing
        return found.spread(g[0]).view(found.size, found.length, -1), None


def pack_batches(model: Any, laid: Laid, undo: ExitStack) -> None:
    """Let the blocks of `model` get packed batches, and `laid` say how they lie."""
    layers = architecture_of(model).layers
    assert layers is not None
    blocks = model.base_model.get_submodule(layers.block.partition(r"\.")[0])

    def before_model(module: nn.Module, args: Any, kwargs: Any) -> None:
        if laid.only_logits:  # whoever reads more expects it padded
            laid.read(kwargs.get("attention_mask"))

    def after_model(*_: Any) -> None:
        laid.packing = None

    def before_blocks(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if laid.packing is None:
            return None
        if args:
            return (_Pack.apply(args[0], laid.packing), *args[1:]), kwargs  # type: ignore[no-untyped-call]
        name = next(iter(kwargs))  # the hidden states come first, whatever they are called
        return args, kwargs | {name: _Pack.apply(kwargs[name], laid.packing)}  # type: ignore[no-untyped-call]

    for hook in (
        model.register_forward_pre_hook(before_model, with_kwargs=True),
        model.register_forward_hook(after_model, always_call=True),
        blocks.register_forward_pre_hook(before_blocks, with_kwargs=True),
    ):
        undo.callback(hook.remove)


def notice(model: Any, laid: Laid, undo: ExitStack) -> None:
    """Let `laid` say of every pass whether only logits are asked for.

    Hidden states may be, or the backbone be called without its head.
    """
    is_headed = False

    def before_model(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal is_headed
        is_headed = True
        asked = {name: kwargs.get(name) for name in ASKS}
        laid.only_logits = not any(
            getattr(model.config, name) if given is None else given for name, given in asked.items()
        )

    def after_model(*_: Any) -> None:
        nonlocal is_headed
        is_headed = False

    def before_backbone(*_: Any) -> None:
        laid.only_logits &= is_headed

    for hook in (
        model.register_forward_pre_hook(before_model, with_kwargs=True),
        model.register_forward_hook(after_model, always_call=True),
        model.base_model.register_forward_pre_hook(before_backbone),
    ):
        undo.callback(hook.remove)


def ends_at_first(model: Any) -> bool:
    """Whether the head of `model` reads the first token alone, and its last block is known."""
    theirs = type(model).forward.__qualname__.partition(".")[0]
    is_classifier = theirs.endswith("ForSequenceClassification")
    is_chunked = getattr(model.config, "chunk_size_feed_forward", 0) > 1  # by its own row lengths
    ends = architecture_of(model).ends_at_first and not is_chunked
    return is_classifier and ends and is_as_written(model) and not _repeats(model)


def _repeats(model: nn.Module) -> bool:
    """Whether a module with weights stands at two places: the last block may be an earlier one."""
    of_method = is_added(model)  # whose modules may be one
    modules = [
        module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters(recurse=False)) and not of_method(f"{name}.")
    ]
    return len(set(modules)) < len(modules)


def cut_to_position(model: Any, laid: Laid, undo: ExitStack) -> None:
    """Compute the last block of `model`, which `ends_at_first`, only where its head reads it.

    The residual add behind attention has all tokens on its other side. So the output projection's
    few rows are laid among zeros again where a batch is packed, and broadcast where it is not; of
    the sum the norm behind it keeps the rows where it is right.
    """
    layers = architecture_of(model).layers
    assert layers is not None and layers.attention_norm is not None
    attention = _last(model, layers.query.rpartition(r"\.")[0])
    setattr(attention, ASKED, 1)
    undo.callback(delattr, attention, ASKED)

    def first(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        if not laid.only_logits:
            return inputs
        if laid.packing is None:
            return x[:, :1], *others
        return x[0].index_select(0, laid.packing.starts).unsqueeze(1), *others

    def among_zeros(module: nn.Module, inputs: Any, x: Tensor) -> Tensor | None:
        if laid.packing is None:
            return None
        rows = x.new_zeros(len(laid.packing.places), x.shape[-1])
        return rows.index_copy(0, laid.packing.starts, x.flatten(0, 1)).unsqueeze(0)

    for hook in (
        _last(model, layers.attention_output).register_forward_pre_hook(first),
        _last(model, layers.attention_end).register_forward_hook(among_zeros),
        _last(model, layers.attention_norm).register_forward_pre_hook(first),
    ):
        undo.callback(hook.remove)


def _last(model: nn.Module, pattern: str) -> nn.Module:
    """The module so named in the block of the highest number; an adapter may stand in its place."""
    found: dict[int, nn.Module] = {
        int(match[1]): module
        for name, module in reversed(list(model.named_modules()))  # the outermost of a name wins
        if (match := re.fullmatch(rf".*\.(\d+)\.{pattern}", name.replace(".base", "")))
    }
    return found[max(found)]
