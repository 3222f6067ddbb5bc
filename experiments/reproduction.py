"""What docs/reproduction.md is written from: `python experiments/reproduction.py RUNS`.

RUNS/PART/TASK is a folder for each part and task that has run, each with --data-dir GLUE:

    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola
    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola --repeat-speed 5
    peftlab compare experiments/others.toml --tasks cola --out RUNS/others/cola
    peftlab compare experiments/rates-cola.toml --out RUNS/rates-cola/cola
    peftlab reproduce founding-report --model mpnet --tasks cola --methods full,lora
        --out RUNS/founding-report/cola

mrpc, rte and stsb likewise; a task takes hours, and what is taken over of one stays when RUNS has
another. Rounds are to be measured with nothing else on the machine.

Of each folder results/reproduction/PART/TASK has its records, those of trials and of rounds, what
trials found, verdicts, and every cell's training loss. Of `fair` the figures and the page go to
docs/. Predictions hold the labels of dev, and curves are large: neither is kept, and the page is
without what it would show of single examples. `make docs` then writes the tables.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from whole import whole

from peftlab.atomic import write
from peftlab.records.record import Record
from peftlab.records.trials import read_trials, write_trials
from peftlab.records.verdicts import compare_rows
from peftlab.report.curves import rows
from peftlab.report.page import build

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "reproduction"
FIGURES = ROOT / "docs" / "images" / "reproduction"
PAGE = ROOT / "docs" / "example.html"
KEPT = ("records", "tuning/records", "tuning/trials.json", "speed/records")
DRAWN = ("score", "second", "loss", "speed", "memory")  # kinds of figures


def take_over(source: Path, target: Path) -> None:
    """Bring a folder of results/reproduction to what a comparison's folder holds."""
    records = whole(source)
    shutil.rmtree(target, ignore_errors=True)
    for name in KEPT:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            shutil.copy(source / name, target / name)
    verdicts = compare_rows(records, [source]).model_dump_json(indent=2)
    write(target / "verdicts.json", verdicts + "\n")
    losses = {record.cell: last_loss(source, record) for record in records}
    write(target / "losses.json", json.dumps(losses, indent=2) + "\n")


def last_loss(folder: Path, record: Record) -> float | None:
    """Mean training loss over the last epoch's steps; None of a cell that failed or diverged."""
    last = record.training["epochs"] - 1
    lines = rows(folder / "curves" / f"{record.cell}.jsonl")
    steps = {row["step"]: row for row in lines if "step" in row}
    losses = [row["loss"] for row in steps.values() if row["epoch"] > last]
    if not losses or not all(map(math.isfinite, losses)):
        return None
    return statistics.fmean(losses)


def show(folders: Sequence[Path]) -> None:
    """The page and the figures of the folders together, without what predictions would add."""
    records = [record for folder in folders for record in whole(folder)]
    trials = [trial for folder in folders for trial in read_trials(folder / "tuning")]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for folder in folders:
            for kind in ("records", "curves", "tuning/records", "speed/records"):
                if (folder / kind).exists():
                    shutil.copytree(folder / kind, out / kind, dirs_exist_ok=True)
        write_trials(out / "tuning", trials)
        page = build(out, records[0].suite, records, compare_rows(records, folders))
        shutil.copy(page, PAGE)
        shutil.rmtree(FIGURES, ignore_errors=True)
        FIGURES.mkdir(parents=True)
        for figure in sorted((out / "report" / "figures").glob("*.svg")):
            if figure.stem.startswith(DRAWN):
                shutil.copy(figure, FIGURES)


def main(runs: Path) -> None:
    for folder in sorted(runs.glob("*/*/")):
        target = RESULTS / folder.relative_to(runs)
        take_over(folder, target)
        print(f"wrote {target}")
    show(sorted(runs.glob("fair/*/")))
    print(f"wrote {PAGE} and {FIGURES}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
