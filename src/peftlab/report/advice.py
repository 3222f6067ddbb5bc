"""Which row to take, why, what it costs and what is open, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftlab.naming import counted, duration, listed
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.pairs import NO_COMMON_SEED, NO_PREDICTIONS, split_verdict
from peftlab.records.recommend import Ahead, Recommendation, TaskStanding
from peftlab.records.rows import CONSTANT, merit
from peftlab.records.verdicts import Comparison
from peftlab.report.scores import Table
from peftlab.report.text import count, number, of_metric, score

FEW = 3  # tasks up to which each has its own reason
RATE_FROM_DEV = (
    "Its learning rate was chosen on dev, by the very scores shown; --tune N chooses it on a part "
    "of train."
)


def advice(comparison: Comparison) -> str:
    """Which row to take, why, what it costs and what is open; empty where rows are not compared."""
    recommendation = comparison.recommendation
    if not comparison.pairs:
        return ""
    if recommendation is None:
        return (
            "No row has a score on every task: `--tasks` with one of them says which row to take "
            "on it."
        )
    sentences = [
        f"Take {recommendation.row}: {'; '.join(_reasons(recommendation))}.",
        _cost(recommendation),
        _open_question(recommendation.tasks),
        _failures(recommendation),
        _collapse(recommendation),
        RATE_FROM_DEV if recommendation.rate_from_dev else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def unreached(table: Table, comparison: Comparison) -> str:
    """The baselines that no row reaches, and those that the row to take does not reach.

    Only the best baseline of each task counts, by means alone. Empty where all are reached.
    """
    taken = comparison.recommendation.row if comparison.recommendation else None
    above_all: dict[str, list[str]] = {}  # by baseline: the tasks, each with the baseline's score
    above_taken: dict[str, list[str]] = {}
    for index, column in enumerate(table.columns):
        means = {
            row.label: merit(column.metric, mean)
            for row in table.rows
            if (cell := row.cells[index]) and (mean := cell.last.mean) is not None
        }
        scores = {name: value for name, value in column.baselines.items() if value is not None}
        name = max(scores, key=lambda name: merit(column.metric, scores[name]), default=None)
        if not means or name is None:
            continue
        threshold = merit(column.metric, scores[name])
        where = f"on {column.label} " if len(table.columns) > 1 else ""
        if threshold > max(means.values()):
            above_all.setdefault(name, []).append(f"{where}({score(scores[name], column)})")
        elif taken in means and threshold > means[taken]:
            above_taken.setdefault(name, []).append(f"{where}({score(scores[name], column)})")
    return " ".join(
        [
            f"No row's mean reaches {name} {listed(on)}{_remedy(name)}"
            for name, on in above_all.items()
        ]
        + [
            f"{taken}'s mean does not reach {name} {listed(on)}."
            for name, on in above_taken.items()
        ]
    )


def _remedy(baseline: str) -> str:
    if baseline in CONSTANT:
        return ", which reads no text: train longer, or at another rate."
    return f": train longer, or take {baseline}, which trains in seconds."


def _reasons(recommendation: Recommendation) -> list[str]:
    standings = recommendation.tasks
    if len(standings) <= FEW:
        return [
            _reason(standing, f" on {standing.task}" * (len(standings) > 1), recommendation)
            for standing in standings
        ]
    first = [standing for standing in standings if standing.verdict is None]
    behind = [standing for standing in standings if standing.is_behind]
    rest = [standing for standing in standings if standing.verdict and not standing.is_behind]
    reasons = []
    if first:
        ahead = [row for standing in first for row in standing.ahead]
        candidates = _candidates(ahead, recommendation)
        rivalled = max(first, key=_loss_in_margins)
        reasons.append(
            f"the best mean on {len(first)} of {len(standings)} tasks{candidates}"
            f"{_rival(rivalled, rivalled.task)}"
        )
    if rest:
        widest = max(rest, key=_loss_in_margins)
        is_known = all(standing.worse_at_most is not None for standing in rest)
        bound = _bound(widest, widest.task) if is_known else ""
        reasons.append(f"not shown to be worse on {len(rest)}{bound}")
    return reasons + [
        _reason(standing, f" on {standing.task}", recommendation) for standing in behind
    ]


def _loss_in_margins(standing: TaskStanding) -> float:
    """The most that the row may be worse by, in margins of the task: units of tasks differ."""
    return (standing.worse_at_most or 0.0) / (standing.margin or 1.0)


def _reason(standing: TaskStanding, where: str, recommendation: Recommendation) -> str:
    candidates = _candidates(standing.ahead, recommendation, standing.metric)
    if standing.verdict is None:
        return f"it has the best mean{where}{candidates}{_rival(standing)}"
    best, bound = standing.best, _bound(standing)
    behind = f"{best}{where}{bound}"
    has = f", which has the best mean{candidates}" if candidates else ""
    if standing.verdict == "worse":
        return f"worse than {behind}{has}"
    if standing.verdict == "better":  # by the seeds that both have: the other's mean is over more
        return f"better than {best}{where} on the seeds of both, whose mean over all is best"
    if standing.is_behind:
        return f"behind {behind}{has}, though no verdict says so"
    if standing.verdict == "tie":
        return f"a tie with {behind}{has}"
    if has:
        return f"not shown to be worse than {behind}{has}"
    return f"not shown to be worse than {best}, which has the best mean{where}{bound}"


def _rival(standing: TaskStanding, task: str = "") -> str:
    """The row that may still be better: the best of several means is often not the best row."""
    if not standing.rival or not standing.worse_at_most:
        return ""
    return f", though {standing.rival} may be better{_bound(standing, task)}"


def _candidates(
    ahead: Sequence[Ahead], recommendation: Recommendation, metric: str | None = None
) -> str:
    """The rows that the best mean is among, and those left out; empty if none was.

    With the `metric` of a single task, each row left out has its mean there.
    """
    groups = []
    for why in dict.fromkeys(row.why for row in ahead):
        rows = {row.row: row for row in ahead if row.why == why}
        left_out = [_left_out(row, recommendation, metric) for row in rows.values()]
        not_these = "not " if why == "tasks" else ""
        groups.append(f"{_condition(why, recommendation)} ({not_these}{'; '.join(left_out)})")
    return f" of the rows {' and '.join(groups)}" if groups else ""


def _condition(why: str, recommendation: Recommendation) -> str:
    """What the candidates have in common, and a row left out for the reason `why` lacks."""
    if why == "limits":
        memory_mib, minutes = recommendation.memory_mib, recommendation.minutes
        limits = [f"{memory_mib:g} MiB"] if memory_mib is not None else []
        limits += [f"{minutes:g} minutes"] if minutes is not None else []
        return f"within {' and '.join(limits)}"
    return {
        "tasks": "with a score on every task",
        "runs": "with enough seeds",
        "failed": "without a failed run",
        "collapsed": "without a collapsed run",
    }[why]


def _left_out(row: Ahead, recommendation: Recommendation, metric: str | None) -> str:
    if row.why == "tasks":
        return f"{row.row}, {row.n_failed} failed" if row.n_failed else row.row
    mean = "" if metric is None else f", {of_metric(row.mean, metric)}"
    return f"{row.row}{mean}, {_shortcoming(row, recommendation)}"


def _shortcoming(row: Ahead, recommendation: Recommendation) -> str:
    if row.why == "runs":
        somewhere = " on some task" if len(recommendation.tasks) > 1 else ""
        return f"has {counted(row.n_seeds, 'seed')}{somewhere}"
    though = ", though shown to be better" if row.is_better else ""
    if row.why == "failed":
        return f"{row.n_failed} failed{though}"
    if row.why == "collapsed":
        return f"{row.n_collapsed} collapsed{though}"
    costs = []
    if recommendation.memory_mib is not None:
        mib = row.cost.memory_mib
        costs.append("MiB not measured" if mib is None else f"{number(mib)} MiB")
    if recommendation.minutes is not None:
        seconds = row.cost.cell_s
        costs.append("time not measured" if seconds is None else f"{number(seconds / 60)} minutes")
    return f"takes {' and '.join(costs)}"


def _bound(standing: TaskStanding, task: str = "") -> str:
    if standing.worse_at_most is None:
        return ""
    bound = of_metric(standing.worse_at_most, standing.metric)
    on = f", on {task}" if task else ""
    # with too few seeds the interval does not hold their spread
    seeds = ", not counting other seeds" if standing.covers_seeds is False else ""
    return f" (by {bound} at most{on}{seeds})"


def _cost(recommendation: Recommendation) -> str:
    cost, several_tasks = recommendation.cost, len(recommendation.tasks) > 1
    most = "up to " if several_tasks else ""  # the longest task's, while tables have the mean
    parts = [
        f"trains {count(cost.trained)} parameters" if cost.trained is not None else "",
        f"takes up to {number(cost.memory_mib)} MiB" if cost.memory_mib is not None else "",
        f"runs for {most}{duration(cost.cell_s)}" if cost.cell_s is not None else "",
    ]
    known = [part for part in parts if part]
    return f"It {listed(known)}." if known else ""


def _open_question(standings: Sequence[TaskStanding]) -> str:
    """What would settle the tasks whose verdict is unclear; empty where none is."""
    unclear = [one for one in standings if split_verdict(one.word)[0] == "unclear"]
    if not unclear:
        return ""
    reasons = [split_verdict(standing.word)[1] for standing in unclear]
    if missing := {NO_PREDICTIONS, NO_COMMON_SEED}.intersection(reasons):
        pairs = zip(unclear, reasons, strict=True)
        lacking = [standing.task for standing, reason in pairs if reason in missing]
        where = f" on {listed(lacking)}" if len(lacking) < len(standings) else ""
        return f"More can't be said{where}: {listed(sorted(missing))}."
    if any(reasons):
        return f"A verdict takes {MIN_SEEDS} seeds."
    longest = max(unclear, key=_seeds_to_settle)
    other = longest.best if longest.verdict else longest.rival
    if longest.more_seeds is None:
        return (
            f"More seeds like these would not tell it from {other}: the dev set is too small, or "
            "the two are too close."
        )
    more = counted(longest.more_seeds, "more seed")
    return (
        f"With even odds {more} would tell it from {other}, if they are like these; decide how "
        "many before you look again."
    )


def _seeds_to_settle(standing: TaskStanding) -> float:
    return math.inf if standing.more_seeds is None else standing.more_seeds


def _failures(recommendation: Recommendation) -> str:
    n_failed, n_done = recommendation.n_failed, recommendation.n_done
    return f"{n_failed} of its {n_done + n_failed} runs failed." if n_failed else ""


def _collapse(recommendation: Recommendation) -> str:
    sentences, more = [], ""
    if tasks := recommendation.collapsed_on:
        where = "" if len(tasks) == len(recommendation.tasks) else f" on {listed(tasks)}"
        more = " more"
        sentences.append(
            f"Every run of every row collapsed{where}: none is better than a constant answer; "
            "train longer, or at another rate."
        )
    if recommendation.n_collapsed:
        sentences.append(
            f"{recommendation.n_collapsed}{more} of its {recommendation.n_done} runs collapsed: "
            "no better than a constant answer."
        )
    return " ".join(sentences)
