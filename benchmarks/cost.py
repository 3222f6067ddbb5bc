"""Predicted against measured: the peak memory of a training, and the time of a cell.

    python benchmarks/cost.py                    memory: three models, all methods, batches 8, 32
    python benchmarks/cost.py --time             time by --measure; needs an idle machine
    python benchmarks/cost.py --model minilm --methods lora,full

`--write` puts the table into docs/plan.md. Memory doesn't depend on what else runs, time does.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peftlab
from models import BUNDLED, CACHE, folder_of
from peftlab.bench.cost import Predictor
from peftlab.bench.grid import resolve
from peftlab.bench.suite import make_suite
from peftlab.methods import METHODS
from peftlab.records.record import Record
from peftlab.tasks import Examples, Task

MODELS = ("minilm", "roberta-base", "tiny-gpt2")
BATCHES = (8, 32)
DOCS = Path(__file__).parents[1] / "docs" / "plan.md"
WORDS = [
    *("the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "likes", "red"),
    *("blue", "old", "new", "big", "small", "and", "not", "very"),
]
Row = tuple[str, ...]


def words_task(n_train: int = 192, n_dev: int = 64) -> Task:
    """Texts of 5 to 61 words: their lengths vary as much as in a real task."""
    train, dev = _examples(n_train, seed=1), _examples(n_dev, seed=2)
    return Task("words", "classes", ("accuracy", "f1"), train, dev, labels=("no", "yes"))


def _examples(n: int, seed: int) -> Examples:
    rng = random.Random(seed)
    texts = [
        (" ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 60))) + f" {i}",)
        for i in range(n)
    ]
    return Examples(texts, [i % 2 for i in range(n)])


def _name_or_folder(model: str, cache: Path) -> str:
    """What peftlab takes as the model: the bundled one's name, another one's folder."""
    return model if model == BUNDLED else str(folder_of(model, cache))


def memory_rows(
    model: str, batch: int, methods: Sequence[str], options: argparse.Namespace
) -> list[Row]:
    """A row of the table for each method: predicted and measured peak memory."""
    request = {"model": _name_or_folder(model, options.cache), "tasks": [words_task()]}
    training = {"batch_size": batch, "epochs": 1, "threads": 1, "device": "cpu"}
    rows: list[Row] = []
    for method in methods:
        grid = resolve(make_suite(**request, training=training, methods=[method], seeds=[0]))
        predicted = Predictor(grid).cost(grid.cells[0]).memory
        record = _record_of(request | training | {"methods": [method]})
        measured = record.memory.train_peak_mib if record.memory else None
        if predicted is None or measured is None:
            rows.append((model, str(batch), method, "–", "–", "–"))
            continue
        error = predicted.peak_mib / measured - 1
        numbers = (f"{predicted.peak_mib:,.0f}", f"{measured:,.0f}", f"{error:+.1%}")
        rows.append((model, str(batch), method, *numbers))
        print(" | ".join(rows[-1]), flush=True)
    return rows


def time_rows(
    model: str, batch: int, methods: Sequence[str], options: argparse.Namespace
) -> list[Row]:
    """A row of the table for each method: seconds that `--measure` predicts, and a cell's own."""
    request = {
        "model": _name_or_folder(model, options.cache),
        "tasks": "acceptability",
        "batch_size": batch,
        "epochs": 2,
        "device": "cpu",
    }
    rows = []
    for method in methods:
        plan = peftlab.plan(**request, methods=[method], measure=True)
        record = _record_of(request | {"methods": [method]})
        rows.append((model, str(batch), method, *_seconds(plan.rows[0].cell_s, record)))
        print(" | ".join(rows[-1]), flush=True)
    return rows


def _record_of(request: dict[str, Any]) -> Record:
    """The record of one cell that is trained now, by this commit."""
    with tempfile.TemporaryDirectory() as out:
        (record,) = peftlab.compare(**request, out=out, keep="none")
    return record


def _seconds(predicted: float | None, record: Record) -> Row:
    if predicted is None or record.total_s is None:
        return "–", "–", "–"
    error = predicted / record.total_s - 1
    return f"{predicted:.1f}", f"{record.total_s:.1f}", f"{error:+.1%}"


def table(columns: Row, rows: Sequence[Row]) -> str:
    """A table in Markdown, its numbers aligned to the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|---:|---|---:|---:|---:|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def write(name: str, text: str) -> None:
    """Put a table into docs/plan.md, between its marks."""
    page = DOCS.read_text(encoding="utf-8")
    marks = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    DOCS.write_text(
        re.sub(marks, lambda mark: f"{mark[1]}\n{text}\n\n{mark[2]}", page, flags=re.DOTALL),
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append", metavar="NAME")
    parser.add_argument("--batch", type=int, action="append", metavar="N")
    parser.add_argument("--methods", default=",".join(METHODS), metavar="NAMES")
    parser.add_argument("--time", action="store_true", help="times instead of memory")
    parser.add_argument("--write", action="store_true", help="put the table into docs/plan.md")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    options = parser.parse_args()
    is_part = options.model or options.batch or options.methods != ",".join(METHODS)
    if options.write and is_part:
        parser.error("--write replaces the whole table; leave out --model, --batch and --methods")
    rows_of = time_rows if options.time else memory_rows
    rows = [
        row
        for model in options.model or MODELS
        for batch in options.batch or BATCHES
        for row in rows_of(model, batch, options.methods.split(","), options)
    ]
    unit = "s" if options.time else "MiB"
    columns = ("model", "batch", "method", f"predicted, {unit}", f"measured, {unit}", "error")
    text = table(columns, rows)
    print(text)
    if options.write:
        write("time" if options.time else "memory", text)


if __name__ == "__main__":
    main()
