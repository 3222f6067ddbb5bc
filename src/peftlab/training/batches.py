"""From texts to batches: tokens once, then batches that the seed draws, at random or by length.

An epoch's batches differ in size by one example at most, so that none is a step of a few. A batch
is padded to its longest example; batches of like lengths save most of the padding, and which
examples meet in them still changes every epoch. Long batches are padded a little further, since a
width that was met before needs no new kernels: a CPU makes some 19, of 0.5 to 4 ms each (LOG.md).
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftlab.engine.packing import met_often

WIDTHS = 8  # from 16 tokens to 32, as many from 32 to 64, and so on; see `rounded`
CPU = torch.device("cpu")
POOL = 50  # batches' worth of shuffled examples that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """Examples as the model takes them.

    Attributes:
        inputs: by name, each (batch, length).
        labels: (batch,), class indices or numbers.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def n_tokens(self, packed: bool) -> int:
        """The tokens that a pass computes: padding among them, unless it is known and packed."""
        mask = self.inputs.get("attention_mask")
        return int(mask.sum()) if packed and mask is not None else self.inputs["input_ids"].numel()

    def split(self, parts: int) -> list[Batch]:
        """The batch in so many parts, or one an example; their sizes differ by one at most."""
        parts = min(parts, len(self.labels))
        pieces = {name: tensor.tensor_split(parts) for name, tensor in self.inputs.items()}
        return [
            Batch({name: piece[i] for name, piece in pieces.items()}, labels)
            for i, labels in enumerate(self.labels.tensor_split(parts))
        ]


@dataclass(frozen=True)
class Encoded:
    """A split as tokens.

    Attributes:
        features: by name (input_ids, attention_mask, ...), one list of integers an example.
        labels: class indices or numbers.
        padding: the value that fills each feature up.
        n_truncated: examples that were longer than the limit and lost their end.
    """

    features: dict[str, list[list[int]]]
    labels: Sequence[int] | Sequence[float]
    padding: dict[str, int]
    n_truncated: int

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(ids) for ids in self.features["input_ids"]]

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(self.lengths)

    def width(self, indices: Sequence[int]) -> int:
        """Tokens that a batch of these examples is padded to."""
        return min(self.longest, rounded(max(self.lengths[i] for i in indices)))

    def batch(self, indices: Sequence[int], device: torch.device = CPU) -> Batch:
        """The examples at `indices`, padded to `width` of them, on `device`."""
        width = self.width(indices)
        inputs = {
            name: torch.tensor(
                [rows[i] + [self.padding[name]] * (width - self.lengths[i]) for i in indices]
            )
            for name, rows in self.features.items()
        }
        labels = torch.tensor([self.labels[i] for i in indices])
        return Batch(
            {name: _moved(x, device) for name, x in inputs.items()}, _moved(labels, device)
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On CUDA a copy from pinned memory, which doesn't wait for the one before it.

    From any other memory such a copy may be made when that is another's (pytorch#189690, on mps).
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rounded(length: int) -> int:
    """The next length of which there are `WIDTHS` from one power of two to the next.

    >>> [rounded(length) for length in (7, 16, 17, 33, 100)]
    [7, 16, 18, 36, 104]
    """
    return met_often(length, WIDTHS)


def encode(
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int] | Sequence[float],
    max_length: int,
) -> Encoded:
    """Tokenise texts of one or two columns, cut to `max_length` tokens.

    A text that has no token, as "" has none where the tokenizer adds none, is the one token that
    texts begin with, else that they end with, else padding: a model answers nothing of nothing, and
    beside longer texts it would answer of their padding.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    coded = tokenizer(*columns, truncation=True, max_length=max_length)
    features = {name: coded[name] for name in tokenizer.model_input_names if name in coded}
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
    }
    _fill_empty(tokenizer, features)
    cut = sum(bool(encoding.overflowing) for encoding in coded.encodings)
    return Encoded(features, labels, {name: padding[name] for name in features}, cut)


def _fill_empty(tokenizer: Any, features: dict[str, list[list[int]]]) -> None:
    empty = [index for index, ids in enumerate(features["input_ids"]) if not ids]
    if not empty:
        return
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    one = {
        "input_ids": next(token for token in known if token is not None),
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 1,
    }
    for name, rows in features.items():
        for index in empty:
            rows[index] = [one[name]]


def draw(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, by_length: bool
) -> list[list[int]]:
    """One epoch's batches of indices: every example once, as many batches as must be.

    Args:
        lengths: tokens of each example.
        batch_size: the most examples of a batch.
        seed: of the run.
        epoch: from 0.
        by_length: whether neighbours in length meet, in pools of `POOL` batches; else chance alone
            decides who does.

    >>> sorted(sum(draw([3, 1, 2, 5, 4], 2, seed=0, epoch=0, by_length=True), []))
    [0, 1, 2, 3, 4]
    """
    order = random.Random(f"{seed}/{epoch}")  # a string is hashed by SHA-512: no seed meets another
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    sizes = spread(len(indices), batch_size)
    order.shuffle(sizes)  # else it would be the longest of a pool that are in a small batch
    if not by_length:
        return cut(indices, sizes)
    pools = cut(sizes, spread(len(sizes), POOL))
    batches: list[list[int]] = []
    for pool, members in zip(pools, cut(indices, map(sum, pools)), strict=True):
        batches += cut(sorted(members, key=lengths.__getitem__), pool)
    order.shuffle(batches)
    return batches


def spread(count: int, most: int) -> list[int]:
    """`count` as the fewest numbers of at most `most`, no two of which differ by more than one.

    >>> spread(33, 32), spread(7, 3)
    ([17, 16], [3, 2, 2])
    """
    return evenly(count, -(-count // most))


def evenly(count: int, parts: int) -> list[int]:
    """`count` as so many numbers, no two of which differ by more than one.

    >>> evenly(10, 6)
    [2, 2, 2, 2, 1, 1]
    """
    return [count // parts + (index < count % parts) for index in range(parts)]


def cut(items: list[int], sizes: Iterable[int]) -> list[list[int]]:
    """Runs of `items` of these sizes.

    >>> cut([7, 8, 9], [1, 2])
    [[7], [8, 9]]
    """
    ends = list(itertools.accumulate(sizes))
    return [items[start:end] for start, end in itertools.pairwise([0, *ends])]


def stratified(labels: Sequence[float], size: int, seed: int) -> list[int]:
    """Indices of a sample in which every class, or every range of numbers, has its share.

    The examples are put in the order of their labels, equal ones shuffled, and taken from it at
    even distances.

    >>> sample = stratified([0] * 80 + [1] * 20, size=10, seed=0)
    >>> sum(index >= 80 for index in sample)
    2
    """
    indices = list(range(len(labels)))
    random.Random(f"{seed}/sample").shuffle(indices)
    indices.sort(key=labels.__getitem__)
    size = min(size, len(indices))
    return [indices[(2 * i + 1) * len(indices) // (2 * size)] for i in range(size)]


def by_length(lengths: Sequence[int], batch_size: int, most_tokens: int) -> Iterator[list[int]]:
    """Batches of indices for evaluation, shortest first, of at most so many tokens with padding.

    >>> list(by_length([5, 9, 2, 4], batch_size=3, most_tokens=10))
    [[2, 3], [0], [1]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # the next one is the longest so far
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[index] > most_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
