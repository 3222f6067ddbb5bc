"""Peftlab beside HF PEFT with Trainer: speed, memory, scores. About two hours on two cores.

    python benchmarks/speed.py                               all of it: `make bench`
    python benchmarks/speed.py --only speed,products         some sections; the others' results stay
    python benchmarks/speed.py --name avx512                 into avx512.json beside speed.json
    python benchmarks/speed.py --quick                       one round on few examples: does it run?

Both sides train in processes of their own, one after the other, the same examples of the same
task; they take turns, and a ratio is of one round's two. Each finished process is saved at once,
in results/NAME.json; NAME.txt is the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from peers import NothingRan
from runs import HERE, Bench, Results, describe_machine
from sections import SECTIONS, select_sections
from tables import render

from peftlab.atomic import write

ROUNDS, QUICK_EXAMPLES = 5, 64


def parse() -> argparse.Namespace:
    data_dir = os.environ.get("PEFTLAB_DATA_DIR")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--only", metavar="SECTION[,...]", help=f"speed, {', '.join(SECTIONS)}")
    parser.add_argument("--name", default="speed", help="of the results, one kind of machine each")
    parser.add_argument("--quick", action="store_true", help="into quick.json, quick.txt")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(data_dir) if data_dir else None,
        metavar="DIR",
        help="GLUE's files; default PEFTLAB_DATA_DIR",
    )
    options = parser.parse_args()
    try:
        options.sections = select_sections(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.data_dir is None:
        parser.error("name the folder of GLUE's files: --data-dir DIR, or PEFTLAB_DATA_DIR")
    if not options.name.isidentifier():
        parser.error(f"--name is a part of a file's name, such as avx512; got {options.name!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    return options


def run(options: argparse.Namespace, results: Results) -> None:
    machine = describe_machine()
    rounds, max_examples = (1, QUICK_EXAMPLES) if options.quick else (options.rounds, None)
    common = {"data_dir": options.data_dir}
    for name in options.sections:
        results.begin(name, machine)
        try:
            SECTIONS[name](Bench(results, name, rounds, max_examples, common))
            results.finish(name)
        except NothingRan as error:
            print(f"{name}: {error}", file=sys.stderr)


def main() -> None:
    options = parse()
    file = HERE / "results" / f"{'quick' if options.quick else options.name}.json"
    results = Results(file)
    interrupted = False
    try:
        run(options, results)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; the section is kept as unfinished, in no table", file=sys.stderr)
    tables = render(results.sections)
    write(file.with_suffix(".txt"), tables)
    print(tables, end="")
    raise SystemExit(130 if interrupted else 0)


if __name__ == "__main__":
    main()
