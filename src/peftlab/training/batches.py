"""From texts to batches: texts are tokenised once, each epoch's batches are drawn from the seed.

The sizes of an epoch's batches differ by at most one example, so no step sees only a few. A batch
is padded to its longest example. Grouping by length saves most of the padding, and which examples
share a batch still changes every epoch. Widths are rounded up a little, since a width that has
occurred before needs no new kernels: a CPU builds some 19, of 0.5 to 4 ms each (LOG.md).
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

from peftlab.engine.packing import round_up

WIDTHS_PER_OCTAVE = 8  # between 16 and 32 tokens, between 32 and 64, and so on; see `rounded`
CPU = torch.device("cpu")
POOL = 50  # batches whose shuffled examples are sorted by length together


@dataclass(frozen=True)
class Batch:
    """Examples as tensors, in the form that the model takes.

    Attributes:
        inputs: the model's inputs by name, each (batch, length).
        labels: (batch,), class indices or numbers.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def n_tokens(self, packed: bool) -> int:
        """The tokens that a pass computes, padding included unless `packed` with a known mask."""
        mask = self.inputs.get("attention_mask")
        return int(mask.sum()) if packed and mask is not None else self.inputs["input_ids"].numel()

    def split(self, n_parts: int) -> list[Batch]:
        """The batch in `n_parts` parts, at most one an example; sizes differ by at most one."""
        n_parts = min(n_parts, len(self.labels))
        chunks = {name: tensor.tensor_split(n_parts) for name, tensor in self.inputs.items()}
        return [
            Batch({name: chunk[i] for name, chunk in chunks.items()}, labels)
            for i, labels in enumerate(self.labels.tensor_split(n_parts))
        ]


@dataclass(frozen=True)
class Encoded:
    """A tokenised split.

    Attributes:
        features: by name (input_ids, attention_mask, ...), one list of integers an example.
        labels: class indices or numbers.
        padding: the value that each feature is padded with.
        n_truncated: how many examples were longer than the limit and lost their end.
    """

    features: dict[str, list[list[int]]]
    labels: Sequence[int] | Sequence[float]
    padding: dict[str, int]
    n_truncated: int

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def lengths(self) -> list[int]:
        """The number of tokens of each example."""
        return [len(ids) for ids in self.features["input_ids"]]

    @functools.cached_property
    def longest(self) -> int:
        """The number of tokens of the longest example."""
        return max(self.lengths)

    def width(self, indices: Sequence[int]) -> int:
        """The number of tokens that a batch of the examples at `indices` is padded to."""
        return min(self.longest, rounded(max(self.lengths[i] for i in indices)))

    def batch(self, indices: Sequence[int], device: torch.device = CPU) -> Batch:
        """The examples at `indices` as a batch on `device`, padded to their `width`."""
        width = self.width(indices)
        inputs = {
            name: torch.tensor(
                [rows[i] + [self.padding[name]] * (width - self.lengths[i]) for i in indices]
            )
            for name, rows in self.features.items()
        }
        labels = torch.tensor([self.labels[i] for i in indices])
        return Batch(
            {name: _to_device(x, device) for name, x in inputs.items()}, _to_device(labels, device)
        )


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`; to CUDA from pinned memory, without waiting for earlier work.

    An asynchronous copy from other memory may read it after it was reused (pytorch#189690, on mps).
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rounded(length: int) -> int:
    """`length` rounded up to one of `WIDTHS_PER_OCTAVE` widths between powers of two.

    >>> [rounded(length) for length in (7, 16, 17, 33, 100)]
    [7, 16, 18, 36, 104]
    """
    return round_up(length, WIDTHS_PER_OCTAVE)


def encode(
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int] | Sequence[float],
    max_length: int,
) -> Encoded:
    """Tokenise texts of one or two columns, cut to `max_length` tokens.

    A text without tokens, such as "" where the tokenizer adds no special ones, becomes a single
    token: the one that begins texts, else the one that ends them, else padding. A model can't
    process an empty input, and beside longer texts its output would depend on their padding.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    tokenised = tokenizer(*columns, truncation=True, max_length=max_length)
    features = {name: tokenised[name] for name in tokenizer.model_input_names if name in tokenised}
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
    }
    _fill_empty(tokenizer, features)
    n_truncated = sum(bool(encoding.overflowing) for encoding in tokenised.encodings)
    return Encoded(features, labels, {name: padding[name] for name in features}, n_truncated)


def _fill_empty(tokenizer: Any, features: dict[str, list[list[int]]]) -> None:
    empty = [index for index, ids in enumerate(features["input_ids"]) if not ids]
    if not empty:
        return
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    filler = {
        "input_ids": next(token for token in candidates if token is not None),
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 1,
    }
    for name, rows in features.items():
        for index in empty:
            rows[index] = [filler[name]]


def draw(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, by_length: bool
) -> list[list[int]]:
    """One epoch's batches of indices: every example once, in as few batches as possible.

    Args:
        lengths: the number of tokens of each example.
        batch_size: the maximum number of examples in a batch.
        seed: the run's seed.
        epoch: counted from 0.
        by_length: whether examples of similar length share a batch, within pools of `POOL` batches;
            otherwise batches are purely random.

    >>> sorted(sum(draw([3, 1, 2, 5, 4], 2, seed=0, epoch=0, by_length=True), []))
    [0, 1, 2, 3, 4]
    """
    rng = random.Random(f"{seed}/{epoch}")  # strings are hashed by SHA-512: seeds don't collide
    indices = list(range(len(lengths)))
    rng.shuffle(indices)
    sizes = split_by_limit(len(indices), batch_size)
    rng.shuffle(sizes)  # else the longest of a pool would always get the small batches
    if not by_length:
        return cut(indices, sizes)
    pools = cut(sizes, split_by_limit(len(sizes), POOL))
    batches: list[list[int]] = []
    for pool, members in zip(pools, cut(indices, map(sum, pools)), strict=True):
        batches += cut(sorted(members, key=lengths.__getitem__), pool)
    rng.shuffle(batches)
    return batches


def split_by_limit(count: int, limit: int) -> list[int]:
    """`count` as a sum of the fewest numbers <= `limit`, which differ by at most one.

    >>> split_by_limit(33, 32), split_by_limit(7, 3)
    ([17, 16], [3, 2, 2])
    """
    return split_evenly(count, -(-count // limit))


def split_evenly(count: int, parts: int) -> list[int]:
    """`count` as a sum of `parts` numbers, which differ by at most one.

    >>> split_evenly(10, 6)
    [2, 2, 2, 2, 1, 1]
    """
    return [count // parts + (index < count % parts) for index in range(parts)]


def cut(items: list[int], sizes: Iterable[int]) -> list[list[int]]:
    """`items` in consecutive runs of these sizes.

    >>> cut([7, 8, 9], [1, 2])
    [[7], [8, 9]]
    """
    ends = list(itertools.accumulate(sizes))
    return [items[start:end] for start, end in itertools.pairwise([0, *ends])]


def stratified_sample(labels: Sequence[float], size: int, seed: int) -> list[int]:
    """Indices of a sample in which every class, or every range of numbers, has its share.

    The examples are sorted by label, in random order where labels are equal, and sampled at even
    distances.

    >>> sample = stratified_sample([0] * 80 + [1] * 20, size=10, seed=0)
    >>> sum(index >= 80 for index in sample)
    2
    """
    indices = list(range(len(labels)))
    random.Random(f"{seed}/sample").shuffle(indices)
    indices.sort(key=labels.__getitem__)
    size = min(size, len(indices))
    return [indices[(2 * i + 1) * len(indices) // (2 * size)] for i in range(size)]


def batches_by_length(
    lengths: Sequence[int], batch_size: int, most_tokens: int
) -> Iterator[list[int]]:
    """Batches of indices for evaluation, shortest first.

    The longest example's length, times the batch's size, is at most `most_tokens`, unless it is
    alone.

    >>> list(batches_by_length([5, 9, 2, 4], batch_size=3, most_tokens=10))
    [[2, 3], [0], [1]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # examples come in order of length, so this one sets the padded width
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[index] > most_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
