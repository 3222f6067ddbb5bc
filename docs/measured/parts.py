"""What has run of the reproduction: the progress of its parts, and the machine."""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Collection, Sequence

from reproduction import PARTS

from measured.runs import DOCS, NAMES, NOT_YET, REPORT, cells, folders
from measured.text import markdown
from peftlab.naming import counted, listed
from peftlab.records.record import Environment, Record
from peftlab.records.trials import read_trials

QUESTIONS = {
    "fair": "are they equal, tuned alike?",
    "rates-cola": "method, or rate?",
    "founding-report": "does its own protocol give its gap?",
    "others": "and the methods that it did not run?",
}


def plan_table() -> str:
    """The parts, the questions that they answer, and how many of their cells are done."""
    columns = ["part", "asks", "cells", "of them done", "trainings of trials"]
    return markdown(
        columns,
        ([f"`{part}`", QUESTIONS[part], str(_n_cells(part)), *_progress(part)] for part in PARTS),
    )


def _n_cells(part: str) -> int:
    """How many cells the part has."""
    file = DOCS.parent / "experiments" / f"{part}.toml"
    if not file.exists():
        return math.prod(map(len, (REPORT.tasks, REPORT.methods, REPORT.seeds)))
    suite = tomllib.loads(file.read_text("utf-8"))
    axes = ("tasks", "methods", "rates", "seeds")
    return math.prod(len(suite[axis]) for axis in axes if axis in suite)


def _progress(part: str) -> list[str]:
    """The cells that are done, with their tasks, and the number of trials."""
    rows = cells(part)
    n_done = sum(record.is_done for records in rows.values() for record in records)
    tasks = ", ".join(dict.fromkeys(NAMES[task] for task, _ in rows))
    n_trials = sum(len(read_trials(folder / "tuning")) for folder in folders(part))
    return [f"{n_done} ({tasks})" if n_done else "none", str(n_trials or "–")]


def machine_line() -> str:
    """What the cells of all parts ran on, with the tasks of each machine and commit."""
    records = [record for part in PARTS for row in cells(part).values() for record in row]
    if not records:
        return f"{NOT_YET}\n"
    by_machine: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_machine[_machine(record.environment)].append(record)
    machines = "; ".join(_of_machine(machine, of_it) for machine, of_it in by_machine.items())
    return f"{machines}. The base was held in {precisions(records)}.\n"


def _of_machine(machine: str, records: Sequence[Record]) -> str:
    tasks = dict.fromkeys(NAMES[record.task.name] for record in records)
    commits = dict.fromkeys(str(record.environment.commit)[:7] for record in records)
    return f"{listed(list(tasks))}: {machine}, peftlab at {listed(list(commits))}"


def _machine(environment: Environment) -> str:
    packages = environment.packages
    return (
        f"{environment.processor.replace('(R)', '')}, {counted(environment.threads, 'thread')} a "
        f"cell, torch {packages['torch']}, transformers {packages['transformers']}"
    )


def precisions(records: Sequence[Record]) -> str:
    """The precisions of the base, with their methods; with tasks where a method has several."""
    tasks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        tasks[record.method.name][record.precision].add(record.task.name)
    methods: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for method, by_precision in sorted(tasks.items()):
        for precision, on_tasks in by_precision.items():
            where = "" if len(by_precision) == 1 else _on(on_tasks)
            methods[precision][where].append(method)
    bases = []
    for precision, by_place in sorted(methods.items()):
        groups = (", ".join(names) + place for place, names in sorted(by_place.items()))
        bases.append(f"{precision} ({'; '.join(groups)})")
    return "; ".join(bases)


def _on(tasks: Collection[str]) -> str:
    return f" on {' and '.join(NAMES[task] for task in NAMES if task in tasks)}"
