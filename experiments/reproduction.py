"""What docs/reproduction.md is written from: `python experiments/reproduction.py RUNS`.

RUNS/PART/TASK is a folder for each part and task that has run, with --data-dir GLUE each:

    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola
    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola --repeat-speed 5
    peftlab compare experiments/others.toml --tasks cola --out RUNS/others/cola
    peftlab compare experiments/rates-cola.toml --out RUNS/rates-cola/cola
    peftlab reproduce founding-report --model mpnet --tasks cola --methods full,lora \
        --out RUNS/founding-report/cola

`fair` has mrpc, rte and stsb too, `others` stsb. Rounds (the second line) are measured with nothing
else on the machine. A task takes hours: what results/ has of a task that RUNS lacks stays.

results/reproduction/PART/TASK keeps of a folder its records, those of trials and of rounds, what
trials found, verdicts, and every cell's training loss; docs/ gets the figures of `fair` and
`rates-cola`, and the page of `fair` if RUNS has all tasks of it that results/ has. Predictions hold
the labels of dev, and curves are large: neither is kept, and the page is without what it would show
of single examples. `make docs` then writes the tables.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from whole import whole

from peftlab.atomic import write
from peftlab.records.record import Record
from peftlab.records.store import Store, rounds_of, rows_of
from peftlab.records.trials import read_trials, write_trials
from peftlab.records.verdicts import compare_rows
from peftlab.report.page import build

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "reproduction"
FIGURES = ROOT / "docs" / "images" / "reproduction"
PAGE = ROOT / "docs" / "example.html"
PARTS = ("fair", "rates-cola", "founding-report", "others")
KEPT = ("records", "tuning/records", "tuning/trials.json", "speed/records")
SHOWN = ("records", "curves", "tuning/records", "speed/records")
DRAWN = ("score", "loss", "memory")  # figures of cells; that of speed is of rounds


def is_whole(folder: Path) -> bool:
    """Whether every cell of the latest suite of a comparison's folder has its record."""
    done = {file.stem for file in (folder / "records").glob("*.json")}
    suites = Store(folder).suites()
    return bool(suites) and {cell["cell"] for cell in suites[-1]["cells"]} <= done


def take_over(source: Path, target: Path) -> None:
    """Replace `target`, of results/reproduction, by what is kept of a comparison's folder."""
    records = whole(source)
    verdicts = compare_rows(records, [source]).model_dump_json(indent=2)
    losses = {record.cell: last_loss(source, record) for record in records}
    shutil.rmtree(target, ignore_errors=True)
    for name in KEPT:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            shutil.copy(source / name, target / name)
    write(target / "verdicts.json", verdicts + "\n")
    write(target / "losses.json", json.dumps(losses, indent=2) + "\n")


def last_loss(folder: Path, record: Record) -> float | None:
    """Mean training loss over the last epoch's steps; None of a cell that failed or diverged."""
    last = record.training["epochs"] - 1
    lines = rows_of(folder / "curves" / f"{record.cell}.jsonl")
    steps = {row["step"]: row for row in lines if "step" in row}
    losses = [row["loss"] for row in steps.values() if row["epoch"] > last]
    if not losses or not all(map(math.isfinite, losses)):
        return None
    return statistics.fmean(losses)


@contextmanager
def page_of(folders: Sequence[Path], title: str) -> Iterator[Path]:
    """A folder with the page and the figures of `folders` together, as long as it is used.

    Without predictions, that is without what they would show of single examples.
    """
    records = [record for folder in folders for record in whole(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for folder, kind in itertools.product(folders, SHOWN):
            if (folder / kind).exists():
                shutil.copytree(folder / kind, out / kind, dirs_exist_ok=True)
        write_trials(out / "tuning", [one for it in folders for one in read_trials(it / "tuning")])
        build(out, title, records, compare_rows(records, folders))
        yield out / "report"


def draw(folder: Path, kinds: Collection[str]) -> None:
    """The figures of these kinds, of one task's folder."""
    with page_of([folder], folder.name) as report:
        for figure in (report / "figures").glob("*.svg"):
            if figure.stem.partition("-")[0] in kinds:
                shutil.copy(figure, FIGURES)


def show(folders: Sequence[Path]) -> None:
    """The page of `fair`."""
    with page_of(folders, "The reproduction") as report:
        shutil.copy(report / "index.html", PAGE)


def main(runs: Path) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        for folder in sorted((runs / part).glob("*/")):
            if not is_whole(folder):
                print(f"left out {folder}: not all of its cells are done")
                continue
            take_over(folder, RESULTS / part / folder.name)
            print(f"wrote {RESULTS / part / folder.name}")
            if part == "fair":
                draw(folder, {*DRAWN, "speed"} if rounds_of(folder) else DRAWN)
            if part == "rates-cola":
                draw(folder, ["rate"])
    tasks = [folder.name for folder in sorted((RESULTS / "fair").glob("*/"))]
    if lacking := [task for task in tasks if not (runs / "fair" / task).exists()]:
        print(f"the page stays as it is: {runs}/fair lacks {', '.join(lacking)}")
    elif tasks:
        show([runs / "fair" / task for task in tasks])
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
