"""The founding report's claims, and whether our records confirm them."""

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

VERDICTS = {
    "worse": "worse than full",
    "better": "better than full",
    "tie": "a tie with it",
    "unclear": "not told apart, nor shown to be equal",
}


def claims_table() -> str:
    """Every claim of the report, and whether the records confirm it."""
    lines = [
        ["parameter-efficient methods score as full fine-tuning does", *_same_scores()],
        ["they train 15 to 50 % faster", *_within(_speed, 0.15, 0.5, "faster")],
        ["they take some 30 % less memory", *_within(_less_memory, 0.25, 0.35, "less")],
        ["full fine-tuning's training loss is much lower, its score no better", *_lower_loss()],
    ]
    return markdown(["the report says", "holds here", "our records say"], lines)


def _same_scores() -> tuple[str, str]:
    """Which rows are worse than full fine-tuning on a task, which better, equal or undecided."""
    rows_by: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for task, rows in table_rows().items():
        for row in rows:
            if pair := between("fair", task, row, FULL):
                rows_by[pair.verdict.partition(":")[0]].append(f"{row} on {NAMES[task]}")
    records_say = [
        f"{words}: {', '.join(rows_by[verdict])}"
        for verdict, words in VERDICTS.items()
        if rows_by[verdict]
    ]
    if not records_say:
        return NOT_YET, "–"
    if rows_by["worse"] or rows_by["better"]:
        return "no", "; ".join(records_say)
    return "not decided" if rows_by["unclear"] else "yes", "; ".join(records_say)


def _within(
    share_of: Callable[[Row], float | None], low: float, high: float, word: str
) -> tuple[str, str]:
    """Whether the shares of all rows lie in a range that the report gives."""
    shares = {
        task: finite_values(share_of((task, row)) for row in rows if row != FULL)
        for task, rows in table_rows().items()
    }
    values = [share for task_shares in shares.values() for share in task_shares]
    if not values:
        return NOT_YET, "–"
    least, most = min(values), max(values)
    tasks = _listed([task for task, task_shares in shares.items() if task_shares])
    records_say = f"{_percent(least)} to {_percent(most)} {word} on {tasks}"
    if low <= least and most <= high:
        return "yes", records_say
    if low <= least:
        return "yes, and more", records_say
    return "in part" if low <= most else "no", records_say


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %".replace("-", "−")


def _lower_loss() -> tuple[str, str]:
    """On which tasks full fine-tuning has the lowest loss, and on which a better score."""
    rows_of = table_rows()
    lowest = [task for task, rows in rows_of.items() if _lowest_loss(task, rows) == FULL]
    better = [task for task, rows in rows_of.items() if _is_ahead(task, rows)]
    if not rows_of:
        return NOT_YET, "–"
    loss = "yes" if len(lowest) == len(rows_of) else "in part" if lowest else "no"
    return (
        f"lower loss: {loss}; score no better: {'no' if better else 'not decided'}",
        f"lowest loss of all on {_listed(lowest)}; better than some row on {_listed(better)}",
    )


def _lowest_loss(task: str, rows: Sequence[str]) -> str:
    return min(rows, key=lambda row: _loss((task, row)) or math.inf)


def _is_ahead(task: str, rows: Sequence[str]) -> bool:
    pairs = (between("fair", task, FULL, row) for row in rows)
    return any(pair is not None and pair.verdict == "better" for pair in pairs)


def _listed(tasks: Sequence[str]) -> str:
    return ", ".join(NAMES[task] for task in tasks) or "none"


def beside_table() -> str:
    """For each task a table of speed, memory, training loss and score beside full fine-tuning's."""
    columns = ["method", "faster", "less memory, process", "less memory, training"]
    columns += ["training loss", "score"]
    parts = []
    for task, rows in table_rows().items():
        lines = [
            [
                card(row),
                *(
                    _percent(share_of((task, row)))
                    for share_of in (_speed, _less_memory, _less_training_memory)
                ),
                number(_loss((task, row))),
                score(cells("fair")[task, row], owns("fair").get((task, row))),
            ]
            for row in rows
        ]
        parts += [f"### {NAMES[task]}\n", markdown(columns, lines)]
    return "\n".join(parts) or f"{NOT_YET}\n"


def _speed(row: Row) -> float | None:
    """How much faster than full fine-tuning the row trains, as a share of its speed."""
    ratio = _ratio_to_full(row, lambda cell: cell.speed.examples_per_s if cell.speed else None)
    return None if ratio is None else ratio - 1


def _less_memory(row: Row) -> float | None:
    """How much less memory than under full fine-tuning the whole process takes at its peak."""
    ratio = _ratio_to_full(row, lambda cell: cell.memory.peak_mib if cell.memory else None)
    return None if ratio is None else 1 - ratio


def _less_training_memory(row: Row) -> float | None:
    """The same of the memory above what was resident before the model was loaded."""
    ratio = _ratio_to_full(row, lambda cell: cell.memory.train_peak_mib if cell.memory else None)
    return None if ratio is None else 1 - ratio


def _ratio_to_full(row: Row, measured: Callable[[Record], float | None]) -> float | None:
    """The median over rounds of a measurement over full fine-tuning's in the same round."""
    task, label = row
    rounds: dict[int, dict[str, float]] = defaultdict(dict)
    for cell in rounds_of(RESULTS / "fair" / task):
        if (value := measured(cell)) is not None and (cell.speed.others_share or 0) <= BUSY_SHARE:
            rounds[cell.seed][cell.method.label] = value
    ratios = [
        values[label] / values[FULL] for values in rounds.values() if {label, FULL} <= values.keys()
    ]
    return statistics.median(ratios) if ratios and label != FULL else None


def _loss(row: Row) -> float | None:
    """The mean training loss of the last epoch, over the seeds that did not diverge."""
    task, _ = row
    text = (RESULTS / "fair" / task / "losses.json").read_text(encoding="utf-8")
    losses: Mapping[str, float | None] = json.loads(text)
    values = finite_values(losses[record.cell] for record in cells("fair")[row])
    return statistics.fmean(values) if values else None
