"""What ran, table 1 and what lies between its rows, LoRA's distance on CoLA, the other methods."""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Sequence

from peftlab.bench.recipe import recipes
from peftlab.records.trials import read_trials
from peftlab.report.standing import mark
from reproduced.read import (
    DOCS,
    FULL,
    NAMES,
    NOT_YET,
    PARTS,
    REPORT,
    RESULTS,
    between,
    cells,
    folders,
    owns,
    table_rows,
)
from reproduced.text import card, interval, markdown, number, score

PROTOCOL = ("full", "lora")  # the rows of the report's that were trained as it did, on CoLA
PAPERS = {
    row: paper
    for name, paper in recipes().items()
    if name != REPORT.name
    for row in paper.published.scores
}
FIGURES = {
    "score": "Figures 1 and 2. Score on dev over training",
    "speed": "Figure 3. Training speed, in turns with nothing else on the machine",
    "memory": "Figure 4. Memory over training",
    "loss": "Training loss",
}


def _published(row: str, task: str) -> str:
    return number(REPORT.published.scores.get(row, {}).get(task), digits=2)


def plan_table() -> str:
    """The parts with what they answer, and how many of their cells are done."""
    parts = [
        ("fair", "are they equal, tuned alike?", _asked("fair")),
        ("rates-cola", "method, or rate?", _asked("rates-cola")),
        ("founding-report", "does its own protocol give its gap?", len(PROTOCOL)),
        ("others", "and the methods that it did not run?", _asked("others")),
    ]
    head = ["part", "asks", "cells", "of them done", "trainings of trials"]
    return markdown(head, ([f"`{name}`", asks, str(n), *_done(name)] for name, asks, n in parts))


def _asked(name: str) -> int:
    """How many cells the suite has."""
    suite = tomllib.loads((DOCS.parent / "experiments" / f"{name}.toml").read_text("utf-8"))
    axes = ("tasks", "methods", "rates", "seeds")
    return math.prod(len(suite[axis]) for axis in axes if axis in suite)


def _done(part: str) -> list[str]:
    rows = cells(part)
    done = sum(one.status == "done" for of_row in rows.values() for one in of_row)
    tasks = ", ".join(dict.fromkeys(NAMES[task] for task, _ in rows))
    trials = sum(len(read_trials(folder / "tuning")) for folder in folders(part))
    return [f"{done} ({tasks})" if done else "none", str(trials or "–")]


def machine_line() -> str:
    """What every cell of every part ran on, each value once."""
    done = [one for part in PARTS for of_row in cells(part).values() for one in of_row]
    if not done:
        return f"{NOT_YET}\n"
    where = [one.environment for one in done]
    facts = [
        *(one.processor for one in where),
        *(f"{one.threads} thread{'s' if one.threads > 1 else ''} a cell" for one in where),
        *(f"torch {one.packages['torch']}" for one in where),
        *(f"transformers {one.packages['transformers']}" for one in where),
        *(f"peftlab at {str(one.commit)[:7]}" for one in where),
    ]
    held = defaultdict(set)
    for one in done:
        held[one.precision].add(one.method.name)
    bases = [f"{precision} ({', '.join(sorted(rows))})" for precision, rows in sorted(held.items())]
    return f"{', '.join(dict.fromkeys(facts))}. The base was held in {'; '.join(bases)}.\n"


def scores_table(cards: str = "methods") -> str:
    """Table 1: ours beside the report's, two columns a task; `cards` is where methods are told."""
    tasks, done, own = table_rows(), cells("fair"), owns("fair")
    head = [
        "method",
        *(f"{NAMES[task]}, {whose}" for task in tasks for whose in ("ours", "theirs")),
    ]
    lines = [
        [card(row, cards)]
        + [
            cell
            for task, rows in tasks.items()
            for cell in (
                score(done.get((task, row), []), own.get((task, row)), _standing(task, row, rows)),
                _published(row, task),
            )
        ]
        for row in REPORT.published.scores
    ]
    return markdown(head, lines) if tasks else f"{NOT_YET}\n"


def _standing(task: str, row: str, rows: Sequence[str]) -> str:
    """The mark of a row against the best mean of the task."""
    own = owns("fair")
    if (task, row) not in own:
        return ""
    best = max((own[task, one].mean, one) for one in rows if (task, one) in own)[1]
    pair = between("fair", task, row, best)
    return mark([pair] if pair else [], row, best)


def tasks_table() -> str:
    """Of each task a table of what every method has less or more than full fine-tuning."""
    head = ["method", "lr", "ours", "− full, 95 %", "says", "theirs", "− full", "papers"]
    parts = []
    for task, rows in table_rows().items():
        metric = cells("fair")[task, rows[0]][0].task.main_metric
        parts += [
            f"### {NAMES[task]} ({metric})\n",
            markdown(head, (_task_row(task, row) for row in rows)),
        ]
    return "\n".join(parts) or f"{NOT_YET}\n"


def _task_row(task: str, row: str) -> list[str]:
    pair = between("fair", task, row, FULL)
    scores = REPORT.published.scores
    theirs, full = (scores[one].get(task) for one in (row, FULL))
    gap = None if row == FULL or theirs is None or full is None else theirs - full
    return [
        card(row),
        _rate(task, row),
        score(cells("fair")[task, row], owns("fair").get((task, row))),
        interval(pair),
        "–" if pair is None else pair.verdict,
        _published(row, task),
        number(gap, digits=2, signed=True),
        _originals(row, task),
    ]


def _rate(task: str, row: str) -> str:
    """The learning rate that the row's trials found, with a mark where its range ends."""
    for trial in read_trials(RESULTS / "fair" / task / "tuning"):
        if trial.chosen and trial.label == row:
            return f"{trial.values['lr']:.2g}{'†' * ('lr' in trial.at_border)}"
    return "default"  # every trial failed


def _originals(row: str, task: str) -> str:
    """The score that the method's authors, or who stands for them, gave."""
    paper = PAPERS.get(row)
    if paper is None:
        return "–"
    metric = paper.by_task.get(task, {}).get("metric")
    return number(paper.published.scores[row][task]) + (f" ({metric})" if metric else "")


def figures() -> str:
    """What of the report's figures is there."""
    folder = DOCS / "images" / "reproduction"
    told = []
    for kind, title in FIGURES.items():
        there = [task for task in NAMES if (folder / f"{kind}-{task}.svg").exists()]
        told += [f"**{title}:** {', '.join(NAMES[task] for task in there) or NOT_YET}.\n"]
        told += [
            f"![{title}, {NAMES[task]}](images/reproduction/{kind}-{task}.svg)\n" for task in there
        ]
    return "\n".join(told)


def gap_table() -> str:
    """Full fine-tuning and LoRA on CoLA under every protocol, and what lies between them."""
    full, lora = (REPORT.published.scores[row]["cola"] for row in PROTOCOL)
    theirs = [number(full, 2), number(lora, 2), number(lora - full, 2, signed=True)]
    settings = REPORT.training
    rate, head, epochs = (f"{settings[name]:g}" for name in ("lr", "head_lr", "epochs"))
    lines = [
        ["the report, RoBERTa-base", rate, head, epochs, "1", *theirs],
        _gap_row("its protocol", "founding-report", settings["lr"]),
        _gap_row("its rate", "rates-cola", settings["lr"]),
        _gap_row("tuned alike", "fair", None),
    ]
    columns = ["protocol", "lr", "head's lr", "epochs", "seeds", *PROTOCOL, "lora − full, 95 %"]
    return markdown(columns, lines)


def _gap_row(said: str, part: str, rate: float | None) -> list[str]:
    """Of the part's rows that were trained at `rate`, or at what was found for them."""
    rows = {
        of_row[0].method.name: of_row
        for (task, _), of_row in cells(part).items()
        if task == "cola" and rate in {None, of_row[0].training["lr"]}
    }
    if not rows.keys() >= set(PROTOCOL):
        return [said, NOT_YET, *["–"] * 6]
    full, lora = (rows[name] for name in PROTOCOL)
    training = lora[0].training
    pair = between(part, "cola", lora[0].method.label, full[0].method.label)
    return [
        said,
        "found by trials" if rate is None else f"{rate:g}",
        f"{training['head_lr']:g}",
        str(training["epochs"]),
        str(len(lora)),
        *(score(of_row) for of_row in (full, lora)),
        interval(pair),
    ]


def rates_table() -> str:
    """CoLA by method and rate."""
    done = {
        (of_row[0].method.name, of_row[0].training["lr"]): of_row
        for of_row in cells("rates-cola").values()
    }
    grid = sorted({rate for _, rate in done})
    head = ["method", *(f"{rate:g}" for rate in grid)]
    lines = [
        [card(name), *(score(done.get((name, rate), [])) for rate in grid)]
        for name in dict.fromkeys(name for name, _ in done)
    ]
    return markdown(head, lines) if done else f"{NOT_YET}\n"


def others_table() -> str:
    """The other methods' scores."""
    done = cells("others")
    on = [task for task in NAMES if any(task == known for known, _ in done)]
    lines = (
        [card(row), *(score(done.get((task, row), [])) for task in on)]
        for row in dict.fromkeys(row for _, row in done)
    )
    return markdown(["method", *(NAMES[task] for task in on)], lines) if done else f"{NOT_YET}\n"
