"""The matrix products of a training by LoRA, alone: no library can train without them.

    python benchmarks/products.py --model FOLDER --task cola

Every product with a frozen weight, forward and backward, as the engine makes it, in the shapes of
the last epoch's batches and their parts, q, k and v as one. The lowest block's q, k and v pass no
gradient on, since nothing below them is trained. Of the highest block the classifier reads the
first position alone, so all but q, k and v is computed for that position only. No attention, no
norms, no adapters, no optimizer. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sides import add_options, settings_of, write_task
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.engine import sentences
from peftlab.engine.packing import rows_for
from peftlab.engine.weights import FrozenWeight, onednn_multiplies
from peftlab.layers import resolve_precision
from peftlab.layers.precision import DTYPES
from peftlab.models import load_tokenizer
from peftlab.models.find import read_config
from peftlab.settings import Resolved
from peftlab.tasks import Task
from peftlab.training import TrainingPlan, encode
from peftlab.training.passes import n_tokens, parts_in

PASSES = 3

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """A product with a frozen weight: (rows, width) -> (rows, …)."""

    width: int
    apply: Apply
    all_tokens: bool  # a row for every token; else one for every example


@dataclass(frozen=True)
class Block:
    """The products of one block of the model, in the order of the forward pass."""

    forward: list[Product]
    backward: list[Product]


def make_products(n_in: int, n_out: int, dtype: torch.dtype) -> tuple[Apply, Apply]:
    """The products x Wᵀ and g W with a random weight (out, in)."""
    layer = nn.Linear(n_in, n_out, bias=False, dtype=dtype)
    weight = layer.weight.detach()
    if not onednn_multiplies(layer):
        return lambda x: F.linear(x, weight), lambda g: g @ weight
    frozen = FrozenWeight(weight)
    return frozen.product, frozen.gradient


def blocks_of(config: Any, dtype: torch.dtype) -> list[Block]:
    """The blocks of the model, each with its own weights: caches help no more than in training."""
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    # (in, out) of q, k and v as one, of attention's output, of the FFN's two layers
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    last = config.num_hidden_layers - 1
    blocks = []
    for number in range(last + 1):
        forward, backward = [], []
        for index, (n_in, n_out) in enumerate(shapes):
            all_tokens = number < last or index == 0
            product, gradient = make_products(n_in, n_out, dtype)
            forward.append(Product(n_in, product, all_tokens))
            if number > 0 or index > 0:
                backward.append(Product(n_out, gradient, all_tokens))
        blocks.append(Block(forward, backward))
    return blocks


def shapes_of(options: argparse.Namespace) -> list[tuple[int, int]]:
    """(examples, tokens) of the last epoch's batches, or their parts, as `ours.py` trains them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        write_task(file, options)
        task = Task.read(file)
    tokenizer = load_tokenizer(options.model)
    train = encode(tokenizer, task.train.texts, task.train.labels, task.max_length)
    settings = Resolved(
        lr=1.0, head_lr=1.0, epochs=1, max_length=train.longest, device="cpu", threads=1,
        batch_size=options.batch_size,
    )  # fmt: skip
    packed = sentences.KERNEL.is_built()  # then batches of all models measured here are packed
    plan = TrainingPlan(settings=settings, kind=task.kind, seed=options.seed, packed=packed)
    parts = parts_in(options.epochs - 1, train, plan)
    rows = [n_tokens(part, train, plan) for part in parts]
    if packed:
        rows = [rows_for(n) for n in rows]
    return list(zip(map(len, parts), rows, strict=True))


@torch.inference_mode()
def seconds(blocks: list[Block], shapes: list[tuple[int, int]], inputs: dict[int, Tensor]) -> float:
    """The time of one epoch's products, on the first rows of `inputs`, which are by width."""
    forward = [product for block in blocks for product in block.forward]
    backward = [product for block in blocks[::-1] for product in block.backward[::-1]]
    started = time.perf_counter()
    for batch, rows in shapes:
        for product in forward + backward:
            product.apply(inputs[product.width][: rows if product.all_tokens else batch])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    options = parser.parse_args()
    dtype = DTYPES[resolve_precision("auto", "cpu")[0].compute]
    config = read_config(options.model)
    shapes = shapes_of(options)
    blocks = blocks_of(config, dtype)
    widths = {one.width for block in blocks for one in (*block.forward, *block.backward)}
    max_rows = max(rows for _, rows in shapes)
    inputs = {width: torch.randn(max_rows, width).to(dtype) for width in widths}
    times = [seconds(blocks, shapes, inputs) for _ in range(1 + PASSES)][1:]
    epoch_s = statistics.median(times)
    measured = {
        "examples_per_s": sum(batch for batch, _ in shapes) / epoch_s,
        "epoch_s": epoch_s,
        "n_parts": len(shapes),
        "dtype": str(dtype).removeprefix("torch."),
    }
    print(json.dumps({"side": "products", "settings": settings_of(options)} | measured))


if __name__ == "__main__":
    main()
