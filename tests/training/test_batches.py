from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftlab.models import load_tokenizer
from peftlab.training.batches import (
    Encoded,
    batches_by_length,
    draw,
    encode,
    rounded,
    stratified_sample,
)

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_example_once_in_batches_of_one_size(
    lengths: list[int], size: int, seed: int, epoch: int, by_length: bool
) -> None:
    batches = draw(lengths, size, seed, epoch, by_length)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-len(lengths) // size)  # the loop's schedule counts on it


def test_only_pinned_memory_is_copied_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is copied may be another's by then (pytorch#189690)."""
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *place, **how: asked.append(how) or x.new_empty(0)
    )
    Encoded({"input_ids": [[5, 6]]}, [1], {"input_ids": 0}, 0).batch([0], torch.device("mps"))
    assert asked == [{}, {}]


@pytest.mark.parametrize("by_length", [True, False])
def test_the_longest_examples_are_in_small_batches_no_more_often(by_length: bool) -> None:
    """33 examples in batches of 32: the longest one was alone in its batch, every epoch."""
    lengths = list(range(1, 34))
    small = [
        index
        for epoch in range(400)
        for batch in draw(lengths, 32, 0, epoch, by_length)
        if len(batch) == 16
        for index in batch
    ]
    # by chance 16 of 33 times; a standard deviation is .025 of it
    shares = [small.count(index) / 400 for index in (0, 32)]
    assert all(abs(share - 16 / 33) < 0.1 for share in shares), shares


@given(LENGTHS, st.integers(1, 40), st.integers(1, 400))
def test_evaluation_has_every_example_once_shortest_first(
    lengths: list[int], size: int, most_tokens: int
) -> None:
    batches = list(batches_by_length(lengths, size, most_tokens))
    order = list(chain(*batches))
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) <= size and padded <= most_tokens)


def test_order_is_set_by_seed_and_epoch_alone() -> None:
    lengths = [i % 17 + 1 for i in range(500)]
    assert draw(lengths, 32, 0, 0, False) == draw(lengths, 32, 0, 0, False)
    different = {str(draw(lengths, 32, seed, epoch, False)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(different) == 4


def test_grouping_saves_most_of_the_padding() -> None:
    lengths = [i * 37 % 60 + 4 for i in range(1600)]
    needed = sum(lengths)
    padded = sum(
        len(batch) * max(lengths[i] for i in batch) for batch in draw(lengths, 32, 0, 0, True)
    )
    assert padded < 1.1 * needed


def test_a_batch_is_padded_to_its_longest(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    texts = [("the cat", "a dog"), ("the very very big bird", "fish")]
    data = encode(tokenizer, texts, [0, 1], max_length=64)
    batch = data.batch([0, 1])
    expected = tokenizer(*zip(*texts, strict=True), padding=True, return_tensors="pt")
    assert set(batch.inputs) == set(expected)
    for name in expected:
        assert torch.equal(batch.inputs[name], expected[name]), name
    assert torch.equal(batch.labels, torch.tensor([0, 1]))
    assert data.lengths == [7, 9]
    assert data.n_truncated == 0


@given(st.integers(1, 4096))
def test_widths_are_few_and_near(length: int) -> None:
    assert length <= rounded(length) <= length * 9 / 8
    assert rounded(rounded(length)) == rounded(length)


def test_an_octave_has_eight_widths_and_short_ones_are_exact() -> None:
    assert [rounded(length) for length in range(1, 17)] == list(range(1, 17))
    assert len({rounded(length) for length in range(65, 129)}) == 8


def test_no_batch_is_wider_than_the_longest_example() -> None:
    """Which may be the longest that the model takes."""
    rows = [[1] * 33, [1] * 35, [1] * 3]
    data = Encoded({"input_ids": rows}, [0, 0, 0], {"input_ids": 7}, n_truncated=0)
    wide = data.batch([0, 2]).inputs["input_ids"]
    assert wide.tolist() == [[1] * 33 + [7] * 2, [1] * 3 + [7] * 32]


@pytest.mark.parametrize(("limit", "cut"), [(9, 0), (8, 1), (6, 2)])
def test_cut_examples_are_counted(tiny_model: Path, limit: int, cut: int) -> None:
    tokenizer = load_tokenizer(tiny_model)
    texts = [("the cat", "a dog"), ("the very very big bird", "fish")]
    data = encode(tokenizer, texts, [0, 1], max_length=limit)
    assert data.n_truncated == cut
    assert max(data.lengths) <= limit


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 250), st.integers(0, 9)
)
def test_a_stratified_sample_has_each_class_by_its_share(
    labels: list[int], size: int, seed: int
) -> None:
    sample = stratified_sample(labels, size, seed)
    assert len(sample) == len(set(sample)) == min(size, len(labels))
    for label in set(labels):
        share = len(sample) * labels.count(label) / len(labels)
        assert abs(sum(labels[i] == label for i in sample) - share) <= 1 + 1e-9


def test_a_stratified_sample_is_set_by_its_seed() -> None:
    labels = [i % 2 for i in range(100)]
    assert (
        stratified_sample(labels, 10, 0)
        == stratified_sample(labels, 10, 0)
        != stratified_sample(labels, 10, 1)
    )
