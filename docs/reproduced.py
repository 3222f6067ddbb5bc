"""The tables of docs/reproduction.md, from results/reproduction.

What is not there yet is said to be missing.

plan    the parts, what they answer, and how many of their cells are done
table   table 1: every method's score on every task beside the founding report's
tasks   of each task the differences from full fine-tuning, with interval and verdict
rates   CoLA over the learning rate
gap     LoRA's distance from full fine-tuning on CoLA under every protocol
claims  what the report says, and what our records say of it
others  the methods that the report describes and does not run, and later ones
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from whole import whole

from peftlab.bench.recipe import recipe, recipes
from peftlab.records.own import Own
from peftlab.records.pairs import Verdict, against
from peftlab.records.record import Record
from peftlab.records.rows import COLLAPSED
from peftlab.records.store import rounds
from peftlab.records.trials import Trial, read_trials
from peftlab.records.verdicts import Comparison
from peftlab.report.standing import mark

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "reproduction"
REPORT = recipe("founding-report")
PAPERS = {
    row: paper
    for name, paper in recipes().items()
    if name != REPORT.name
    for row in paper.published.scores
}
OWN_PROTOCOL = ("full", "lora")  # the rows of the report's that were trained as it did, on CoLA
NAMES = {"cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "stsb": "STS-B"}
FULL = "full"
NOT_YET = "Not run yet."


def _folders(part: str) -> list[Path]:
    """Of the part, one a task."""
    return sorted((RESULTS / part).glob("*/"))


def _records(part: str) -> list[Record]:
    return [record for folder in _folders(part) for record in whole(folder)]


def _comparisons(part: str) -> list[Comparison]:
    files = [folder / "verdicts.json" for folder in _folders(part)]
    return [Comparison.model_validate_json(file.read_text(encoding="utf-8")) for file in files]


def _own(part: str) -> dict[str, dict[str, Own]]:
    """How sure every score is: by task, in table 1's order, and by row, in its order."""
    known = [one for comparison in _comparisons(part) for one in comparison.own]
    found = {task: {one.row: one for one in known if one.task == task} for task in NAMES}
    scores = REPORT.published.scores
    return {task: {row: of[row] for row in scores if row in of} for task, of in found.items() if of}


def _pairs(part: str, task: str) -> list[Verdict]:
    known = (pair for comparison in _comparisons(part) for pair in comparison.pairs)
    return [pair for pair in known if pair.task == task]


def _trials(part: str) -> list[Trial]:
    return [trial for folder in _folders(part) for trial in read_trials(folder / "tuning")]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _number(value: float | None, signed: bool = False) -> str:
    """A score at three digits, as it is typeset: .500, −.012."""
    if value is None:
        return "–"
    text = f"{value:{'+' if signed else ''}.3f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _published(row: str, task: str) -> str:
    score = REPORT.published.scores.get(row, {}).get(task)
    return "–" if score is None else _number(score)[:-1]  # two digits are published


def _originals(row: str, task: str) -> str:
    """The score that the method's authors, or who stands for them, gave."""
    paper = PAPERS.get(row)
    if paper is None:
        return "–"
    metric = paper.by_task.get(task, {}).get("metric")
    return _number(paper.published.scores[row][task]) + (f" ({metric})" if metric else "")


def plan_table() -> str:
    """The parts with what they answer, and how many of their cells are done."""
    parts = [
        ("fair", "are they equal, tuned alike?", _asked("fair")),
        ("rates-cola", "method, or rate?", _asked("rates-cola")),
        ("founding-report", "does its own protocol give its gap?", len(OWN_PROTOCOL)),
        ("others", "and the methods that it did not run?", _asked("others")),
    ]
    head = ["part", "asks", "cells done", "of", "trials"]
    return _table(head, ([f"`{name}`", asks, *_done(name, n)] for name, asks, n in parts))


def _asked(name: str) -> int:
    """How many cells the suite has."""
    suite = tomllib.loads((ROOT / "experiments" / f"{name}.toml").read_text(encoding="utf-8"))
    axes = ("tasks", "methods", "rates", "seeds")
    return math.prod(len(suite[axis]) for axis in axes if axis in suite)


def _done(part: str, asked: int) -> list[str]:
    done = sum(record.status == "done" for record in _records(part))
    return [str(done), str(asked), str(len(_trials(part)) or "–")]


def scores_table(cards: str = "methods") -> str:
    """Table 1: ours beside the report's, two columns a task; `cards` is where methods are told."""
    own, collapsed = _own("fair"), _collapsed("fair")
    rows = dict.fromkeys(row for of_task in own.values() for row in of_task)
    standing = {task: _standing(task, of_task) for task, of_task in own.items()}
    head = ["method", *(f"{NAMES[task]}, {whose}" for task in own for whose in ("ours", "theirs"))]
    lines = [
        [
            _card(row, cards),
            *(
                cell
                for task, of_task in own.items()
                for cell in (
                    _ours(of_task.get(row), standing[task].get(row, ""), collapsed[task, row]),
                    _published(row, task),
                )
            ),
        ]
        for row in rows
    ]
    return _table(head, lines)


def _standing(task: str, own: Mapping[str, Own]) -> dict[str, str]:
    """The mark of every row of a task against the best mean."""
    best = max(own, key=lambda row: own[row].mean)
    return {row: mark(_pairs("fair", task), row, best) for row in own}


def _card(row: str, cards: str = "methods") -> str:
    return f"[{row}]({cards}/{row}.md)"


def _collapsed(part: str) -> Counter[tuple[str, str]]:
    """How many runs of a row on a task are no better than a constant answer."""
    return Counter(
        (record.task.name, record.method.name)
        for record in _records(part)
        if any(warning.startswith(COLLAPSED) for warning in record.warnings)
    )


def _ours(one: Own | None, standing: str = "", n_collapsed: int = 0) -> str:
    if one is None:
        return "–"
    score = f"{_number(one.mean)} ± {_number(one.high - one.mean)} {standing}".strip()
    return f"{score} ({n_collapsed} of {one.n_seeds} collapsed)" if n_collapsed else score


def tasks_table() -> str:
    """Of each task a table of what every method has less or more than full fine-tuning."""
    head = ["method", "lr", "ours", "− full, 95 %", "says", "theirs", "− full", "papers"]
    parts = []
    for task, own in _own("fair").items():
        metric = own[FULL].metric
        lines = [_task_row(one, _pairs("fair", task)) for one in own.values()]
        parts += [f"### {NAMES[task]} ({metric})\n", _table(head, lines)]
    return "\n".join(parts)


def _task_row(one: Own, pairs: Sequence[Verdict]) -> list[str]:
    pair = against(pairs, one.row, FULL)
    scores = REPORT.published.scores
    theirs, full = (scores[row].get(one.task) for row in (one.row, FULL))
    gap = None if theirs is None or full is None or pair is None else theirs - full
    return [
        _card(one.row),
        _rate(one),
        _ours(one),
        _interval(pair),
        "–" if pair is None else pair.verdict,
        _published(one.row, one.task),
        "–" if gap is None else _number(gap, signed=True)[:-1],
        _originals(one.row, one.task),
    ]


def _rate(one: Own) -> str:
    """The learning rate that the row's trials found, with a mark where its range ends."""
    for trial in _trials("fair"):
        if trial.chosen and (trial.task, trial.label) == (one.task, one.row):
            return f"{trial.values['lr']:.2g}{'†' * ('lr' in trial.at_border)}"
    raise LookupError(f"no trial was chosen for {one.row} on {one.task}")


def _interval(pair: Verdict | None) -> str:
    if pair is None:
        return "–"
    ends = (pair.difference, pair.low, pair.high)
    difference, low, high = (_number(end, signed=True) for end in ends)
    return f"{difference} [{low}, {high}]"


def rates_table() -> str:
    """CoLA by method and rate, mean ± sample sd over seeds."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in _records("rates-cola"):
        if record.score:
            score = record.score[record.task.main_metric]
            scores[record.method.name][record.training["lr"]].append(score)
    if not scores:
        return NOT_YET + "\n"
    grid = sorted({rate for of_method in scores.values() for rate in of_method})
    head = ["method", *(f"{rate:g}" for rate in grid)]
    lines = [[_card(row), *(_spread(of[rate]) for rate in grid)] for row, of in scores.items()]
    return _table(head, lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = _number(statistics.fmean(values))
    if len(values) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {_number(statistics.stdev(values))}"


def gap_table() -> str:
    """Full fine-tuning and LoRA on CoLA under every protocol, and what lies between them."""
    theirs = {row: scores["cola"] for row, scores in REPORT.published.scores.items()}
    tuned = {row: one.mean for row, one in _own("fair")["cola"].items()}
    rate = REPORT.training["lr"]
    protocols = [
        ("the report: 4e-5, 40 epochs, one seed, RoBERTa-base", theirs),
        ("its protocol: 4e-5, 40 epochs", _means("founding-report", rate)),
        ("its rate, 3 epochs", _means("rates-cola", rate)),
        ("tuned alike, 3 epochs", tuned),
    ]
    head = ["protocol", FULL, "lora", "lora − full"]
    return _table(head, ([said, *_distance(scores)] for said, scores in protocols))


def _means(part: str, rate: float) -> dict[str, float]:
    """Of each method the mean score on CoLA of a part's cells at a rate."""
    scores = defaultdict(list)
    for record in _records(part):
        if record.score and record.task.name == "cola" and record.training["lr"] == rate:
            scores[record.method.name].append(record.score["matthews"])
    return {method: statistics.fmean(values) for method, values in scores.items()}


def _distance(scores: Mapping[str, float]) -> list[str]:
    if FULL not in scores or "lora" not in scores:
        return [NOT_YET.lower().rstrip("."), "–", "–"]
    full, lora = scores[FULL], scores["lora"]
    return [_number(full), _number(lora), _number(lora - full, signed=True)]


def claims_table() -> str:
    """Every claim of the report, and what the records say of it."""
    lines = [
        ["parameter-efficient methods score as full fine-tuning does", _same_scores()],
        ["they train 15 to 50 % faster", _faster()],
        ["they take some 30 % less memory", _smaller()],
        ["full fine-tuning's training loss is much lower, its score no better", _lower_loss()],
    ]
    return _table(["the report says", "our records say"], lines)


def _same_scores() -> str:
    """How many rows are worse than full fine-tuning on a task, and how many otherwise."""
    own = _own("fair")
    against_full = {
        (row, task): pair
        for task, rows in own.items()
        for row in rows
        if (pair := against(_pairs("fair", task), row, FULL)) is not None
    }
    told = []
    for verdict in ("worse", "better", "tie", "unclear"):
        found = [key for key, pair in against_full.items() if pair.verdict == verdict]
        named = ", ".join(f"{row} on {NAMES[task]}" for row, task in found)
        told += [f"{verdict} {len(found)}" + (f" ({named})" if found else "")]
    return f"of {len(against_full)} rows against full: {'; '.join(told)}"


def _faster() -> str:
    """In rounds that took turns, how much faster than full fine-tuning."""
    shares = _beside_full(lambda one: one.speed.examples_per_s if one.speed else None)
    return _told({key: share - 1 for key, share in shares.items()})


def _smaller() -> str:
    """Likewise, how much less the whole process takes at its peak."""
    shares = _beside_full(lambda one: one.memory.peak_mib if one.memory else None)
    return _told({key: 1 - share for key, share in shares.items()})


def _beside_full(measured: Callable[[Record], float | None]) -> dict[tuple[str, str], float]:
    """By task and method the median over rounds of what was measured beside full fine-tuning's."""
    in_round: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for record in (one for folder in _folders("fair") for one in rounds(folder)):
        if (value := measured(record)) is not None:
            in_round[record.task.name, record.seed][record.method.name] = value
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (task, _), values in in_round.items():
        for method in values.keys() - {FULL}:
            shares[task, method].append(values[method] / values[FULL])
    return {key: statistics.median(of) for key, of in shares.items()}


def _told(changes: Mapping[tuple[str, str], float]) -> str:
    if not changes:
        return "not measured yet"
    told = []
    for task in dict.fromkeys(task for task, _ in changes):
        of_task = {
            row: changes[task, row] for row in REPORT.published.scores if (task, row) in changes
        }
        each = (f"{row} {100 * change:.0f} %".replace("-", "−") for row, change in of_task.items())
        told.append(f"{NAMES[task]}: {', '.join(each)}")
    return "; ".join(told)


def _lower_loss() -> str:
    """The training loss of the last epoch, mean over seeds."""
    files = (folder / "losses.json" for folder in _folders("fair"))
    known = {cell: loss for file in files for cell, loss in json.loads(file.read_text()).items()}
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in _records("fair"):
        if known[record.cell] is not None:
            losses[record.task.name, record.method.name].append(known[record.cell])
    told = []
    for task, own in _own("fair").items():
        each = (f"{row} {_number(statistics.fmean(losses[task, row]))}" for row in own)
        told.append(f"{NAMES[task]}: {', '.join(each)}")
    return f"mean training loss of the last epoch, {'; '.join(told)}"


def others_table() -> str:
    """The other methods' scores."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for record in _records("others"):
        if record.score:
            score = record.score[record.task.main_metric]
            found[record.method.name][record.task.name] = _number(score)
    if not found:
        return NOT_YET + "\n"
    on = [task for task in NAMES if any(task in of_row for of_row in found.values())]
    lines = [[_card(row), *(of.get(task, "–") for task in on)] for row, of in found.items()]
    return _table(["method", *(NAMES[task] for task in on)], lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "plan": plan_table,
    "table": scores_table,
    "tasks": tasks_table,
    "rates": rates_table,
    "gap": gap_table,
    "claims": claims_table,
    "others": others_table,
}
