"""Batches without padding: in the blocks the tokens of all sentences are laid end to end.

    (batch, length, hidden)   output of the embeddings
    (1, rows, hidden)         in the blocks: one row for each token
    (batch, 1, hidden)        after the last attention: the token that the classifier reads

In a randomly drawn batch a third of the tokens is padding on CoLA and STS-B, a sixth on MRPC
(LOG.md). All parts of a block but attention compute each token by itself, and attention goes
sentence by sentence (sentences.py), if that can be built; otherwise batches stay padded.

The number of rows is rounded up to one of few, since a number that has occurred before needs no new
kernels. The rows after the last token belong to no sentence: they are no keys and no output reads
them, so no gradient flows through them.

The last block is computed only for the token that the classifier reads, if that is the first:
attention needs the key and value of every token, but everything after it only one output a
sentence. Exact, forward and backward; with six layers it saves a tenth of the work. It is done for
padded batches, too.
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
from peftlab.models.state import not_inside

N_QUERIES = "peftlab_n_queries"  # attribute of attention: how many positions' outputs are read
EXTRA_OUTPUTS = ("output_attentions", "output_hidden_states")
ROWS_PER_OCTAVE = 16  # numbers of rows between powers of two


@dataclass(frozen=True)
class Packing:
    """The rows of a packed batch and the places of the padded one that belong to each other.

    Attributes:
        size, length: of the padded batch, which has size · length places.
        row_of_place: (size · length,); for padding it is the last row, which is no token's.
        place_of_row: (number of rows,); for rows without a token it is any place.
        bounds: (size + 1,), the row of each sentence's first token, then the number of tokens.
        n_tokens: the number of tokens, whose rows come first.
    """

    size: int
    length: int
    row_of_place: Tensor
    place_of_row: Tensor
    bounds: Tensor
    n_tokens: int

    @property
    def starts(self) -> Tensor:
        """(size,), the row of each sentence's first token."""
        return self.bounds[:-1]

    def unpack(self, x: Tensor) -> Tensor:
        """(number of rows, width) -> (size · length, width)."""
        return x.index_select(0, self.row_of_place)

    def pack(self, x: Tensor) -> Tensor:
        """(size · length, width) -> (number of rows, width), 0 in rows without a token."""
        packed = x.index_select(0, self.place_of_row)
        packed[self.n_tokens :] = 0
        return packed


def make_packing(lengths: Sequence[int], length: int) -> Packing:
    """The packing of sentences of these lengths that were padded on the right to `length`.

    >>> packing = make_packing([2, 1], 2)
    >>> packing.row_of_place.tolist(), packing.starts.tolist()
    ([0, 1, 2, 3], [0, 2])
    """
    is_token = (np.arange(length) < np.asarray(lengths)[:, None]).ravel()
    n_tokens = int(is_token.sum())
    n_rows = rows_for(n_tokens)
    row_of_place = np.full(len(is_token), n_rows - 1)
    row_of_place[is_token] = np.arange(n_tokens)
    place_of_row = np.zeros(n_rows, dtype=row_of_place.dtype)
    place_of_row[:n_tokens] = is_token.nonzero()[0]
    return Packing(
        size=len(lengths),
        length=length,
        row_of_place=torch.from_numpy(row_of_place),
        place_of_row=torch.from_numpy(place_of_row),
        bounds=torch.from_numpy(np.append(0, np.cumsum(lengths))),
        n_tokens=n_tokens,
    )


def rows_for(n_tokens: int) -> int:
    """The number of rows for `n_tokens` tokens: at least one more, rounded up.

    >>> [rows_for(n) for n in (5, 31, 300, 1000)]
    [6, 32, 304, 1024]
    """
    return round_up(n_tokens + 1, ROWS_PER_OCTAVE)


def round_up(count: int, per_octave: int) -> int:
    """`count` rounded up to one of `per_octave` numbers between powers of two.

    >>> [round_up(n, 4) for n in (3, 9, 100, 129)]
    [3, 10, 112, 160]
    """
    step: int = max(1, 2 ** ((count - 1).bit_length() - 1) // per_octave)
    return -(-count // step) * step


@dataclass
class Layout:
    """The layout of the batch that is in the model now.

    Attributes:
        packing: None outside of a forward pass, and if the batch is not packed.
        lengths: the sentences' lengths for a batch without numbers, whose mask can't tell them.
        only_logits: whether the caller asks the model for nothing but logits, in the current pass
            or the last one: layers that the backward pass recomputes need it, too.
    """

    packing: Packing | None = None
    lengths: Sequence[int] | None = None
    only_logits: bool = True

    def __getstate__(self) -> Any:
        raise not_inside("copied")

    def read_mask(self, mask: Tensor | None) -> None:
        """Set the packing by an attention mask (size, length) of 1 for tokens, 0 after them."""
        self.packing = None
        if mask is None or mask.dim() != 2:
            return
        if self.lengths is None:
            lengths = mask.sum(1, dtype=torch.long)
            positions = torch.arange(mask.shape[1])
            if bool((lengths < 1).any()) or not torch.equal(mask > 0, positions < lengths[:, None]):
                return
            self.packing = make_packing(lengths.tolist(), mask.shape[1])
        else:
            self.packing = make_packing(self.lengths, mask.shape[1])

    def first_tokens(self, x: Tensor) -> Tensor:
        """(1, rows, width), or the padded (size, length, width) -> (size, 1, width)."""
        if self.packing is None:
            return x[:, :1]
        return x[0].index_select(0, self.packing.starts).unsqueeze(1)

    def cut(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A hook before `module`, which then gets the `first_tokens` of all its inputs."""
        if not self.only_logits:
            return None
        named = {name: self.first_tokens(x) for name, x in kwargs.items()}
        return tuple(map(self.first_tokens, args)), named


class _Pack(torch.autograd.Function):
    """(size, length, width) -> (1, rows, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packing.pack(x.reshape(-1, x.shape[-1])).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        packing: Packing = ctx.packing
        return packing.unpack(g[0]).view(packing.size, packing.length, -1), None


def pack_batches(model: Any, layout: Layout, undo: ExitStack) -> None:
    """Pack the batches that the blocks of `model` get; `layout` holds the packing of each pass."""
    layers = architecture_of(model).layers
    assert layers is not None
    blocks = model.base_model.get_submodule(layers.block.partition(r"\.")[0])

    def before_model(module: nn.Module, args: Any, kwargs: Any) -> None:
        if layout.only_logits:  # hidden states must come out padded
            layout.read_mask(kwargs.get("attention_mask"))

    def after_model(*_: Any) -> None:
        layout.packing = None

    def before_blocks(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if layout.packing is None:
            return None
        if args:
            return (_Pack.apply(args[0], layout.packing), *args[1:]), kwargs  # type: ignore[no-untyped-call]
        name = next(iter(kwargs))  # the hidden states come first, whatever they are called
        return args, kwargs | {name: _Pack.apply(kwargs[name], layout.packing)}  # type: ignore[no-untyped-call]

    for hook in (
        model.register_forward_pre_hook(before_model, with_kwargs=True),
        model.register_forward_hook(after_model, always_call=True),
        blocks.register_forward_pre_hook(before_blocks, with_kwargs=True),
    ):
        undo.callback(hook.remove)


def track_only_logits(model: Any, layout: Layout, undo: ExitStack) -> None:
    """Set `layout.only_logits` before every pass.

    It is false if the caller asks for hidden states, or calls the backbone without its head.
    """
    is_headed = False

    def before_model(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal is_headed
        is_headed = True
        requested = {name: kwargs.get(name) for name in EXTRA_OUTPUTS}
        layout.only_logits = not any(
            getattr(model.config, name) if value is None else value
            for name, value in requested.items()
        )

    def after_model(*_: Any) -> None:
        nonlocal is_headed
        is_headed = False

    def before_backbone(*_: Any) -> None:
        layout.only_logits &= is_headed

    for hook in (
        model.register_forward_pre_hook(before_model, with_kwargs=True),
        model.register_forward_hook(after_model, always_call=True),
        model.base_model.register_forward_pre_hook(before_backbone),
    ):
        undo.callback(hook.remove)


def can_cut_last_block(model: Any) -> bool:
    """Whether the head of `model` reads the first token alone, and its last block is known."""
    class_name = type(model).forward.__qualname__.partition(".")[0]
    is_classifier = class_name.endswith("ForSequenceClassification")
    is_chunked = getattr(model.config, "chunk_size_feed_forward", 0) > 1  # needs its own row count
    ends_at_first = architecture_of(model).ends_at_first and not is_chunked
    return is_classifier and ends_at_first and is_as_written(model) and not _shares_modules(model)


def _shares_modules(model: nn.Module) -> bool:
    """Whether a module with weights occurs twice: the last block may be an earlier one, too."""
    belongs_to_method = is_added(model)  # a method's modules may be shared
    modules = [
        module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters(recurse=False)) and not belongs_to_method(f"{name}.")
    ]
    return len(set(modules)) < len(modules)


def cut_last_block(model: Any, layout: Layout, undo: ExitStack) -> None:
    """Compute the last block of `model` only for the token that its head reads.

    `can_cut_last_block` holds for the model. If the residual sum after attention is not in a module
    of its own, it adds the rows of all tokens. So there the output projection's few rows are put
    back among zeros in a packed batch, and broadcast in a padded one; the norm after the sum keeps
    only the rows where it is right.
    """
    layers = architecture_of(model).layers
    assert layers is not None and layers.attention_norm is not None
    attention = _in_last_block(model, layers.query.rpartition(r"\.")[0])
    setattr(attention, N_QUERIES, 1)
    undo.callback(delattr, attention, N_QUERIES)

    def scatter_rows(module: nn.Module, inputs: Any, x: Tensor) -> Tensor | None:
        if layout.packing is None:
            return None
        rows = x.new_zeros(len(layout.packing.place_of_row), x.shape[-1])
        return rows.index_copy(0, layout.packing.starts, x.flatten(0, 1)).unsqueeze(0)

    if layers.attention_sum is not None:
        cut = [layers.attention_sum]
    else:
        cut = [layers.attention_output, layers.attention_norm]
        end = _in_last_block(model, layers.attention_end)
        undo.callback(end.register_forward_hook(scatter_rows).remove)
    for pattern in cut:
        module = _in_last_block(model, pattern)
        undo.callback(module.register_forward_pre_hook(layout.cut, with_kwargs=True).remove)


def _in_last_block(model: nn.Module, pattern: str) -> nn.Module:
    """The module of this name in the block with the highest number, or the adapter on it."""
    by_block: dict[int, nn.Module] = {
        int(match[1]): module
        for name, module in reversed(list(model.named_modules()))  # the outermost of a name wins
        if (match := re.fullmatch(rf".*\.(\d+)\.{pattern}", name.replace(".base", "")))
    }
    return by_block[max(by_block)]
