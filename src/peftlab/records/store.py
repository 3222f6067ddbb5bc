"""The folder that a suite leaves: records, curves, predictions. Every write is whole or absent.

OUT/suite.json · records/CELL.json · curves/CELL.jsonl · predictions/CELL.jsonl ·
adapters/CELL/ · report/ · checkpoints/CELL.safetensors, of a training that has not ended
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab import atomic
from peftlab.errors import JSON_ERRORS, RequestError, system_refusals, unknown
from peftlab.naming import counted
from peftlab.records.record import Record
from peftlab.records.rows import row_of

SCRATCH = "scratch"  # the tasks of a command that runs, in files that its cells read
OURS = {
    "suite.json",
    "records",
    "curves",
    "predictions",
    "adapters",
    "report",
    "checkpoints",
    "tuning",
    "trials.json",
    "speed",
    SCRATCH,
}
BESIDE_PREFIX = ".peftlab-"  # of the folders that `peftlab train` runs in, beside its own
NEEDED_MIB = 200  # records and curves are small; the page and its figures take a few MiB


def lost(cell: str) -> str:
    """What to tell of a record that can't be read."""
    return f"the record of {cell} can't be read and is left out"


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


class Store:
    """The files of one suite under `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def trials(self) -> Store:
        """The trainings that settings were found by, before the cells."""
        return Store(self.out / "tuning")

    @property
    def rounds(self) -> Store:
        """The short cells that took turns, from which speed is read."""
        return Store(self.out / "speed")

    def adapter(self, cell: str) -> Path:
        """The folder of a cell's adapter."""
        return self.out / "adapters" / cell

    def curve(self, cell: str) -> Path:
        """The file of a cell's steps and epochs."""
        return self.out / "curves" / f"{cell}.jsonl"

    def predictions(self, cell: str) -> Path:
        """The file of what a cell answered to each dev example."""
        return self.out / "predictions" / f"{cell}.jsonl"

    def checkpoint(self, cell: str) -> Path:
        """The file that keeps the state of a cell's training until that ends."""
        return self.out / "checkpoints" / f"{cell}.safetensors"

    def outputs(self, cell: str) -> list[list[float]]:
        """What a done cell put out for each dev example, (n_dev, num_labels), in its last epoch.

        Raises:
            RequestError: if that is missing or damaged.
        """
        path = self.predictions(cell)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return [[float(value) for value in json.loads(line)["logits"]] for line in lines]
        except (*JSON_ERRORS, OSError, KeyError, TypeError) as error:
            raise RequestError(
                f"{path} is missing or damaged, so the adapter {self.adapter(cell)} can't be "
                "checked against it; run the comparison again with --keep all --rerun"
            ) from error

    @contextmanager
    def prepared(self, adapters_mib: float = 0.0) -> Iterator[None]:
        """The folder, made, or found to be ours, writable and with room.

        One that is made here goes again, with its parents, if what is done inside fails.

        Args:
            adapters_mib: what adapters will need at most, beside records and curves.

        Raises:
            RequestError: if it is not.
        """
        with ExitStack() as undone:
            try:
                if self.out.exists():
                    self._check_ours()
                places = (self.out, *self.out.parents)
                new = list(itertools.takewhile(lambda place: not place.exists(), places))
                for place in reversed(new):  # the innermost goes first
                    undone.callback(_remove_empty, place)
                self.out.mkdir(parents=True, exist_ok=True)
                probe = self.out / f".{uuid.uuid4().hex}.tmp"
                probe.write_text("")
                probe.unlink()
                self._check_room(adapters_mib)
            except OSError as error:
                raise RequestError(
                    f"output folder {self.out} is not writable: {error.strerror}; "
                    "give another one with --out DIR"
                ) from error
            yield
            undone.pop_all()

    def prepare(self, adapters_mib: float = 0.0) -> None:
        """`prepared`, where nothing that may fail comes between that and the first write."""
        with self.prepared(adapters_mib):
            pass

    def _check_room(self, adapters_mib: float) -> None:
        free = shutil.disk_usage(self.out).free / 2**20
        needed = NEEDED_MIB + adapters_mib
        if free < needed:
            raise RequestError(
                f"output folder {self.out} has {free:.0f} MiB of free disk space and "
                f"{needed:.0f} MiB are needed; free some, or give another one with --out DIR"
            )

    def clean(self) -> None:
        """Delete what a command that was killed has left; call it with the folder locked."""
        # safetensors writes beside the file, too, under a name of its own
        for pattern in ("records/.*.tmp", "curves/.*.tmp", "predictions/.*.tmp", "checkpoints/.*"):
            for file in self.out.glob(pattern):
                file.unlink()
        for folder in (*self.out.glob("adapters/.*"), self.out / SCRATCH):
            shutil.rmtree(folder, ignore_errors=True)

    def _check_ours(self) -> None:
        if not self.out.is_dir():
            raise RequestError(f"output folder {self.out} is a file; give a folder with --out DIR")
        with contextlib.suppress(RequestError):
            if self.suites():  # a comparison's, whatever somebody has put beside it
                return
        strange = sorted(
            path.name
            for path in self.out.iterdir()
            if path.name not in OURS
            and not path.name.startswith(BESIDE_PREFIX)
            and not (path.name.startswith(".") and path.is_file())
        )
        if strange:
            what = f"files that are not peftlab's ({', '.join(strange[:5])})"
            if atomic.CARD in strange:
                what = "an adapter, and a comparison needs a folder of its own"
            raise RequestError(
                f"output folder {self.out} holds {what}; give a new or an empty one with --out DIR"
            )

    def read(self, cell: str) -> Record | None:
        """The record of a cell, or None if there is none that this version can read."""
        try:
            record = Record.model_validate_json(self._record(cell).read_bytes())
        except (ValidationError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return record if record.cell == cell else None

    def others(self, cells: Iterable[str]) -> list[Record]:
        """The records of all other cells that can be read."""
        names = sorted(set(self.cells()) - set(cells))
        return [record for name in names if (record := self.read(name)) is not None]

    def unreadable(self) -> list[str]:
        """The cells whose record is there and can't be read by this version."""
        return list(filter(self.is_unreadable, self.cells()))

    def cells(self) -> list[str]:
        """The cells that have a record, readable or not."""
        return sorted(path.stem for path in (self.out / "records").glob("*.json"))

    def forget(self, cell: str) -> None:
        """Delete the record of a cell, which is then not done."""
        self._record(cell).unlink(missing_ok=True)

    def forget_checkpoint(self, cell: str) -> None:
        """Delete the kept state of a cell's training; the next run starts from the beginning."""
        path = self.checkpoint(cell)
        with contextlib.suppress(OSError):  # who may not delete it has a file more
            path.unlink()
        _remove_empty(path.parent)

    def is_unreadable(self, cell: str) -> bool:
        """Whether the cell's record is there and can't be read by this version."""
        return self._record(cell).exists() and self.read(cell) is None

    def set_aside(self, cell: str) -> Path:
        """Give the record of a cell another name, which no other file has; returns its path."""
        path = self._record(cell)
        names = (path.with_name(f"{path.name}.unreadable{n or ''}") for n in itertools.count())
        return path.rename(next(name for name in names if not name.exists()))

    def _record(self, cell: str) -> Path:
        return self.out / "records" / f"{cell}.json"

    def records(self, last: bool = False) -> list[Record]:
        """Every record of the folder, in the order in which suites asked for them.

        A row's label is the one that a suite gave it last, and of its records on a task those come
        last that were asked for last.

        Args:
            last: only those that the latest suite asked for.

        Raises:
            RequestError: if the folder has no records.
        """
        with system_refusals(f"{self.out} can't be read"):
            suites = self.suites()
            asked = suites[-1:] if last else suites
            labels = {cell["cell"]: cell["label"] for suite in asked for cell in suite["cells"]}
            names = list(labels)
            if not (last and suites):  # also those that no suite is known of
                names += [cell for cell in self.cells() if cell not in labels]
            read = [record for name in names if (record := self.read(name)) is not None]
            when = {cell["cell"]: n for n, suite in enumerate(asked) for cell in suite["cells"]}
        if not read:
            damaged = ", ".join(self.unreadable())
            why = f"none that can be read (damaged: {damaged})" if damaged else "no records"
            trials = len(self.trials.cells())
            if trials and not damaged:
                raise RequestError(
                    f"{self.out} has no records but those of {counted(trials, 'trial')}, which "
                    f"come before its cells; `peftlab watch {self.out}` follows them, `peftlab "
                    f"report {self.trials.out}` shows them"
                )
            raise RequestError(f"{self.out} has {why}; give the output folder of `peftlab compare`")
        return [
            relabelled(one, labels[one.cell]) if one.cell in labels else one
            for one in _latest_last(read, when)
        ]

    def suites(self) -> list[dict[str, Any]]:
        """What was asked of this folder, the latest last; empty without a suite.json.

        Raises:
            RequestError: if suite.json is damaged.
        """
        path = self.out / "suite.json"
        if not path.exists():
            return []
        try:
            latest = json.loads(path.read_text(encoding="utf-8"))
            suites = [*latest.pop("earlier", []), latest]
            if not all({"cell", "label"} <= cell.keys() for one in suites for cell in one["cells"]):
                raise KeyError("cells")
        except (*JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path} is damaged ({error}); delete it to see every record"
            ) from None
        return suites

    def told(self) -> list[str]:
        """What a reader must know of the records, in lines: how sides compare, and what is lost."""
        latest = (self.suites() or [{}])[-1]
        return [*latest.get("told", []), *map(lost, self.unreadable())]

    def title(self, records: list[Record]) -> str:
        """The latest suite's name, or that of the records where there is no suite.json."""
        suites = self.suites()
        return suites[-1].get("name", records[-1].suite) if suites else records[-1].suite

    def write_suite(self, asked: dict[str, Any]) -> None:
        """Write suite.json: what is asked now and, as `earlier`, what was asked for other cells."""
        try:
            before = self.suites()
        except RequestError:  # what it held is lost; the records are not
            before = []
        cells = {cell["cell"] for cell in asked["cells"]}
        earlier = [one for one in before if not cells >= {cell["cell"] for cell in one["cells"]}]
        self.write_json("suite.json", asked | {"earlier": earlier})

    def write_json(self, name: str, content: Any) -> None:
        """Write `OUT/name` as indented JSON."""
        atomic.write(self.out / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_record(self, record: Record) -> None:
        atomic.write(self._record(record.cell), text_of(record))


def rounds_of(folder: Path) -> list[Record]:
    """The records of a comparison's short cells in turns (`--repeat-speed`), if it has some."""
    store = Store(folder).rounds
    try:
        return store.records() if store.cells() else []
    except RequestError:  # none of them can be read: the cells' own speeds are shown
        return []


def chosen(
    records: list[Record], tasks: list[str] | None, methods: list[str] | None
) -> list[Record]:
    """Of the records, those of some tasks and of some methods, by a row's label or a method's name.

    Raises:
        RequestError: a task or a method that none of them has.
    """
    known_tasks = dict.fromkeys(record.task.name for record in records)
    known_methods = dict.fromkeys(
        name for record in records for name in (record.method.label, record.method.name)
    )
    for kind, asked, known in (("task", tasks, known_tasks), ("method", methods, known_methods)):
        for name in asked or ():
            if name not in known:
                raise unknown(kind, name, known)
    return [
        record
        for record in records
        if (tasks is None or record.task.name in tasks)
        and (methods is None or {record.method.label, record.method.name} & set(methods))
    ]


def text_of(record: Record) -> str:
    """A record as its file has it."""
    return record.model_dump_json(indent=2) + "\n"


def lines_of(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where the file is absent or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (*JSON_ERRORS, OSError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _latest_last(records: list[Record], when: Mapping[str, int]) -> list[Record]:
    """The records, those of a row on a task among themselves by the suite that asked last."""
    row_at = [row_of(record) for record in records]
    by_row: dict[str, list[Record]] = defaultdict(list)
    for row, record in zip(row_at, records, strict=True):
        by_row[row].append(record)
    turn = {
        row: iter(sorted(own, key=lambda one: when.get(one.cell, -1)))
        for row, own in by_row.items()
    }
    return [next(turn[row]) for row in row_at]


def relabelled(record: Record, label: str) -> Record:
    """The record under the label that its row has now: a label is no part of a cell's identity."""
    method = record.method.model_copy(update={"label": label})
    return record.model_copy(update={"method": method})
