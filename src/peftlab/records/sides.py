"""Several folders side by side: one folder that holds their records, each marked with its side.

Notes say what may be compared: scores where the examples are the same, paired by the seeds that
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
from peftlab.records.store import Store, rounds_of, unreadable_note

Sides = Mapping[str, Sequence[Record]]  # records by side


def join(folders: Sequence[Path], out: Path) -> list[str]:
    """Lay the folders' records side by side in `out`; returns notes on what may be compared.

    Curves and predictions are linked, or copied where they can't be. An earlier join in `out` is
    replaced.

    Args:
        folders: of comparisons, two or more.
        out: new, empty, or made by this function.

    Raises:
        RequestError: a folder has no records or is given twice, `out` is one of them or holds other
            things, or another command writes to it.
    """
    by_side = side_names(folders)
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise RequestError(
            f"{out} is one of the folders to lay side by side, and what they are laid into is "
            "written anew; give another one with --out DIR"
        )
    sides = {side: Store(folder).records() for side, folder in by_side.items()}
    store = Store(out)
    with system_refusals(f"{out} can't be written"):
        _check_out(store)
        out.mkdir(parents=True, exist_ok=True)
    with system_refusals(f"{out} can't be written"), locked(out):
        for kind in ("records", "curves", "predictions", "speed"):
            shutil.rmtree(out / kind, ignore_errors=True)
        paths = {side: str(folder.resolve()) for side, folder in by_side.items()}
        notes = [*_notes(sides), *_notes_on_unreadable(by_side)]
        suite = {"name": " and ".join(by_side), "sides": paths, "told": notes}
        # it marks the folder as a join, which is written anew if this one is interrupted
        store.write_json("suite.json", suite | {"cells": []})
        cells = []
        for number, (side, records) in enumerate(sides.items(), start=1):
            for record in records:
                marked = _mark(record, side, number)
                _copy_run(store, record, marked, by_side[side])
                cells.append({"cell": marked.cell, "label": marked.method.label})
            for record in rounds_of(by_side[side]):
                store.rounds.write_record(_mark(record, side, number))
        store.write_json("suite.json", suite | {"cells": cells})
    return notes


def _notes_on_unreadable(by_side: Mapping[str, Path]) -> list[str]:
    return [
        unreadable_note(f"{cell} in {side}")
        for side, folder in by_side.items()
        for cell in Store(folder).unreadable()
    ]


def _check_out(store: Store) -> None:
    """Refuse a folder that holds anything but an earlier join."""
    if not store.out.exists() or {path.name for path in store.out.iterdir()} <= {LOCK, HOLDER}:
        return
    if "sides" not in (store.suites() or [{}])[-1]:
        raise RequestError(
            f"{store.out} was not made of several folders; give a new or an empty one with "
            "--out DIR"
        )


def side_names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by unique short names: as many last parts of their paths as make them differ.

    >>> list(side_names([Path("/a/runs/x"), Path("/a/runs/y")]))
    ['x', 'y']
    >>> list(side_names([Path("/a/monday/x"), Path("/a/friday/x")]))
    ['monday/x', 'friday/x']
    """
    paths = [folder.resolve() for folder in folders]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise RequestError(f"{repeated[0]} is given twice; give folders that differ")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {
        "/".join(path.parts[-depth:]): folder for path, folder in zip(paths, folders, strict=True)
    }


def _mark(record: Record, side: str, number: int) -> Record:
    """The record with its side, and that one's number in its name: two may have the same cell."""
    return record.model_copy(update={"cell": f"{record.cell}-{number}", "side": side})


def _copy_run(store: Store, record: Record, marked: Record, folder: Path) -> None:
    store.write_record(marked)
    source = Store(folder)
    _link(source.curve(record.cell), store.curve(marked.cell))
    _link(source.predictions(record.cell), store.predictions(marked.cell))


def _link(file: Path, to: Path) -> None:
    if not file.is_file():
        return
    to.parent.mkdir(exist_ok=True)
    try:
        os.link(file, to)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, to)


def _notes(sides: Sides) -> list[str]:
    """Sentences on what may be compared between the sides, and what may not."""
    notes = [*_notes_on_scores(sides), *_notes_on_bases(sides)]
    return [*notes, _note_on_speed(sides), *_notes_on_commits(sides)]


def _notes_on_scores(sides: Sides) -> list[str]:
    with_examples: dict[str, dict[str, set[str]]] = {}  # sides by task name and examples' hash
    seeds: dict[tuple[str, str], dict[str, set[int]]] = {}  # done seeds by task and side
    with_metric: dict[tuple[str, str], dict[str, set[str]]] = {}  # sides by task and metric
    for side, records in sides.items():
        for record in records:
            name, metric, examples = task_key(record)
            with_metric.setdefault((name, examples), {}).setdefault(metric, set()).add(side)
            with_examples.setdefault(name, {}).setdefault(examples, set()).add(side)
            side_seeds = seeds.setdefault((name, examples), {}).setdefault(side, set())
            if record.is_done:
                side_seeds.add(record.seed)
    notes = []
    for name, by_examples in with_examples.items():
        for examples, names in by_examples.items():
            if len(names) > 1:
                common = sorted(set.intersection(*seeds[name, examples].values()))
                listed = ", ".join(map(str, common)) or "none, so that differences are not paired"
                notes.append(
                    f"{name}: the same examples in {_join_names(names)}; seeds in all: {listed}"
                )
            by_metric = with_metric[name, examples]
            if len(by_metric) > 1:
                groups = "; ".join(
                    f"{metric} in {_join_names(of)}" for metric, of in by_metric.items()
                )
                notes.append(f"{name}: judged by other metrics, so that rows are apart: {groups}")
        if len(by_examples) > 1:
            groups = "; ".join(map(_join_names, by_examples.values()))
            notes.append(f"{name}: other examples, so its scores don't compare between {groups}")
    return notes


def _notes_on_bases(sides: Sides) -> list[str]:
    by_base: dict[tuple[str, str | None], set[str]] = {}
    for side, records in sides.items():
        for record in records:
            by_base.setdefault((record.model.name, record.model.sha256), set()).add(side)
    if len(by_base) == 1:
        return []
    groups = "; ".join(
        f"{name}{f' ({sha256[:8]})' if sha256 else ''} in {_join_names(names)}"
        for (name, sha256), names in by_base.items()
    )
    return [f"base models differ, and differences are between them as well: {groups}"]


def _note_on_speed(sides: Sides) -> str:
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


def _notes_on_commits(sides: Sides) -> list[str]:
    by_side = {
        side: {str(record.environment.commit or "package")[:10] for record in records}
        for side, records in sides.items()
    }
    if len(set().union(*by_side.values())) == 1:
        return []
    groups = "; ".join(f"{side} {_join_names(commits)}" for side, commits in by_side.items())
    return [f"peftlab's commit differs, and scores may by what changed between: {groups}"]


def _join_names(names: set[str]) -> str:
    return ", ".join(sorted(names))
