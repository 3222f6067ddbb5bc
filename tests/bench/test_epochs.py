"""How long a training is where nobody says: small data gets more passes, and the plan says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.api.progress import describe
from peftlab.bench.grid import default_epochs, resolve
from peftlab.bench.suite import DEMO_EPOCHS, make_suite
from peftlab.tasks import Examples, Task


def rows(n: int) -> Task:
    texts = [(f"the cat sees {i}",) for i in range(n)]
    train = Examples(texts, [i % 2 for i in range(n)])
    return Task(
        "rows",
        "classes",
        ("accuracy",),
        train,
        Examples([("a dog",), ("a cat",)], [0, 1]),
        ("no", "yes"),
    )


def plan(model: Path, n: int, **training: Any) -> tuple[int, str]:
    """The epochs that `n` rows get, and the plan's line on their task."""
    asked = {"model": str(model), "tasks": [rows(n)], "methods": ["head"], "seeds": [0]}
    grid = resolve(make_suite(**asked, training=training))
    return grid.cells[0].training.epochs, describe(grid, 0, "out")[-1]


@given(st.integers(1, 500_000), st.integers(1, 512))
def test_there_are_300_updates_unless_that_takes_more_than_30_epochs(n: int, batch: int) -> None:
    updates, epochs = math.ceil(n / batch), default_epochs(n, batch)
    assert 3 <= epochs <= 30
    assert epochs * updates >= 300 or epochs == 30
    assert (epochs - 1) * updates < 300 or epochs == 3  # and no longer than need be


@pytest.mark.parametrize(
    ("n", "training", "epochs", "said"),
    [
        (500, {}, 19, "19 epochs of 16 updates, to make 300"),
        (40, {}, 30, "30 epochs of 2 updates, the most unless --epochs says more"),
        (40, {"batch_size": 1}, 8, "8 epochs of 40 updates, to make 300"),
        (4000, {}, 3, "3 epochs of 125 updates"),
        (500, {"epochs": 1}, 1, "1 epoch of 16 updates"),
        (30, {"epochs": 3}, 3, "3 epochs of 1 update"),
    ],
)
def test_the_plan_says_how_long(
    tiny_model: Path, n: int, training: dict[str, Any], epochs: int, said: str
) -> None:
    found, line = plan(tiny_model, n, **training)
    assert found == epochs
    assert line.endswith(f"metric accuracy; {said}")


def test_the_demo_stays_short() -> None:
    assert make_suite().training.epochs == DEMO_EPOCHS
