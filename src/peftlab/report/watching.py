"""A folder while cells run into it, on a terminal: what runs, how far it is, and scores so far."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from peftlab.errors import RequestError
from peftlab.naming import duration
from peftlab.records.now import Now, read_now
from peftlab.records.record import Record
from peftlab.records.rows import known, mean
from peftlab.records.store import Store, rounds_of
from peftlab.report.scores import table
from peftlab.report.terminal import render_terminal
from peftlab.report.text import number, printable

QUIET_S = 60.0  # a cell says something every few seconds, but while it loads or is scored
BAR = 24


class View(NamedTuple):
    """What a terminal shows, and whether there is nothing left to wait for."""

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
    due = {cell["cell"]: cell["label"] for cell in suites[-1]["cells"]}
    records = _records(store)
    left = dict(due)
    for record in records:  # a failed cell has come to its end too
        left.pop(record.cell, None)
    lines = [_head(store.title(records) if records else suites[-1]["name"], due, records)]
    lines += _running(now, _left_s(left, records, now))
    shown: list[RenderableType] = [Text(printable(line)) for line in lines]
    if records:
        shown.append(render_terminal(table(records, rounds_of(folder))))
    runs = now is not None and now.age_s <= QUIET_S
    return View(Group(*shown), finished=not runs and not left)


def _before_any_suite(folder: Path, now: Now | None) -> View:
    """What a folder shows while settings are looked for: what its cells will be is not known yet.

    Raises:
        RequestError: if nothing runs there, nor has.
    """
    trials = Store(folder).trials
    if now is None and not trials.out.is_dir():
        raise RequestError(
            f"{folder} has no suite.json; give the output folder of `peftlab compare`"
        )
    done: Counter[str] = Counter(record.status for record in _records(trials))
    lines = [f"{folder.name}: before its cells, trials find settings: {_counted(done)} so far"]
    lines += _running(now, None)
    return View(Group(*(Text(printable(line)) for line in lines)), finished=False)


def _records(store: Store) -> list[Record]:
    try:
        return store.records()
    except RequestError:  # none yet
        return []


def _head(name: str, due: dict[str, str], records: Sequence[Record]) -> str:
    counts: Counter[str] = Counter(one.status for one in records if one.cell in due)
    return f"{name}: {_counted(counts, f' of {len(due)} cells')}"


def _counted(counts: Counter[str], of: str = "") -> str:
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['done']}{of} done{failed}"


def _running(now: Now | None, left_s: float | None) -> list[str]:
    """The running cell, and how long all of it may still take."""
    if now is None:
        return ["nothing is running here"]
    lines = [f"running: {now.title}"]
    if now.steps:
        full = round(BAR * now.step / now.steps)
        told = [f"[{'#' * full}{'.' * (BAR - full)}] step {now.step}/{now.steps}"]
        told += [f"loss {now.loss:.3f}"] if now.loss is not None else []
        told += [f"epoch {now.epoch}: {now.score:.3f}"] if now.score is not None else []
        told += [f"{number(now.memory_mib)} MiB"] if now.memory_mib is not None else []
        lines.append("  ".join(told))
    if left_s is not None:
        lines.append(f"about {duration(left_s)} left")
    if now.age_s > QUIET_S:
        lines.append(f"no sign of life for {duration(now.age_s)}: it may have been stopped")
    return lines


def _left_s(left: dict[str, str], records: Sequence[Record], now: Now | None) -> float | None:
    """Seconds that the cells of `left` will take, by those of their row that are done.

    Of the one that runs, the steps that are left count, however long it has taken: it may have been
    stopped, and have gone on.
    """
    took: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.is_done:
            took[record.method.label] += known([record.total_s])
    anyone = mean([seconds for of_row in took.values() for seconds in of_row])
    if anyone is None:
        return None
    due = {cell: mean(took[label]) or anyone for cell, label in left.items()}
    if now is not None and now.steps and now.cell in due:
        due[now.cell] *= 1 - now.step / now.steps
    return sum(due.values())
