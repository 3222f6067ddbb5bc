"""All methods tuned alike on minilm, from results/minilm: a table of docs/which.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from again import stay
from whole import whole

from measured.text import card, listed, markdown, rate_found, score, wrapped
from peftlab.records.record import Record
from peftlab.records.trials import read_trials
from peftlab.records.verdicts import Comparison
from peftlab.report.advice import advice
from peftlab.report.standing import mark

TUNED = Path(__file__).parents[2] / "results" / "minilm"


def tuned_table() -> str:
    """Scores with intervals and marks against the best, rates found; then the advice."""
    comparison = _comparison("verdicts.json")
    own = {(row.task, row.row): row for row in comparison.own}
    tasks = sorted({task for task, _ in own})
    best = {
        task: max((row.mean, row.row) for row in comparison.own if row.task == task)[1]
        for task in tasks
    }
    trials = read_trials(TUNED / "tuning")
    cells = _cells()
    pairs = {task: [pair for pair in comparison.pairs if pair.task == task] for task in tasks}
    columns = ["method", *tasks, *(f"lr, {task}" for task in tasks)]
    lines = [
        [card(row)]
        + [
            score(cells[task, row], own[task, row], mark(pairs[task], row, best[task]))
            for task in tasks
        ]
        + [
            rate_found([trial for trial in trials if (trial.task, trial.label) == (task, row)])
            for task in tasks
        ]
        for row in dict.fromkeys(row for _, row in own)
    ]
    return "\n".join([markdown(columns, lines), wrapped(advice(comparison)), _again()])


def _cells() -> dict[tuple[str, str], list[Record]]:
    """The records by task and row."""
    records: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in whole(TUNED):
        records[record.task.name, record.method.label].append(record)
    return records


def _again() -> str:
    """How many of the verdicts hold with other seeds."""
    second = _comparison("again/second.json")
    counts = stay(_comparison("again/first.json"), second).values()
    told, same, turned = (sum(count[i] for count in counts) for i in range(3))
    rows = sorted({row for pair in second.pairs for row in (pair.a, pair.b)})
    return wrapped(
        f"Run again with five other seeds, at the same rates and on the same dev sets, {same} of "
        f"the {told} verdicts *better* or *worse* "
        f"among {listed(rows)} are the same, and {turned} are reversed (`python "
        "experiments/again.py FIRST SECOND OUT`)."
    )


def _comparison(file: str) -> Comparison:
    return Comparison.model_validate_json((TUNED / file).read_text(encoding="utf-8"))
