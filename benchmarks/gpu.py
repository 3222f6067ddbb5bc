"""Peftlab beside HF PEFT with Trainer on one CUDA device: speed and peak memory.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --model FOLDER --tasks cola,words-128 --batch-size 64 --score
    python benchmarks/gpu.py --device cpu --model minilm --examples 200     the same without one

LoRA, as in speed.py: the peer at the fastest of its settings, which are looked for first, and as
it is installed; and ours with CUDA graphs beside ours without. The memory is the most that torch
had allocated; without a device, the process's own. Writes results/gpu.json and gpu.txt.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys

import torch
from peers import NothingRan
from plan import Setting
from ratios import labelled, median, paired
from runs import HERE, Bench, Line, Results, machine
from sections import lora, scores
from tables import HEAD, PARTS, Cells, Memory, Part, as_row, beside, text

from peftlab.atomic import write

MEMORY: dict[str, Memory] = {
    "cpu": {"peak_mib": ("peak memory", None)},
    "cuda": {"gpu_peak_mib": ("peak GPU memory", None)},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="roberta-base", help="a name of models.py, or a folder")
    parser.add_argument("--tasks", default="cola,mrpc", metavar="TASK[,...]")
    parser.add_argument("--examples", type=int, default=3200, help="of an epoch")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--score", action="store_true", help="minilm on STS-B and MRPC too")
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("PEFTLAB_DATA_DIR"),
        metavar="DIR",
        help="GLUE's files; default PEFTLAB_DATA_DIR",
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "gpu.py: no CUDA device here; --device cpu runs the same on the processor\n")
    return options


def settings_of(options: argparse.Namespace) -> list[Setting]:
    return [
        Setting(options.model, task, options.examples, with_defaults=True)
        for task in options.tasks.split(",")
    ]


def graphs(setting: Setting, bench: Bench) -> None:
    """Ours by CUDA graphs and not, of so many examples that most batches have a shape met often."""
    asked = {"model": setting.model, "task": setting.task, "examples": setting.examples}
    for number in bench.each_round():
        for name in ("plain", "graphs")[:: 1 if number % 2 else -1]:
            bench.run(name, "ours", graphs=name == "graphs", **asked)


FIELDS = (("speed", "examples_per_s", "ex/s"), ("memory", "gpu_peak_mib", "MiB"))


def by_graphs(name: str, lines: list[Line]) -> list[Cells]:
    """Speed and memory with graphs over those without."""
    rows = []
    for what, field, unit in FIELDS:
        shown = [median(labelled(lines, label), field) for label in ("graphs", "plain")]
        told = [f"{value:,.0f} {unit}" if value else "–" for value in shown]
        ratio = paired(lines, "graphs", "plain", field)
        rows.append(as_row(f"{name}, {what}", told[0], told[1], ratio, None))
    return rows


def parts(settings: list[Setting], memory: Memory, heading: str) -> list[Part]:
    """The table of these settings, and that of the scores."""
    by_name = {setting.name: setting for setting in settings}
    return [
        (heading, list(by_name), HEAD, lambda name, lines: beside(by_name[name], lines, memory)),
        ("CUDA graphs against none", [f"{name}, graphs" for name in by_name], HEAD, by_graphs),
        PARTS[-1],
    ]


def main() -> None:
    options = parse()
    # Trainer would spread a batch over all that it sees
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    on = machine()
    if options.device == "cuda":
        on["processor"] = f"{torch.cuda.get_device_name()}, {on['processor']}"
    settings, memory = settings_of(options), MEMORY[options.device]
    runs = {"scores": scores} if options.score else {}
    runs |= {setting.name: functools.partial(lora, setting) for setting in settings}
    if options.device == "cuda":
        runs |= {f"{one.name}, graphs": functools.partial(graphs, one) for one in settings}
    results = Results(HERE / "results" / ("gpu.json" if options.device == "cuda" else "cpu.json"))
    results.sections = {}
    common = {name: getattr(options, name) for name in ("device", "batch_size", "data_dir")}
    for name, run in runs.items():
        results.begin(name, on)
        try:
            run(Bench(results, name, options.rounds, common=common))
        except NothingRan as error:
            print(f"{name}: {error}", file=sys.stderr)
    heading = f"LoRA, ours against HF PEFT, {options.device}, batch {options.batch_size}"
    shown = text(results.sections, parts(settings, memory, heading))
    write(results.file.with_suffix(".txt"), shown)
    print(shown, end="")


if __name__ == "__main__":
    main()
