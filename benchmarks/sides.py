"""The options of both sides of the benchmark, and the texts that both train on.

A side is one fresh process, `ours.py` or `peer.py`, that trains once and prints one line of JSON.
Its texts come as a file, which another process writes: what loading a task imports and holds counts
in the memory of neither side.

    python benchmarks/sides.py FILE --task cola --examples 1600
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.tasks import Examples, Task

BATCH_SIZE, EPOCHS, EXAMPLES = 32, 2, 1600
FEW_DEV = 64  # dev examples where no score is wanted
# one token each in the bundled tokenizer
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="cola", help="cola, mrpc, ...; words-64: 64 tokens each")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="GLUE's files")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="0 is all of train")
    parser.add_argument("--score", action="store_true", help="score on all of dev at the end")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    add_data_options(parser)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="the last one is timed")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options as the side's line repeats them: no folder but the model's name."""
    settings = {key: value for key, value in vars(options).items() if key != "data_dir"}
    return settings | {"model": options.model.name}


def write_task(file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the task to `file` in a process of its own; returns what the file holds."""
    command = [sys.executable, __file__, file, "--task", options.task]
    command += ["--examples", options.examples, *(["--score"] if options.score else [])]
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    subprocess.run([str(word) for word in command], check=True)
    task: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return task


def make_task(options: argparse.Namespace) -> Task:
    """A sample of the task's train split, the same for both sides, and as much of dev as needed."""
    from peftlab.tasks import load  # here, since a side imports this file too: see above

    if match := re.fullmatch(r"words-(\d+)", options.task):
        return _words_task(int(match[1]), options.examples)
    task = load(options.task, options.data_dir)
    dev = task.dev if options.score else _sample(task.dev, FEW_DEV)
    train = _sample(task.train, options.examples) if options.examples else task.train
    return dataclasses.replace(task, train=train, dev=dev)


def _sample(examples: Examples, size: int) -> Examples:
    indices = sorted(random.Random(0).sample(range(len(examples)), min(size, len(examples))))
    texts = [examples.texts[index] for index in indices]
    labels = [examples.labels[index] for index in indices]
    return dataclasses.replace(examples, texts=texts, labels=labels)


def _words_task(length: int, size: int) -> Task:
    """Texts of exactly `length` tokens, the two special ones included, with alternating labels."""
    from peftlab.tasks import Examples, Task

    rng = random.Random(0)
    texts = [(" ".join(rng.choices(WORDS, k=length - 2)),) for _ in range(size)]
    labels = [number % 2 for number in range(size)]  # dev has both
    return Task(
        name=f"words-{length}",
        kind="classes",
        metrics=("accuracy",),
        train=Examples(texts, labels),
        dev=Examples(texts[:2], labels[:2]),
        labels=("0", "1"),
        max_length=length,
        source="synthetic",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    add_data_options(parser)
    options = parser.parse_args()
    make_task(options).write(options.file)


if __name__ == "__main__":
    main()
