"""What eight bits cost each layer: `python experiments/outliers.py MODEL [TASK] [GLUE]`.

For every linear layer of the backbone, on the first dev texts of a task: the relative error of its
output against fp32 with rows and weights rounded to eight bits; the same with weights of seven bits
(int7); and how far the largest column of its input stands out. Prints the means over all layers,
then the layers, those with the largest errors first.

    error    ‖y₈ - y‖ / ‖y‖, of the outputs without their biases
    seven    ‖y₇ - y‖ / ‖y‖
    column   the largest root mean square of a column of x over the median one: an outlier takes a
             row's 127 steps for itself
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import peftlab
from peftlab.layers import Int8Linear
from peftlab.layers.int8 import Int7Linear
from peftlab.models import linear_names
from peftlab.tasks import load
from peftlab.training import encode

TEXTS = 64


class LayerCost(NamedTuple):
    """What eight and seven bits cost one layer, and its input's largest column."""

    error: float
    seven: float
    column: float
    name: str


@torch.no_grad()
def cost_of(layer: nn.Linear, x: Tensor, name: str) -> LayerCost:
    """The cost of `layer` on its input x (*batch, in)."""
    rows = x.reshape(-1, x.shape[-1])
    exact = rows @ layer.weight.T
    columns = rows.square().mean(0).sqrt()
    errors = []
    for kind in (Int8Linear, Int7Linear):
        rounded = kind(layer.weight, None, torch.float32, nn.Linear).product(rows)
        errors.append(float((rounded - exact).norm() / exact.norm()))
    return LayerCost(*errors, float(columns.max() / columns.median()), name)


@torch.no_grad()
def main(model: str, task: str = "acceptability", data_dir: str | None = None) -> None:
    net, tokenizer = peftlab.load_model(model, 2, precision="fp32", seed=0, device="cpu")
    texts = load(task, Path(data_dir) if data_dir else None).dev.texts[:TEXTS]
    encoded = encode(tokenizer, texts, [0] * len(texts), 128)
    costs: list[LayerCost] = []
    for name in linear_names(net):
        net.get_submodule(name).register_forward_hook(
            lambda layer, inputs, _, name=name: costs.append(cost_of(layer, inputs[0], name))
        )
    net.eval()(**encoded.batch(range(len(texts))).inputs)
    print(f"{model}, {len(texts)} texts of {task}: {len(costs)} layers")
    means = [statistics.mean(errors) for errors in list(zip(*costs, strict=True))[:2]]
    print(f"{means[0]:.4f}  {means[1]:.4f}  mean")
    for cost in sorted(costs, reverse=True):
        print(f"{cost.error:.4f}  {cost.seven:.4f}  {cost.column:7.1f}  {cost.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
