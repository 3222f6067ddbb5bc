"""Table 1 of the reproduction, differences between its rows, its figures, the other methods."""

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
    "score": "Figures 1 (CoLA) and 2 (MRPC's F1). Score on dev over training",
    "speed": "Figure 3. Training speed, in turns with nothing else on the machine",
    "memory": "Figure 4. Memory over training",
    "loss": "Training loss",
}


def scores_table(cards: str = "methods") -> str:
    """Table 1: our scores beside the report's, two columns a task; `cards` is the cards' folder."""
    tasks, done, own = table_rows(), cells("fair"), owns("fair")
    columns = [
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
    return markdown(columns, lines) if tasks else f"{NOT_YET}\n"


def _standing(task: str, row: str, rows: Sequence[str]) -> str:
    """The mark of a row against the best mean of the task."""
    own = owns("fair")
    if (task, row) not in own:
        return ""
    scored = [other for other in rows if (task, other) in own]
    best = max(scored, key=lambda other: merit(own[task, other].metric, own[task, other].mean))
    return mark(pairs_on("fair", task), row, best)


def _published(row: str, task: str) -> str:
    return number(REPORT.published.scores.get(row, {}).get(task), digits=2)


def tasks_table() -> str:
    """For each task a table of every method's difference from full fine-tuning."""
    columns = ["method", "lr", "ours", "− full, 95 %", "says", "theirs", "− full", "papers"]
    parts = []
    for task, rows in table_rows().items():
        metric = cells("fair")[task, rows[0]][0].task.main_metric
        parts += [
            f"### {NAMES[task]} ({metric})\n",
            markdown(columns, (_task_row(task, row) for row in rows)),
        ]
    return "\n".join(parts) or f"{NOT_YET}\n"


def _task_row(task: str, row: str) -> list[str]:
    pair = between("fair", task, row, FULL)
    published, full = (REPORT.published.scores[name].get(task) for name in (row, FULL))
    gap = None if row == FULL or published is None or full is None else published - full
    return [
        card(row),
        _rate(task, row),
        score(cells("fair")[task, row], owns("fair").get((task, row))),
        interval(pair),
        "–" if pair is None else pair.verdict,
        _published(row, task),
        number(gap, digits=2, signed=True),
        _original(row, task),
    ]


def _rate(task: str, row: str) -> str:
    """The learning rate that the row's trials found."""
    trials = read_trials(RESULTS / "fair" / task / "tuning")
    return rate_found([trial for trial in trials if trial.label == row])


def _original(row: str, task: str) -> str:
    """The score that the method's authors published, or the paper that a recipe takes instead."""
    paper = PAPERS.get(row)
    if paper is None:
        return "–"
    metric = paper.by_task.get(task, {}).get("metric")
    return number(paper.published.scores[row][task]) + (f" ({metric})" if metric else "")


def figures() -> str:
    """The report's figures, as far as they have been made."""
    folder = DOCS / "images" / "reproduction"
    parts = []
    for kind, title in FIGURES.items():
        tasks = [task for task in NAMES if (folder / f"{kind}-{task}.svg").exists()]
        parts += [f"**{title}:** {', '.join(NAMES[task] for task in tasks) or NOT_YET}.\n"]
        parts += [
            f"![{title}, {NAMES[task]}](images/reproduction/{kind}-{task}.svg)\n" for task in tasks
        ]
    return "\n".join(parts)


def others_table() -> str:
    """The other methods' scores."""
    done = cells("others")
    tasks = [task for task in NAMES if task in {done_task for done_task, _ in done}]
    lines = (
        [card(row), *(score(done.get((task, row), [])) for task in tasks)]
        for row in dict.fromkeys(row for _, row in done)
    )
    return markdown(["method", *(NAMES[task] for task in tasks)], lines) if done else f"{NOT_YET}\n"
