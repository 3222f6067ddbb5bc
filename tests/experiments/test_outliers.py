"""What eight bits cost a layer: an outlier among its inputs' columns shows, and costs."""

from __future__ import annotations

import outliers
import pytest
import torch
from torch import nn


def test_a_column_that_stands_out_takes_the_steps_of_the_others() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 64), torch.randn(40, 256)
    usual = outliers.cost_of(layer, x, "usual")
    assert 0.005 < usual.error < 0.02 and usual.column < 2
    x[:, 7] *= 60
    with torch.no_grad():
        layer.weight[:, 7] = 0  # what stands out is worth nothing, and the others are rounded away
    spoilt = outliers.cost_of(layer, x, "spoilt")
    assert spoilt.error > 10 * usual.error and 30 < spoilt.column < 120


def test_the_layers_that_lose_most_come_first(capsys) -> None:
    outliers.main("minilm")
    head, mean, *lines = capsys.readouterr().out.splitlines()
    assert head == "minilm, 64 texts of acceptability: 36 layers"
    errors = [float(line.split()[0]) for line in lines]
    eight, seven = map(float, mean.split()[:2])
    assert eight == pytest.approx(sum(errors) / 36, abs=1e-4) and eight < seven < 2 * eight
    assert len(errors) == 36 and errors == sorted(errors, reverse=True) and min(errors) > 0.001
