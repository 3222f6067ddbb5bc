"""Several folders side by side: one folder that holds their records, each marked with its side.

What compares is said, not assumed: scores where the examples are the same, paired by the seeds that
both have; speed, memory and time never between folders, since they were not measured in turns.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftlab.errors import RequestError, system_refusals
from peftlab.records.lock import HOLDER, LOCK, locked
from peftlab.records.record import Record
from peftlab.records.rows import task_key
from peftlab.records.store import Store, lost, rounds_of


def join(folders: Sequence[Path], out: Path) -> list[str]:
    """Make `out` the folder of all of them; returns what of it compares, in lines.

    Curves and predictions are linked, or copied where that can't be. What `out` holds of an earlier
    joining is replaced.

    Args:
        folders: of comparisons, two or more.
        out: new, empty, or made by this.

    Raises:
        RequestError: a folder has no records or is given twice, `out` is one of them or holds other
            things, or another command writes to it.
    """
    names = side_names(folders)
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise RequestError(
            f"{out} is one of the folders to lay side by side, and what they are laid into is "
            "written anew; give another one with --out DIR"
        )
    sides = {name: Store(folder).records() for name, folder in names.items()}
    store = Store(out)
    with system_refusals(f"{out} can't be written"):
        _check_room(store)
        out.mkdir(parents=True, exist_ok=True)
    with system_refusals(f"{out} can't be written"), locked(out):
        for kind in ("records", "curves", "predictions", "speed"):
            shutil.rmtree(out / kind, ignore_errors=True)
        cells = []
        for number, (name, records) in enumerate(sides.items(), start=1):
            for record in records:
                marked = _marked(record, name, number)
                _add(store, record, marked, names[name])
                cells.append({"cell": marked.cell, "label": marked.method.label})
            for record in rounds_of(names[name]):
                store.rounds.write_record(_marked(record, name, number))
        where = {name: str(folder.resolve()) for name, folder in names.items()}
        lines = [*told(sides), *_lost(names)]
        asked = {"name": " and ".join(names), "sides": where, "told": lines, "cells": cells}
        store.write_json("suite.json", asked)
    return lines


def _lost(names: Mapping[str, Path]) -> list[str]:
    return [
        lost(f"{cell} in {name}")
        for name, folder in names.items()
        for cell in Store(folder).unreadable()
    ]


def _check_room(store: Store) -> None:
    """Refuse a folder that holds anything else than an earlier joining."""
    if not store.out.exists() or {path.name for path in store.out.iterdir()} <= {LOCK, HOLDER}:
        return
    if "sides" not in (store.suites() or [{}])[-1]:
        raise RequestError(
            f"{store.out} was not made of several folders; give a new or an empty one with "
            "--out DIR"
        )


def side_names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by short names of their own: the last parts of their paths that differ.

    >>> list(side_names([Path("/a/runs/x"), Path("/a/runs/y")]))
    ['x', 'y']
    >>> list(side_names([Path("/a/monday/x"), Path("/a/friday/x")]))
    ['monday/x', 'friday/x']
    """
    whole = [folder.resolve() for folder in folders]
    twice = [path for path, count in Counter(whole).items() if count > 1]
    if twice:
        raise RequestError(f"{twice[0]} is given twice; give folders that differ")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return {
        "/".join(path.parts[-depth:]): folder for path, folder in zip(whole, folders, strict=True)
    }


def _marked(record: Record, side: str, number: int) -> Record:
    """The record as of its side; two sides may have the same cell."""
    return record.model_copy(update={"cell": f"{record.cell}-{number}", "side": side})


def _add(store: Store, record: Record, marked: Record, folder: Path) -> None:
    store.write_record(marked)
    source = Store(folder)
    _link(source.curve(record.cell), store.curve(marked.cell))
    _link(source.predictions(record.cell), store.predictions(marked.cell))


def _link(file: Path, place: Path) -> None:
    if not file.is_file():
        return
    place.parent.mkdir(exist_ok=True)
    try:
        os.link(file, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, place)


def told(sides: Mapping[str, Sequence[Record]]) -> list[str]:
    """What of the sides compares, and what does not."""
    return [*_scores(sides), *_bases(sides), _speed(sides), *_commits(sides)]


def _scores(sides: Mapping[str, Sequence[Record]]) -> list[str]:
    tasks: dict[str, dict[str, set[str]]] = {}  # by name, examples' hash: the sides that have them
    seeds: dict[tuple[str, str], dict[str, set[int]]] = {}
    metrics: dict[tuple[str, str], dict[str, set[str]]] = {}  # by metric: the sides judged by it
    for side, records in sides.items():
        for record in records:
            name, metric, examples = task_key(record)
            metrics.setdefault((name, examples), {}).setdefault(metric, set()).add(side)
            tasks.setdefault(name, {}).setdefault(examples, set()).add(side)
            of_side = seeds.setdefault((name, examples), {}).setdefault(side, set())
            if record.is_done:
                of_side.add(record.seed)
    lines = []
    for name, found in tasks.items():
        for examples, having in found.items():
            if len(having) > 1:
                common = sorted(set.intersection(*seeds[name, examples].values()))
                told = ", ".join(map(str, common)) or "none, so that differences are not paired"
                lines.append(
                    f"{name}: the same examples in {_listed(having)}; seeds in all: {told}"
                )
            if len(by := metrics[name, examples]) > 1:
                apart = "; ".join(f"{metric} in {_listed(of)}" for metric, of in by.items())
                lines.append(f"{name}: judged by other metrics, so that rows are apart: {apart}")
        if len(found) > 1:
            apart = "; ".join(_listed(having) for having in found.values())
            lines.append(f"{name}: other examples, so its scores don't compare between {apart}")
    return lines


def _bases(sides: Mapping[str, Sequence[Record]]) -> list[str]:
    found: dict[tuple[str, str | None], set[str]] = {}
    for side, records in sides.items():
        for record in records:
            found.setdefault((record.model.name, record.model.sha256), set()).add(side)
    if len(found) == 1:
        return []
    told = "; ".join(
        f"{name}{f' ({sha[:8]})' if sha else ''} in {_listed(having)}"
        for (name, sha), having in found.items()
    )
    return [f"base models differ, and differences are between them as well: {told}"]


def _speed(sides: Mapping[str, Sequence[Record]]) -> str:
    machines = {
        (record.environment.gpu or record.environment.processor, record.environment.threads)
        for records in sides.values()
        for record in records
    }
    if len(machines) > 1:
        return "speed, memory and time don't compare between folders: the machines differ"
    return (
        "speed and time don't compare between folders, though the machine is of one kind: "
        "they were not measured in turns; compare each with a row of its own folder"
    )


def _commits(sides: Mapping[str, Sequence[Record]]) -> list[str]:
    found = {
        side: sorted({str(record.environment.commit or "package")[:10] for record in records})
        for side, records in sides.items()
    }
    if len({commit for commits in found.values() for commit in commits}) == 1:
        return []
    told = "; ".join(f"{side} {', '.join(commits)}" for side, commits in found.items())
    return [f"peftlab's commit differs, and scores may by what changed between: {told}"]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
