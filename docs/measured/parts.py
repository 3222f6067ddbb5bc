"""What ran of the reproduction: its parts with how far they are, and the machine."""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Collection, Sequence

from reproduction import PARTS

from measured.runs import DOCS, NAMES, NOT_YET, PROTOCOL, cells, folders
from measured.text import markdown
from peftlab.records.record import Record
from peftlab.records.trials import read_trials

ASKS = {
    "fair": "are they equal, tuned alike?",
    "rates-cola": "method, or rate?",
    "founding-report": "does its own protocol give its gap?",
    "others": "and the methods that it did not run?",
}


def plan_table() -> str:
    """The parts with what they answer, and how many of their cells are done."""
    head = ["part", "asks", "cells", "of them done", "trainings of trials"]
    return markdown(
        head, ([f"`{part}`", ASKS[part], str(_asked(part)), *_done(part)] for part in PARTS)
    )


def _asked(part: str) -> int:
    """How many cells the part has."""
    file = DOCS.parent / "experiments" / f"{part}.toml"
    if not file.exists():  # of the recipe the rows that the plan runs, on CoLA
        return len(PROTOCOL)
    suite = tomllib.loads(file.read_text("utf-8"))
    axes = ("tasks", "methods", "rates", "seeds")
    return math.prod(len(suite[axis]) for axis in axes if axis in suite)


def _done(part: str) -> list[str]:
    rows = cells(part)
    done = sum(one.is_done for of_row in rows.values() for one in of_row)
    tasks = ", ".join(dict.fromkeys(NAMES[task] for task, _ in rows))
    trials = sum(len(read_trials(folder / "tuning")) for folder in folders(part))
    return [f"{done} ({tasks})" if done else "none", str(trials or "–")]


def machine_line() -> str:
    """What every cell of every part ran on, each value once."""
    done = [one for part in PARTS for of_row in cells(part).values() for one in of_row]
    if not done:
        return f"{NOT_YET}\n"
    where = [one.environment for one in done]
    facts = [
        *(one.processor for one in where),
        *(f"{one.threads} thread{'s' if one.threads > 1 else ''} a cell" for one in where),
        *(f"torch {one.packages['torch']}" for one in where),
        *(f"transformers {one.packages['transformers']}" for one in where),
        f"peftlab at {' and '.join(dict.fromkeys(str(one.commit)[:7] for one in where))}",
    ]
    return f"{', '.join(dict.fromkeys(facts))}. The base was held in {held(done)}.\n"


def held(done: Sequence[Record]) -> str:
    """In which precision each method's base was held; on which tasks, where that is not one."""
    tasks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in done:
        tasks[one.method.name][one.precision].add(one.task.name)
    methods: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for method, by_precision in sorted(tasks.items()):
        for precision, on in by_precision.items():
            where = "" if len(by_precision) == 1 else _listed(on)
            methods[precision][where].append(method)
    bases = []
    for precision, by_place in sorted(methods.items()):
        groups = (", ".join(of) + place for place, of in sorted(by_place.items()))
        bases.append(f"{precision} ({'; '.join(groups)})")
    return "; ".join(bases)


def _listed(tasks: Collection[str]) -> str:
    return f" on {' and '.join(NAMES[task] for task in NAMES if task in tasks)}"
