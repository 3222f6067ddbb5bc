"""Table 1 of the reproduction, what lies between its rows, its figures, and the other methods."""

from __future__ import annotations

from collections.abc import Sequence

from measured.runs import (
    DOCS,
    FULL,
    NAMES,
    NOT_YET,
    REPORT,
    RESULTS,
    between,
    cells,
    owns,
    pairs_on,
    table_rows,
)
from measured.text import card, interval, markdown, number, rate_found, score
from peftlab.bench.recipe import recipes
from peftlab.records.rows import merit
from peftlab.records.trials import read_trials
from peftlab.report.standing import mark

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
    scored = [one for one in rows if (task, one) in own]
    best = max(scored, key=lambda one: merit(own[task, one].metric, own[task, one].mean))
    return mark(pairs_on("fair", task), row, best)


def _published(row: str, task: str) -> str:
    return number(REPORT.published.scores.get(row, {}).get(task), digits=2)


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
    """The learning rate that the row's trials found."""
    trials = read_trials(RESULTS / "fair" / task / "tuning")
    return rate_found([one for one in trials if one.label == row])


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


def others_table() -> str:
    """The other methods' scores."""
    done = cells("others")
    on = [task for task in NAMES if any(task == known for known, _ in done)]
    lines = (
        [card(row), *(score(done.get((task, row), [])) for task in on)]
        for row in dict.fromkeys(row for _, row in done)
    )
    return markdown(["method", *(NAMES[task] for task in on)], lines) if done else f"{NOT_YET}\n"
