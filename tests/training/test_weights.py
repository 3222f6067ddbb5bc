"""Class weights: scikit-learn's formula, and a batch's loss whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from peftlab.tasks import Examples, Task
from peftlab.training.batches import Batch
from peftlab.training.passes import batch_loss
from plans import changed, plan

PLAN = plan(
    kind="classes", epochs=1, batch_size=8, lr=1e-2, head_lr=1e-2, weight_decay=0.0, warmup=0.1,
    clip=1.0, seed=0, device="cpu", autocast=False,
)  # fmt: skip
LABELS = st.lists(st.integers(0, 2), min_size=3, max_size=40)


def task(labels: Sequence[int]) -> Task:
    train = Examples([(f"text {i}",) for i in range(len(labels))], list(labels))
    return Task("rare", "classes", ("accuracy",), train, train, ("a", "b", "c"))


def model(logits: torch.Tensor) -> Any:
    """Its outputs are rows of `logits` (n, classes), as the ids say."""
    return lambda input_ids: SimpleNamespace(logits=logits[input_ids[:, 0]])


def batch(labels: Sequence[int]) -> Batch:
    ids = torch.arange(len(labels)).unsqueeze(1)
    return Batch({"input_ids": ids}, torch.tensor(labels))


@given(LABELS)
def test_balanced_weights_are_scikit_learn_s(labels: list[int]) -> None:
    found = task(labels).balanced_weights
    seen = np.unique(labels)
    expected = compute_class_weight("balanced", classes=seen, y=np.asarray(labels))
    assert [found[label] for label in seen] == pytest.approx(list(expected))
    assert [found[label] for label in range(3) if label not in seen] == [1.0] * (3 - len(seen))


@given(LABELS)
def test_the_loss_of_all_of_train_is_scikit_learn_s_weighted_one(labels: list[int]) -> None:
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    run = changed(PLAN, weights=task(labels).balanced_weights)
    expected = log_loss(
        labels,
        logits.double().softmax(-1).numpy(),
        sample_weight=compute_sample_weight("balanced", labels),
        labels=[0, 1, 2],
    )
    assert batch_loss(model(logits), batch(labels), run).item() == pytest.approx(expected, rel=1e-4)


@given(LABELS, st.integers(1, 7))
def test_the_losses_of_a_batch_s_parts_add_up_to_its_own(labels: list[int], parts: int) -> None:
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    run = changed(PLAN, weights=(9.0, 1.0, 0.1))
    whole = batch(labels)
    shares = [
        batch_loss(model(logits), part, run) * len(part.labels) / len(labels)
        for part in whole.split(parts)
    ]
    torch.testing.assert_close(sum(shares), batch_loss(model(logits), whole, run))


def test_an_example_counts_the_same_whichever_others_are_in_its_batch() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    run = changed(PLAN, weights=(9.0, 1.0, 0.1))
    gradients = []
    for others in ([0, 0, 0], [2, 2, 2]):
        (gradient,) = torch.autograd.grad(
            batch_loss(model(logits), batch([1, *others]), run), logits
        )
        gradients.append(gradient[0])
    assert torch.equal(*gradients)


def test_without_weights_the_loss_is_what_it_was() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 2, 1, 0]
    plain = batch_loss(model(logits), batch(labels), PLAN)
    assert torch.equal(plain, torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))
