"""What the founding report says, and whether our records say so."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from measured.runs import FULL, NAMES, NOT_YET, RESULTS, Row, between, cells, owns, table_rows
from measured.text import card, markdown, number, score
from peftlab.machine import BUSY_SHARE
from peftlab.records.record import Record
from peftlab.records.rows import finite_values
from peftlab.records.store import rounds_of

SAID = {
    "worse": "worse than full",
    "better": "better than full",
    "tie": "a tie with it",
    "unclear": "not told apart, nor shown to be equal",
}


def claims_table() -> str:
    """Every claim of the report, and whether the records say so."""
    lines = [
        ["parameter-efficient methods score as full fine-tuning does", *_same_scores()],
        ["they train 15 to 50 % faster", *_within(_speed, 0.15, 0.5, "faster")],
        ["they take some 30 % less memory", *_within(_less_memory, 0.25, 0.35, "less")],
        ["full fine-tuning's training loss is much lower, its score no better", *_lower_loss()],
    ]
    return markdown(["the report says", "holds here", "our records say"], lines)


def _same_scores() -> tuple[str, str]:
    """Which rows are worse than full fine-tuning on a task, and which otherwise."""
    found: dict[str, list[str]] = {verdict: [] for verdict in SAID}
    for task, rows in table_rows().items():
        for row in rows:
            if pair := between("fair", task, row, FULL):
                found[pair.verdict.partition(":")[0]].append(f"{row} on {NAMES[task]}")
    told = [
        f"{said}: {', '.join(found[verdict])}" for verdict, said in SAID.items() if found[verdict]
    ]
    if not told:
        return NOT_YET, "–"
    if found["worse"] or found["better"]:
        return "no", "; ".join(told)
    return "not decided" if found["unclear"] else "yes", "; ".join(told)


def _within(
    measured: Callable[[Row], float | None], low: float, high: float, word: str
) -> tuple[str, str]:
    """Whether all that was measured lies in a range that the report gives."""
    shares = {
        task: finite_values(measured((task, row)) for row in rows if row != FULL)
        for task, rows in table_rows().items()
    }
    every = [share for of_task in shares.values() for share in of_task]
    if not every:
        return NOT_YET, "–"
    least, most = min(every), max(every)
    on = _listed([task for task, of_task in shares.items() if of_task])
    told = f"{_percent(least)} to {_percent(most)} {word} on {on}"
    if low <= least and most <= high:
        return "yes", told
    if low <= least:
        return "yes, and more", told
    return "in part" if low <= most else "no", told


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %".replace("-", "−")


def _lower_loss() -> tuple[str, str]:
    """Where full fine-tuning has the lowest loss of the rows, and where a better score."""
    rows_of = table_rows()
    lowest = [task for task, rows in rows_of.items() if _lowest_loss(task, rows) == FULL]
    better = [task for task, rows in rows_of.items() if _is_ahead(task, rows)]
    told = f"lowest loss of all on {_listed(lowest)}; better than some row on {_listed(better)}"
    if not rows_of:
        return NOT_YET, "–"
    loss = "yes" if len(lowest) == len(rows_of) else "in part" if lowest else "no"
    return f"lower loss: {loss}; score no better: {'no' if better else 'not decided'}", told


def _lowest_loss(task: str, rows: Sequence[str]) -> str:
    return min(rows, key=lambda row: _loss((task, row)) or math.inf)


def _is_ahead(task: str, rows: Sequence[str]) -> bool:
    pairs = (between("fair", task, FULL, row) for row in rows)
    return any(pair is not None and pair.verdict == "better" for pair in pairs)


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(NAMES[task] for task in tasks) or "none"


def beside_table() -> str:
    """Of each task a table of speed, memory, training loss and score beside full fine-tuning's."""
    head = [
        "method",
        "faster",
        "less memory, process",
        "less memory, training",
        "training loss",
        "score",
    ]
    parts = []
    for task, rows in table_rows().items():
        lines = [
            [
                card(row),
                *(
                    _percent(measured((task, row)))
                    for measured in (_speed, _less_memory, _less_training_memory)
                ),
                number(_loss((task, row))),
                score(cells("fair")[task, row], owns("fair").get((task, row))),
            ]
            for row in rows
        ]
        parts += [f"### {NAMES[task]}\n", markdown(head, lines)]
    return "\n".join(parts) or f"{NOT_YET}\n"


def _speed(row: Row) -> float | None:
    """How much faster than full fine-tuning the row trains, as a share of it."""
    share = _of_full(row, lambda one: one.speed.examples_per_s if one.speed else None)
    return None if share is None else share - 1


def _less_memory(row: Row) -> float | None:
    """How much less the whole process takes at its peak."""
    share = _of_full(row, lambda one: one.memory.peak_mib if one.memory else None)
    return None if share is None else 1 - share


def _less_training_memory(row: Row) -> float | None:
    """Likewise, above what was resident before the model was loaded."""
    share = _of_full(row, lambda one: one.memory.train_peak_mib if one.memory else None)
    return None if share is None else 1 - share


def _of_full(row: Row, measured: Callable[[Record], float | None]) -> float | None:
    """The median over rounds of what was measured beside full fine-tuning in the same round."""
    task, label = row
    in_round: dict[int, dict[str, float]] = defaultdict(dict)
    for one in rounds_of(RESULTS / "fair" / task):
        if (value := measured(one)) is not None and (one.speed.others_share or 0) <= BUSY_SHARE:
            in_round[one.seed][one.method.label] = value
    both = [of[label] / of[FULL] for of in in_round.values() if {label, FULL} <= of.keys()]
    return statistics.median(both) if both and label != FULL else None


def _loss(row: Row) -> float | None:
    """The mean training loss of the last epoch, over the seeds that did not diverge."""
    task, _ = row
    text = (RESULTS / "fair" / task / "losses.json").read_text(encoding="utf-8")
    losses: Mapping[str, float | None] = json.loads(text)
    found = finite_values(losses[one.cell] for one in cells("fair")[row])
    return statistics.fmean(found) if found else None
