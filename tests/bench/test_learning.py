"""A built-in task tells methods apart on the real model: neither trivial nor hopeless."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.bench.grid import resolve
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.suite import make_suite


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_acceptability_is_learned_by_lora_and_not_by_the_head(tmp_path: Path) -> None:
    """At the default rates, in 98 updates of small batches."""
    asked = {"tasks": ["acceptability"], "methods": ["head", "lora"], "seeds": [0]}
    suite = make_suite(**asked, training={"epochs": 1, "batch_size": 8})
    grid = resolve(suite)
    records = run_grid(grid, tmp_path, Observer())
    assert [record.failure for record in records] == [None] * 2
    head, lora = (record.score["matthews"] for record in records if record.score)
    assert head > 0  # what one class for all gets
    assert head < lora - 0.10
    assert lora < 0.98
