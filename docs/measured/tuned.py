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
    """Scores with their intervals, marks against the best, rates found; then what to take."""
    found = _comparison("verdicts.json")
    own = {(one.task, one.row): one for one in found.own}
    tasks = sorted({task for task, _ in own})
    best = {task: max((o.mean, o.row) for o in found.own if o.task == task)[1] for task in tasks}
    trials = read_trials(TUNED / "tuning")
    cells = _cells()
    pairs = {task: [pair for pair in found.pairs if pair.task == task] for task in tasks}
    head = ["method", *tasks, *(f"lr, {task}" for task in tasks)]
    lines = [
        [card(row)]
        + [
            score(cells[task, row], own[task, row], mark(pairs[task], row, best[task]))
            for task in tasks
        ]
        + [
            rate_found([one for one in trials if (one.task, one.label) == (task, row)])
            for task in tasks
        ]
        for row in dict.fromkeys(row for _, row in own)
    ]
    return "\n".join([markdown(head, lines), wrapped(advice(found)), _again()])


def _cells() -> dict[tuple[str, str], list[Record]]:
    """By task and row."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in whole(TUNED):
        found[record.task.name, record.method.label].append(record)
    return found


def _again() -> str:
    """How many of the verdicts other seeds give again."""
    second = _comparison("again/second.json")
    again = stay(_comparison("again/first.json"), second)
    told, stays, turned = (sum(one[i] for one in again.values()) for i in range(3))
    rows = sorted({row for pair in second.pairs for row in (pair.a, pair.b)})
    return wrapped(
        f"Run again with five other seeds, {stays} of the {told} verdicts *better* or *worse* "
        f"among {listed(rows)} are the same, and {turned} are reversed (`python "
        "experiments/again.py FIRST SECOND OUT`)."
    )


def _comparison(file: str) -> Comparison:
    return Comparison.model_validate_json((TUNED / file).read_text(encoding="utf-8"))
