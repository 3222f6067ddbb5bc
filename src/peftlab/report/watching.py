"""A folder while its cells run, on a terminal: the running cell, its progress, scores so far."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from peftlab.errors import RequestError
from peftlab.naming import duration
from peftlab.records.now import Now, read_now
from peftlab.records.record import Record
from peftlab.records.rows import finite_values, mean
from peftlab.records.store import Store, rounds_of
from peftlab.report.scores import table
from peftlab.report.terminal import render_terminal
from peftlab.report.text import number, printable

QUIET_S = 60.0  # a cell reports every few seconds, except while it loads or is scored
BAR = 24  # characters of the progress bar


class View(NamedTuple):
    """The text for a terminal, and whether there is nothing left to wait for."""

    shown: RenderableType
    finished: bool


def view(folder: Path) -> View:
    """The folder as it is now.

    Raises:
        RequestError: if it is no folder of a comparison.
    """
    store, now = Store(folder), read_now(folder)
    suites = store.suites()
    if not suites:
        return _before_any_suite(folder, now)
    labels = {cell["cell"]: cell["label"] for cell in suites[-1]["cells"]}
    records = _records(store)
    ended = {record.cell for record in records}  # failed ones too
    pending = {cell: label for cell, label in labels.items() if cell not in ended}
    name = store.title(records) if records else suites[-1]["name"]
    counts: Counter[str] = Counter(record.status for record in records if record.cell in labels)
    lines = [f"{name}: {_count_done(counts, f' of {len(labels)} cells')}"]
    lines += _running(now, _left_s(pending, records, now))
    shown: list[RenderableType] = [Text(printable(line)) for line in lines]
    if records:
        shown.append(render_terminal(table(records, rounds_of(folder))))
    is_running = now is not None and now.age_s <= QUIET_S
    return View(Group(*shown), finished=not is_running and not pending)


def _before_any_suite(folder: Path, now: Now | None) -> View:
    """The view of a folder while trials look for settings: its cells are not known yet.

    Raises:
        RequestError: if nothing has ever run there.
    """
    trials = Store(folder).trials
    if now is None and not trials.out.is_dir():
        raise RequestError(
            f"{folder} has no suite.json; give the output folder of `peftlab compare`"
        )
    counts: Counter[str] = Counter(record.status for record in _records(trials))
    done = _count_done(counts)
    lines = [f"{folder.name}: before its cells, trials find settings: {done} so far"]
    lines += _running(now, None)
    return View(Group(*(Text(printable(line)) for line in lines)), finished=False)


def _records(store: Store) -> list[Record]:
    try:
        return store.records()
    except RequestError:  # none yet
        return []


def _count_done(counts: Counter[str], total: str = "") -> str:
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['done']}{total} done{failed}"


def _running(now: Now | None, left_s: float | None) -> list[str]:
    """The running cell, and the time that all cells may still take."""
    if now is None:
        return ["nothing is running here"]
    lines = [f"running: {now.title}"]
    if now.steps:
        full = round(BAR * now.step / now.steps)
        parts = [f"[{'#' * full}{'.' * (BAR - full)}] step {now.step}/{now.steps}"]
        parts += [f"loss {now.loss:.3f}"] if now.loss is not None else []
        parts += [f"epoch {now.epoch}: {now.score:.3f}"] if now.score is not None else []
        parts += [f"{number(now.memory_mib)} MiB"] if now.memory_mib is not None else []
        lines.append("  ".join(parts))
    if left_s is not None:
        lines.append(f"about {duration(left_s)} left")
    if now.age_s > QUIET_S:
        lines.append(f"no sign of life for {duration(now.age_s)}: it may have been stopped")
    return lines


def _left_s(pending: Mapping[str, str], records: Sequence[Record], now: Now | None) -> float | None:
    """Seconds that the `pending` cells, with their labels, will take, by the done ones of each row.

    The running cell counts by its remaining steps and not by the time that it has taken: it may
    have been stopped, and resumed. None if nothing is pending and one runs all the same, as one
    that runs again, or a round for speed: how many of these are left is not known.
    """
    if now is not None and not pending:
        return None
    row_s: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.is_done:
            row_s[record.method.label] += finite_values([record.total_s])
    overall = mean([seconds for cells in row_s.values() for seconds in cells])
    if overall is None:
        return None
    left_s = {cell: mean(row_s[label]) or overall for cell, label in pending.items()}
    if now is not None and now.steps and now.cell in left_s:
        left_s[now.cell] *= 1 - now.step / now.steps
    return sum(left_s.values())
