"""One training by peftlab, as the process of a cell does it; prints one line of JSON.

    python benchmarks/ours.py --model FOLDER --task cola --method lora

This process resolves the request to a cell, predicts its memory and scores, as `peftlab train`
does. The cell runs in a second one, in the environment that its worker would give it, which imports
and holds what a cell does and no more. The meter begins right before the first pass of the training
itself, after what a method does to prepare itself (lora-drop). `--attention` profiles the last
epoch for the share of attention's own operations; the speed of such a run is no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sides import add_options, make_task, settings_of

if TYPE_CHECKING:
    from peftlab.tasks import Task

CELL, TASK = "cell.json", "task.json"


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


def write_cell(options: argparse.Namespace, folder: Path) -> None:
    """Resolve the options to one cell; write it and its task into `folder`.

    What a command does besides is done too: it is held in memory while the cell trains.
    """
    from peftlab.bench.cost import Predictor
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
    grid = resolve(suite)
    (cell,) = grid.cells
    Predictor(grid).cost(cell)
    task.write(folder / TASK)
    (folder / CELL).write_text(cell.model_dump_json())
    _score_as_command(task)


def _score_as_command(task: Task) -> None:
    """Score made-up answers to dev: what that imports a command holds while its cells train."""
    import peftlab.cli  # noqa: F401 - so does the command itself
    from peftlab.bench.outcome import CellScorer

    CellScorer(task).epoch(1, [[0.0] * (len(task.labels) or 1)] * len(task.dev))


class Listener:
    """Passes the steps and epochs of a cell on to the meter; keeps dev's outputs for the score."""

    def __init__(self, meter: Any, epochs: int, profile: AttentionProfile | None) -> None:
        self.meter, self.epochs, self.profile = meter, epochs, profile
        self.outputs: list[list[float]] = []  # on dev, after the last epoch

    def step(self, row: dict[str, Any], total: int) -> None:
        self.meter.end_step()
        if row["epoch"].is_integer():
            self.meter.end_epoch()
        if self.profile is not None and row["step"] == total:
            self.profile.stop()

    def epoch(self, epoch: int, outputs: list[list[float]]) -> None:
        self.outputs = outputs
        if epoch < self.epochs:
            self.meter.begin_epoch()
        if self.profile is not None and epoch == self.epochs - 1:
            self.profile.start()

    def rank(self, rank: int, outputs: list[list[float]]) -> None:
        """Not measured."""

    def note(self, line: str) -> None:
        """Not printed."""


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the cell of `folder` as its worker does; returns the measurements."""
    from peftlab.bench import worker

    worker._warm()  # the imports of a cell, whatever they are
    from meter import Meter

    from peftlab.bench.cell import Cell, Order
    from peftlab.bench.process import run_cell
    from peftlab.training import Loop

    cell = Cell.model_validate_json((folder / CELL).read_text())
    meter = Meter(options.device, caller=os.getppid())  # it waits meanwhile, as a command does
    profile = AttentionProfile() if options.attention else None
    listener = Listener(meter, options.epochs, profile)
    try_widest = Loop.try_widest

    def begin_and_try_widest(loop: Loop) -> None:
        meter.begin(loop.model)
        try_widest(loop)

    Loop.try_widest = begin_and_try_widest  # the first pass of a training
    trained = run_cell(Order(cell=cell, task_file=folder / TASK), listener)
    assert trained.memory is not None
    parts = trained.memory.by_part
    return meter.result(_lengths(cell, folder / TASK)) | {
        "weights_mib": parts["weights"] + parts["adapters"],
        "n_trainable": trained.n_trainable.total,
        "score": _score(folder / TASK, listener.outputs) if options.score else None,
        "attention_share": profile.share() if profile is not None else None,
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


class AttentionProfile:
    """A profile of the processor's time between `start` and `stop`."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def start(self) -> None:
        self.profiler.start()

    def stop(self) -> None:
        self.profiler.stop()

    def share(self) -> float:
        """Attention's share of the time."""
        events = self.profiler.key_averages(group_by_input_shape=True)
        total_us = sum(event.self_cpu_time_total for event in events)
        attention_us = sum(event.self_cpu_time_total for event in events if _is_attention(event))
        return attention_us / total_us


def _is_attention(event: Any) -> bool:
    """Attention alone multiplies by bmm or works on (batch, heads, …, …)."""
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
        write_cell(options, Path(folder))
        command = [sys.executable, *sys.argv, "--cell", folder]
        completed = subprocess.run(command, env=cell_environment(), check=False)
    raise SystemExit(completed.returncode)


if __name__ == "__main__":
    main()
