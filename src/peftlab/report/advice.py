"""Which row to take, why, what it costs and what is open, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftlab.naming import counted, duration, listed
from peftlab.records.crossed import MIN_SEEDS
from peftlab.records.recommend import AgainstBest, Ahead, Recommendation
from peftlab.records.rows import CONSTANT, merit
from peftlab.records.verdicts import Comparison
from peftlab.report.scores import Table
from peftlab.report.text import count, number, of_metric, score

FEW = 3  # tasks that are told one by one
RATE_FROM_DEV = (
    "Its learning rate was chosen on dev, by the very scores shown; --tune N chooses it on a part "
    "of train."
)


def advice(comparison: Comparison) -> str:
    """Which row to take, why, what it costs and what is open; empty where rows are not compared."""
    found = comparison.recommendation
    if not comparison.pairs:
        return ""
    if found is None:
        return "No row ran on every task: `--tasks` with one of them says which row to take on it."
    rate = RATE_FROM_DEV if found.rate_from_dev else ""
    told = [
        f"Take {found.row}: {'; '.join(_reasons(found))}.",
        *(_cost(found), _open(found.tasks), _failures(found), _collapse(found), rate),
    ]
    return " ".join(line for line in told if line)


def unreached(table: Table, comparison: Comparison) -> str:
    """The baselines that no row reaches, or the row to take does not; or nothing.

    Of each task the best baseline, by means alone.
    """
    taken = comparison.recommendation.row if comparison.recommendation else None
    none: dict[str, list[str]] = {}
    not_taken: dict[str, list[str]] = {}
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
        least = merit(column.metric, scores[name])
        where = f"on {column.label} " if len(table.columns) > 1 else ""
        if least > max(means.values()):
            none.setdefault(name, []).append(f"{where}({score(scores[name], column)})")
        elif taken in means and least > means[taken]:
            not_taken.setdefault(name, []).append(f"{where}({score(scores[name], column)})")
    return " ".join(
        [f"No row reaches {name} {listed(on)}{_instead(name)}" for name, on in none.items()]
        + [f"{taken} does not reach {name} {listed(on)}." for name, on in not_taken.items()]
    )


def _instead(baseline: str) -> str:
    if baseline in CONSTANT:
        return ", which reads no text: train longer, or at another rate."
    return f": train longer, or take {baseline}, which trains in seconds."


def _reasons(found: Recommendation) -> list[str]:
    tasks = found.tasks
    if len(tasks) <= FEW:
        return [_reason(one, f" on {one.task}" * (len(tasks) > 1), found) for one in tasks]
    first = [one for one in tasks if one.verdict is None]
    worse = [one for one in tasks if one.is_behind]
    rest = [one for one in tasks if one.verdict is not None and not one.is_behind]
    told = []
    if first:
        ahead = [other for one in first for other in one.ahead]
        told.append(f"the best mean on {len(first)} of {len(tasks)} tasks{_among(ahead, found)}")
    if rest:
        most = max(rest, key=_share)
        told.append(f"not shown to be worse on {len(rest)}{_at_most(most, most.task)}")
    return told + [_reason(one, f" on {one.task}", found) for one in worse]


def _share(one: AgainstBest) -> float:
    """By how much it may be worse as a share of the task's margin: units of tasks differ."""
    return (one.worse_at_most or 0.0) / (one.margin or 1.0)


def _reason(one: AgainstBest, where: str, found: Recommendation) -> str:
    among = _among(one.ahead, found, one.metric)
    if one.verdict is None:
        return f"it has the best mean{where}{among}{_rival(one)}"
    behind = f"{one.best}{where}{_at_most(one)}"
    has = f", which has the best mean{among}" if among else ""
    if one.verdict == "worse":
        return f"worse than {behind}{has}"
    if one.verdict == "better":  # by the seeds that both have: the other's mean is over more
        return f"better than {one.best}{where} on the seeds of both, whose mean over all is best"
    if one.is_behind:
        return f"behind {behind}{has}, though no verdict says so"
    if one.verdict == "tie":
        return f"a tie with {behind}{has}"
    if has:
        return f"not shown to be worse than {behind}{has}"
    return f"not shown to be worse than {one.best}, which has the best mean{where}{_at_most(one)}"


def _rival(one: AgainstBest) -> str:
    """That another may be better, if that is so: the best of several means is often none."""
    if not one.rival or not one.worse_at_most:
        return ""
    return f", though {one.rival} may be better{_at_most(one)}"


def _among(ahead: Sequence[Ahead], found: Recommendation, metric: str | None = None) -> str:
    """Of which rows the best mean is the best, and who was left out; empty if it is that of all.

    With the metric of the one task, what those have there.
    """
    told = []
    for why in dict.fromkeys(one.why for one in ahead):
        rows = {one.row: one for one in ahead if one.why == why}
        each = [_left_out(one, found, metric) for one in rows.values()]
        not_these = "not " if why == "tasks" else ""
        told.append(f"{_kind(why, found)} ({not_these}{'; '.join(each)})")
    return f" of the rows {' and '.join(told)}" if told else ""


def _kind(why: str, found: Recommendation) -> str:
    if why == "limits":
        limits = [f"{found.memory_mib:g} MiB"] if found.memory_mib is not None else []
        limits += [f"{found.minutes:g} minutes"] if found.minutes is not None else []
        return f"within {' and '.join(limits)}"
    return {
        "tasks": "that ran on every task",
        "runs": "with enough seeds",
        "failed": "without a failed run",
        "collapsed": "without a collapsed run",
    }[why]


def _left_out(one: Ahead, found: Recommendation, metric: str | None) -> str:
    if one.why == "tasks":
        return one.row
    mean = "" if metric is None else f", {of_metric(one.mean, metric)}"
    return f"{one.row}{mean}, {_missed(one, found)}"


def _missed(one: Ahead, found: Recommendation) -> str:
    if one.why == "runs":
        somewhere = " on some task" if len(found.tasks) > 1 else ""
        return f"has {counted(one.n_seeds, 'seed')}{somewhere}"
    though = ", though shown to be better" if one.is_better else ""
    if one.why == "failed":
        return f"{one.n_failed} failed{though}"
    if one.why == "collapsed":
        return f"{one.n_collapsed} collapsed{though}"
    taken = []
    if found.memory_mib is not None:
        held = one.cost.memory_mib
        taken.append("MiB not measured" if held is None else f"{number(held)} MiB")
    if found.minutes is not None:
        seconds = one.cost.cell_s
        taken.append("time not measured" if seconds is None else f"{number(seconds / 60)} minutes")
    return f"takes {' and '.join(taken)}"


def _at_most(one: AgainstBest, task: str = "") -> str:
    if one.worse_at_most is None:
        return ""
    most = of_metric(one.worse_at_most, one.metric)
    few = one.word.startswith("unclear: ")  # seeds, of which the interval knows nothing
    return f" (by {most} at most{f', on {task}' * bool(task)}{', not counting other seeds' * few})"


def _cost(found: Recommendation) -> str:
    cost = found.cost
    parts = [
        f"trains {count(cost.trained)} parameters" if cost.trained is not None else "",
        f"takes up to {number(cost.memory_mib)} MiB" if cost.memory_mib is not None else "",
        f"runs for {duration(cost.cell_s)}" if cost.cell_s is not None else "",
    ]
    told = [part for part in parts if part]
    return f"It {listed(told)}." if told else ""


def _open(tasks: Sequence[AgainstBest]) -> str:
    unclear = [one for one in tasks if one.word.startswith("unclear")]
    if not unclear:
        return ""
    words = {one.word.partition(": ")[2] for one in unclear}
    if missing := words & {"no predictions", "no seed in common"}:
        lacking = [one.task for one in unclear if one.word.partition(": ")[2] in missing]
        where = f" on {listed(lacking)}" if len(lacking) < len(tasks) else ""
        return f"More can't be said{where}: {listed(sorted(missing))}."
    if words != {""}:
        return f"A verdict takes {MIN_SEEDS} seeds."
    longest = max(unclear, key=lambda one: math.inf if one.more_seeds is None else one.more_seeds)
    other = longest.best if longest.verdict else longest.rival
    if longest.more_seeds is None:
        return (
            f"More seeds like these would not tell it from {other}: the dev set is too small, or "
            "the two are too close."
        )
    more = counted(longest.more_seeds, "more seed")
    return f"About {more} would tell it from {other}, if they were like these."


def _failures(found: Recommendation) -> str:
    if not found.n_failed:
        return ""
    return f"{found.n_failed} of its {found.n_done + found.n_failed} runs failed."


def _collapse(found: Recommendation) -> str:
    if found.collapsed_on:
        every = len(found.collapsed_on) == len(found.tasks)
        where = "" if every else f" on {listed(found.collapsed_on)}"
        return (
            f"Every run of every row collapsed{where}: none is better than a constant answer; "
            "train longer, or at another rate."
        )
    if not found.n_collapsed:
        return ""
    return (
        f"{found.n_collapsed} of its {found.n_done} runs collapsed: no better than a constant "
        "answer."
    )
