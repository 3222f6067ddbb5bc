"""The records that docs/reproduction.md is made of: `python experiments/reproduction.py RUNS`.

RUNS/PART/TASK is a folder for each part and task that has run, with --data-dir GLUE each:

    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola
    peftlab compare experiments/fair.toml --tasks cola --out RUNS/fair/cola --repeat-speed 5
    peftlab compare experiments/others.toml --tasks cola --out RUNS/others/cola
    peftlab compare experiments/rates-cola.toml --out RUNS/rates-cola/cola
    peftlab reproduce founding-report --model mpnet --tasks cola --methods full,lora \
        --out RUNS/founding-report/cola

`fair` has mrpc, rte and stsb too, `others` stsb. Rounds (the second line) are measured with nothing
else on the machine. A task takes hours, so results/ keeps what it has of a task that RUNS lacks.

results/reproduction/PART/TASK keeps the records of a folder, of its trials and of its rounds, the
settings that the trials chose, verdicts, and every cell's training loss. docs/ gets the figures of
`fair` and `rates-cola`, and the page of `fair` if RUNS has all its tasks that results/ has.
Predictions hold the labels of dev, and curves are large: neither is kept, so the page shows nothing
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
KEPT_PATHS = ("records", "tuning/records", "tuning/trials.json", "speed/records")
PAGE_PATHS = ("records", "curves", "tuning/records", "speed/records")
CELL_FIGURES = ("score", "loss", "memory")  # the figure of speed is of rounds


def is_whole(folder: Path) -> bool:
    """Whether every cell of the folder's suites has been trained; one that diverged has been."""
    store = Store(folder)
    records = whole(folder) if store.cells() else []
    trained = {record.cell for record in records if record.is_done or _diverged(record)}
    suites = store.suites()
    return bool(suites) and {cell["cell"] for suite in suites for cell in suite["cells"]} <= trained


def _diverged(record: Record) -> bool:
    return record.failure is not None and record.failure.kind == "Diverged"


def take_over(source: Path, target: Path) -> None:
    """Replace `target`, in results/reproduction, by what is kept of a comparison's folder."""
    records = whole(source)
    verdicts = compare_rows(records, [source]).model_dump_json(indent=2)
    losses = {record.cell: last_loss(source, record) for record in records}
    new = target.with_name(f".{target.name}")
    shutil.rmtree(new, ignore_errors=True)
    for name in KEPT_PATHS:
        if (source / name).is_dir():
            shutil.copytree(source / name, new / name)
        elif (source / name).exists():
            shutil.copy(source / name, new / name)
    write(new / "verdicts.json", verdicts + "\n")
    write(new / "losses.json", json.dumps(losses, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def last_loss(folder: Path, record: Record) -> float | None:
    """Mean training loss over the last epoch's steps; None for a cell that failed or diverged."""
    last = record.training["epochs"] - 1
    lines = rows_of(folder / "curves" / f"{record.cell}.jsonl")
    steps = {row["step"]: row for row in lines if "step" in row}
    losses = [row["loss"] for row in steps.values() if row["epoch"] > last]
    if not losses or not all(map(math.isfinite, losses)):
        return None
    return statistics.fmean(losses)


@contextmanager
def page_of(folders: Sequence[Path], title: str) -> Iterator[Path]:
    """A temporary folder with one page, and figures, of all `folders`.

    It is made without predictions, so it shows nothing of single examples.
    """
    records = [record for folder in folders for record in whole(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for folder, path in itertools.product(folders, PAGE_PATHS):
            if (folder / path).exists():
                shutil.copytree(folder / path, out / path, dirs_exist_ok=True)
        trials = [trial for folder in folders for trial in read_trials(folder / "tuning")]
        write_trials(out / "tuning", trials)
        build(out, title, records, compare_rows(records, folders))
        yield out / "report"


def draw(folder: Path, kinds: Collection[str]) -> None:
    """Copy the figures of these kinds, of one task's folder, to docs/."""
    with page_of([folder], folder.name) as report:
        for figure in (report / "figures").glob("*.svg"):
            if figure.stem.partition("-")[0] in kinds:
                shutil.copy(figure, FIGURES)


def show(folders: Sequence[Path]) -> None:
    """Copy the page of all `folders` to docs/."""
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
                draw(folder, {*CELL_FIGURES, "speed"} if rounds_of(folder) else CELL_FIGURES)
            if part == "rates-cola":
                draw(folder, ["rate"])
    tasks = [folder.name for folder in sorted((RESULTS / "fair").glob("*/"))]
    if missing := [task for task in tasks if not (runs / "fair" / task).exists()]:
        print(f"the page stays as it is: {runs}/fair lacks {', '.join(missing)}")
    elif tasks:
        show([runs / "fair" / task for task in tasks])
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
