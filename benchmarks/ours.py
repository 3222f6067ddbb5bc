"""One training by peftlab: what the process of a cell does, from its order on; one line of JSON.

    python benchmarks/ours.py --model FOLDER --task cola --method lora

This process resolves the order, as `peftlab train` does; the cell runs in another one, in the
environment that its worker would give it, which imports and holds what a cell does and no more.
The moment before the first step is that before the first pass of the training itself, behind what a
method does to prepare itself (lora-drop). `--attention` profiles the last epoch for the share of
the attention's own operations; its speed is then no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import add_options, make_task, settings_of

ORDER, TASK = "order.json", "task.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--method", default="lora", help="a name, or NAME[field=value,...]")
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "int8", "nf4"], default="auto"
    )
    parser.add_argument("--no-fast", action="store_true")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--cell", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_order(options: argparse.Namespace, folder: Path) -> None:
    """Resolve what is asked and leave the task and the cell in `folder`."""
    from peftlab.bench.grid import resolve
    from peftlab.bench.suite import make_suite
    from peftlab.methods import parse_methods

    training = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": options.device,
        "graphs": options.graphs,
    }
    if options.lr is not None:  # the peer has one rate for all that is trained
        training |= {"lr": options.lr, "head_lr": options.lr}
    if options.no_fast:
        training["fast"] = False
    task = make_task(options)
    suite = make_suite(
        name="bench",
        model=str(options.model),
        tasks=[task],
        methods=parse_methods(options.method),
        seeds=[options.seed],
        training=training,
    )
    (cell,) = resolve(suite).cells
    task.write(folder / TASK)
    (folder / ORDER).write_text(cell.model_dump_json())


class Listener:
    """Tells the meter of each step and epoch; keeps the answers, to be scored behind it."""

    def __init__(self, meter: Any, epochs: int, share: Callable[..., float | None] | None) -> None:
        self.meter, self.epochs, self.share = meter, epochs, share
        self.outputs: list[list[float]] = []  # for dev, of the last epoch

    def step(self, row: dict[str, Any], total: int) -> None:
        self.meter.step()
        if row["epoch"].is_integer():
            self.meter.end_epoch()
        if self.share is not None:
            self.share(row, total)

    def epoch(self, epoch: int, outputs: list[list[float]]) -> None:
        self.outputs = outputs
        if epoch < self.epochs:
            self.meter.epoch()
        if self.share is not None:
            self.share({"epoch": epoch}, 0)

    def rank(self, rank: int, outputs: list[list[float]]) -> None:
        """Not measured."""

    def note(self, line: str) -> None:
        """Nothing is kept here that could be told of."""


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the cell as its worker does, the meter told of its rows."""
    from peftlab.bench import worker

    worker._warm()  # the imports of a cell, whatever they are
    from meter import Meter

    from peftlab.bench.cell import Cell
    from peftlab.bench.process import run_cell
    from peftlab.training import Loop

    cell = Cell.model_validate_json((folder / ORDER).read_text())
    meter = Meter(options.device, caller=os.getppid())  # which is there meanwhile, as a command is
    share = _attention_share(options.epochs) if options.attention else None
    listener = Listener(meter, options.epochs, share)
    try_widest = Loop.try_widest

    def begun(loop: Loop) -> None:
        meter.begin(loop.model)
        try_widest(loop)

    Loop.try_widest = begun  # the first pass of a training
    trained = run_cell(cell, folder / TASK, None, listener)
    assert trained.memory is not None
    parts = trained.memory.by_part
    return meter.result(_lengths(cell, folder / TASK)) | {
        "weights_mib": parts["weights"] + parts["adapters"],
        "n_trainable": trained.n_trainable.total,
        "score": _score(folder / TASK, listener.outputs) if options.score else None,
        "attention_share": share({}, 0) if share is not None else None,
    }


def _score(task_file: Path, outputs: list[list[float]]) -> float:
    from peftlab.bench.outcome import predictions_of
    from peftlab.tasks import Task

    task = Task.read(task_file)
    return task.score(predictions_of(task.kind, outputs))[task.main_metric]


def _lengths(cell: Any, task_file: Path) -> list[int]:
    from peftlab.models import load_tokenizer
    from peftlab.tasks import Task
    from peftlab.training import encode

    train = Task.read(task_file).train
    tokenizer = load_tokenizer(cell.model_folder)
    return encode(tokenizer, train.texts, train.labels, cell.training.max_length).lengths


def _attention_share(epochs: int) -> Callable[[dict[str, Any], int], float | None]:
    """Profile the last epoch; what is between tokens alone works on (batch, heads, …, …) or bmm."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_row(row: dict[str, Any], total: int) -> float | None:
        if row and "step" not in row and row["epoch"] == epochs - 1:
            profiler.start()
        elif row.get("step") == total and total:
            profiler.stop()
        elif not row:
            events = profiler.key_averages(group_by_input_shape=True)
            whole = sum(event.self_cpu_time_total for event in events)
            own = sum(event.self_cpu_time_total for event in events if _is_attention(event))
            return own / whole
        return None

    return on_row


def _is_attention(event: Any) -> bool:
    if event.key == "aten::bmm" or "scaled_dot_product" in event.key:
        return True
    return any(len(shape) == 4 for shape in event.input_shapes[:1])


def main() -> None:
    options = parse()
    if options.cell is not None:
        settings = settings_of(options)
        del settings["cell"]
        measured = run(options, options.cell)
        print(json.dumps({"side": "ours", "settings": settings} | measured))
        return
    from peftlab.bench.execute import cell_environment

    with tempfile.TemporaryDirectory() as folder:
        write_order(options, Path(folder))
        words = [sys.executable, *sys.argv, "--cell", folder]
        done = subprocess.run(words, env=cell_environment(), check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
