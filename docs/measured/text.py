"""How tables write scores, differences and rows."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Sequence

from peftlab.records.own import OwnScore
from peftlab.records.pairs import Verdict
from peftlab.records.record import Record
from peftlab.records.rows import is_collapsed, sample_sd
from peftlab.records.trials import Trial, settings_at_border


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A score as it is typeset: .500, −.012."""
    if value is None:
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def score(records: Sequence[Record], own: OwnScore | None = None, standing: str = "") -> str:
    """The mean ± half of its 95 % interval if `own` is given, else ± the sample sd over seeds."""
    scores = [record.score[record.task.main_metric] for record in records if record.score]
    if not scores:
        return "failed" if records else "–"
    spread = sample_sd(scores) if own is None else own.high - own.mean
    mean = number(statistics.fmean(scores))
    mean += f" ± {number(spread)}" if spread is not None else ""
    n, n_collapsed = len(records), sum(map(is_collapsed, records))
    remarks = [f"{n_collapsed} of {n} collapsed"] if n_collapsed else []
    remarks += [f"{n - len(scores)} of {n} failed"] if len(scores) < n else []
    remark = f"({', '.join(remarks)})" if remarks else ""
    return " ".join(part for part in (mean, standing, remark) if part)


def interval(pair: Verdict | None) -> str:
    if pair is None:
        return "–"
    difference = number(pair.difference, signed=True)
    if pair.low is None:
        return difference
    return f"{difference} [{number(pair.low, signed=True)}, {number(pair.high, signed=True)}]"


def rate_found(trials: Sequence[Trial]) -> str:
    """The rate of the chosen trial; marked with † if it lies at the border of the rates tried."""
    for trial in trials:
        if trial.chosen:
            return f"{trial.values['lr']:.2g}{'†' * ('lr' in settings_at_border(trial, trials))}"
    return "default"  # every trial failed


def card(row: str, cards: str = "methods") -> str:
    return f"[{row}]({cards}/{row}.md)"
