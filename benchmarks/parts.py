"""What each part of the engine gains: a step of LoRA without it, over one with all parts.

    python benchmarks/parts.py --data-dir GLUE       writes benchmarks/parts.txt too

In one process a model takes the same batches with all parts and without one, in either order, for
each of them and again for some rounds. A ratio is of two times that follow each other, so that what
else the machine does cancels; the table has the median of a part's ratios and its 95 % interval.
What builds on a part goes with it: without sentences.cpp batches are padded, without gelu.cpp or
dropout.cpp a block's second node is its modules.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from scipy.stats import quantile_test
from sides import BATCH_SIZE, add_data_options, write_task

import peftlab
from models import folder_of
from peftlab import engine
from peftlab.engine import can_pack, dropout, fast, gelu, low_rank, sentences
from peftlab.layers import products
from peftlab.layers.native import Kernel
from peftlab.layers.precision import weight_precision
from peftlab.machine import processor
from peftlab.methods import injected
from peftlab.settings import Resolved
from peftlab.tasks import Task
from peftlab.training import Encoded, Loop, TrainingPlan, encode
from peftlab.training.passes import batches_in, parts_of

ROUNDS, STEPS = 15, 4
NOTHING, ALL = "nothing", "all parts"

Without = Callable[[], AbstractContextManager[Any]]


def without_kernel(kernel: Kernel) -> Without:
    return lambda: patch.object(kernel, "is_built", lambda: False)


def without_function(name: str) -> Without:
    return lambda: patch.object(engine, name, lambda *_: None)


WITHOUT: dict[str, Without] = {
    NOTHING: nullcontext,
    "block.py": without_function("fuse_blocks"),
    "products.cpp": without_kernel(products.KERNEL),
    "low_rank.cpp": without_kernel(low_rank.KERNEL),
    "gelu.cpp": without_kernel(gelu.KERNEL),
    "dropout.cpp": without_kernel(dropout.KERNEL),
    "sentences.cpp, block.py": without_kernel(sentences.KERNEL),
    "frozen.py, products.cpp, low_rank.cpp, block.py": without_function("_join_frozen_layers"),
    ALL: nullcontext,
}


class Steps:
    """The first batches of an epoch of `train`, as often as one likes.

    Args:
        model: injected with a method.
        train: the split.
        settings: of the training.
    """

    def __init__(self, model: Any, train: Encoded, settings: Resolved) -> None:
        self.model, self.train, self.settings = model, train, settings

    def mean_s(self, without: str) -> float:
        """Seconds of a step with all parts of the engine but this one."""
        is_fast = without != ALL
        with WITHOUT[without]():
            settings = self.settings.model_copy(update={"fast": is_fast})
            packed = is_fast and can_pack(self.model)
            plan = TrainingPlan(settings, "classes", seed=0, packed=packed)
            return self._mean_s(plan)

    def _mean_s(self, plan: TrainingPlan) -> float:
        with fast(self.model, plan.settings.fast):
            loop = Loop(self.model, injected(self.model), self.train, plan)
            self.model.train()
            batches = batches_in(0, self.train, plan)[:STEPS]
            self._take(loop, batches)  # kernels are made, the heap grows
            started = time.perf_counter()
            self._take(loop, batches)
            return (time.perf_counter() - started) / len(batches)

    def _take(self, loop: Loop, batches: list[list[int]]) -> None:
        for indices in batches:
            parts = parts_of(indices, self.train, loop.plan)
            taken = (self.train.batch(part, loop.plan.device) for part in parts)
            loop.step(taken, len(indices), len(indices))


def table(name: str, task: Task, rounds: int) -> list[str]:
    """The lines of one model's table."""
    model, tokenizer = peftlab.load_model(folder_of(name), device="cpu")
    precision = weight_precision(model.base_model.encoder)
    peftlab.inject(model, "lora")
    settings = Resolved(
        lr=1e-4, head_lr=1e-4, epochs=1000, max_length=task.max_length, device="cpu",
        threads=torch.get_num_threads(), batch_size=BATCH_SIZE,
    )  # fmt: skip
    train = encode(tokenizer, task.train.texts, task.train.labels, task.max_length)
    steps = Steps(model, train, settings)
    times: dict[str, list[tuple[float, float]]] = {one: [] for one in WITHOUT if one != NOTHING}
    for number in range(rounds):
        for without, pairs in times.items():
            order = (NOTHING, without) if number % 2 else (without, NOTHING)
            taken = {one: steps.mean_s(one) for one in order}
            pairs.append((taken[without], taken[NOTHING]))
        print(f"{name}: round {number + 1} of {rounds}", flush=True)
    lines = [f"{name} in {precision}, {task.name}", f"{'without':<47} {'ms':>7}  ratio (95 %)"]
    for without, pairs in times.items():
        ratios = [own_s / all_s for own_s, all_s in pairs]
        low, high = quantile_test(ratios, p=0.5).confidence_interval(0.95)
        ms = 1000 * statistics.median(own_s for own_s, _ in pairs)
        spread = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"{without:<47} {ms:>7.1f}  {spread}")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "roberta-base"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="an interval takes 6")
    add_data_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        write_task(file, options)
        task = Task.read(file)
    lines = [
        f"LoRA, batches of {BATCH_SIZE}, {options.rounds} rounds of {STEPS} steps, "
        f"{torch.get_num_threads()} threads, {processor()}, torch {torch.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}",
        "",
    ]
    for name in options.models:
        lines += table(name, task, options.rounds)
    text = "\n".join(lines)
    print(text)
    Path(__file__).with_suffix(".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
