"""Peftlab beside HF PEFT with Trainer on one CUDA device: speed and peak memory.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --model FOLDER --tasks cola,words-128 --batch-size 64 --score
    python benchmarks/gpu.py --device cpu --model minilm --examples 200     the same without one

LoRA, as in speed.py: the peer at its fastest settings, which are searched for first, and at its
defaults; and ours with CUDA graphs beside ours without. Memory is the peak that torch allocated;
without a device, the process's own. Writes results/gpu.json and gpu.txt.
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
from runs import HERE, Bench, Line, Results, describe_machine
from sections import Section, lora, scores
from tables import HEAD, PARTS, Cells, Memory, Part, as_row, render, setting_rows

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
    """Ours with CUDA graphs and without, on enough examples that most batches' shapes recur."""
    workload = {"model": setting.model, "task": setting.task, "examples": setting.examples}
    for number in bench.each_round():
        for name in ("plain", "graphs")[:: 1 if number % 2 else -1]:
            bench.run(name, "ours", graphs=name == "graphs", **workload)


FIELDS = (("speed", "examples_per_s", "ex/s"), ("memory", "gpu_peak_mib", "MiB"))


def by_graphs(name: str, lines: list[Line]) -> list[Cells]:
    """Speed and memory with CUDA graphs over those without."""
    rows = []
    for quantity, field, unit in FIELDS:
        medians = [median(labelled(lines, label), field) for label in ("graphs", "plain")]
        shown = [f"{value:,.0f} {unit}" if value else "–" for value in medians]
        ratio = paired(lines, "graphs", "plain", field)
        rows.append(as_row(f"{name}, {quantity}", shown[0], shown[1], ratio, None))
    return rows


def parts(settings: list[Setting], memory: Memory, heading: str) -> list[Part]:
    """The tables of these settings, of CUDA graphs and of the scores."""
    by_name = {setting.name: setting for setting in settings}
    return [
        (
            heading,
            list(by_name),
            HEAD,
            lambda name, lines: setting_rows(by_name[name], lines, memory),
        ),
        ("CUDA graphs against none", [f"{name}, graphs" for name in by_name], HEAD, by_graphs),
        PARTS[-1],
    ]


def main() -> None:
    options = parse()
    # Trainer would spread a batch over all devices that it sees
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    machine = describe_machine()
    if options.device == "cuda":
        machine["processor"] = f"{torch.cuda.get_device_name()}, {machine['processor']}"
    settings, memory = settings_of(options), MEMORY[options.device]
    sections: dict[str, Section] = {"scores": scores} if options.score else {}
    for setting in settings:
        sections[setting.name] = functools.partial(lora, setting)
    if options.device == "cuda":
        for setting in settings:
            sections[f"{setting.name}, graphs"] = functools.partial(graphs, setting)
    results = Results(HERE / "results" / ("gpu.json" if options.device == "cuda" else "cpu.json"))
    results.sections = {}
    common = {name: getattr(options, name) for name in ("device", "batch_size", "data_dir")}
    for name, section in sections.items():
        results.begin(name, machine)
        try:
            section(Bench(results, name, options.rounds, common=common))
            results.finish(name)
        except NothingRan as error:
            print(f"{name}: {error}", file=sys.stderr)
    heading = f"LoRA, ours against HF PEFT, {options.device}, batch {options.batch_size}"
    tables = render(results.sections, parts(settings, memory, heading))
    write(results.file.with_suffix(".txt"), tables)
    print(tables, end="")


if __name__ == "__main__":
    main()
