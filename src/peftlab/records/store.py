"""The output folder of a suite: records, curves, predictions. Every write is whole or absent.

OUT/suite.json · records/CELL.json · curves/CELL.jsonl · predictions/CELL.jsonl ·
adapters/CELL/ · report/ · checkpoints/CELL.safetensors of a training that has not ended
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
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

SCRATCH = "scratch"  # the folder of a running command's tasks, in files that its cells read
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
WORKING_PREFIX = ".peftlab-"  # of the folders beside its own that `peftlab train` runs in
NEEDED_MIB = 200  # records and curves are small; the page and its figures take a few MiB


def unreadable_note(cell: str) -> str:
    """The note on a record that can't be read."""
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
        """The store of the trials of tuning, which run before the cells."""
        return Store(self.out / "tuning")

    @property
    def rounds(self) -> Store:
        """The store of the short cells that take turns, from which speed is read."""
        return Store(self.out / "speed")

    def adapter(self, cell: str) -> Path:
        """The folder of a cell's adapter."""
        return self.out / "adapters" / cell

    def curve(self, cell: str) -> Path:
        """The file of a cell's steps and epochs."""
        return self.out / "curves" / f"{cell}.jsonl"

    def predictions(self, cell: str) -> Path:
        """The file of a cell's answers to the dev examples."""
        return self.out / "predictions" / f"{cell}.jsonl"

    def checkpoint(self, cell: str) -> Path:
        """The file of the state of a cell's training, until that ends."""
        return self.out / "checkpoints" / f"{cell}.safetensors"

    def lost_adapter(self, cell: str) -> bool:
        """Whether the cell's adapter could not be written, and can be from its last checkpoint."""
        return self.checkpoint(cell).exists() and not self.adapter(cell).is_dir()

    def outputs(self, cell: str) -> list[list[float]]:
        """The outputs of a done cell for the dev examples, (n_dev, num_labels), of its last epoch.

        Raises:
            RequestError: if they are missing or damaged.
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
        """Make the folder, and check that it is ours, writable and has room.

        If the block inside fails, the folder and the parents made for it are removed if empty.

        Args:
            adapters_mib: space that adapters will take at most, beside records and curves.

        Raises:
            RequestError: if it is another folder, not writable or without room.
        """
        with ExitStack() as undo:
            try:
                if self.out.exists():
                    self._check_ours()
                folders = (self.out, *self.out.parents)
                new = list(itertools.takewhile(lambda folder: not folder.exists(), folders))
                for folder in reversed(new):  # callbacks run in reverse: the innermost goes first
                    undo.callback(_remove_empty, folder)
                self.out.mkdir(parents=True, exist_ok=True)
                for folder in (self.out, *(self.out / name for name in OURS)):
                    if folder.is_dir():  # one in it may be another user's
                        tempfile.TemporaryFile(dir=folder).close()
                self._check_room(adapters_mib)
            except OSError as error:
                raise RequestError(
                    f"output folder {self.out} is not writable: {error.strerror} "
                    f"({error.filename}); give another one with --out DIR"
                ) from error
            yield
            undo.pop_all()

    def prepare(self, adapters_mib: float = 0.0) -> None:
        """`prepared` for callers that do nothing that may fail before the first write."""
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
        """Delete the temporary files of a command that was killed; the folder must be locked.

        A page's stay: `peftlab report` may be writing one, which takes no lock.
        """
        ours = (".*.tmp", *(f"{kind}/.*.tmp" for kind in ("records", "curves", "predictions")))
        # checkpoints: safetensors has temporary files of its own, with other names
        for pattern in (*ours, "tuning/.*.tmp", "checkpoints/.*"):
            for file in self.out.glob(pattern):
                file.unlink()
        for folder in (*self.out.glob("adapters/.*"), self.out / SCRATCH):
            shutil.rmtree(folder, ignore_errors=True)

    def _check_ours(self) -> None:
        if not self.out.is_dir():
            raise RequestError(f"output folder {self.out} is a file; give a folder with --out DIR")
        with contextlib.suppress(RequestError):
            if self.suites():  # of a comparison, whatever other files somebody has put there
                return
        foreign = sorted(
            path.name
            for path in self.out.iterdir()
            if path.name not in OURS
            and not path.name.startswith(WORKING_PREFIX)
            and not (path.name.startswith(".") and path.is_file())
        )
        if foreign:
            content = f"files that are not peftlab's ({', '.join(foreign[:5])})"
            if atomic.CARD in foreign:
                content = "an adapter, and a comparison needs a folder of its own"
            raise RequestError(
                f"output folder {self.out} holds {content}; give a new or an empty one with "
                "--out DIR"
            )

    def read(self, cell: str) -> Record | None:
        """The record of a cell; None if it has none that this version can read."""
        try:
            record = Record.model_validate_json(self._record(cell).read_bytes())
        except (ValidationError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return record if record.cell == cell else None

    def other_records(self, cells: Iterable[str]) -> list[Record]:
        """The records of all cells but these, as far as they can be read."""
        names = sorted(set(self.cells()) - set(cells))
        return [record for name in names if (record := self.read(name)) is not None]

    def unreadable(self) -> list[str]:
        """The cells that have a record which this version can't read."""
        return list(filter(self.is_unreadable, self.cells()))

    def cells(self) -> list[str]:
        """The cells that have a record, readable or not."""
        return sorted(path.stem for path in (self.out / "records").glob("*.json"))

    def forget(self, cell: str) -> None:
        """Delete the record of a cell, so that it counts as not done."""
        self._record(cell).unlink(missing_ok=True)

    def forget_checkpoint(self, cell: str) -> None:
        """Delete the state of a cell's training; the next run starts from the beginning."""
        path = self.checkpoint(cell)
        with contextlib.suppress(OSError):  # without the right to delete, the file stays
            path.unlink()
        _remove_empty(path.parent)

    def is_unreadable(self, cell: str) -> bool:
        """Whether the cell has a record which this version can't read."""
        return self._record(cell).exists() and self.read(cell) is None

    def set_aside(self, cell: str) -> Path:
        """Rename the file of a cell's record, to a name that is free; returns its new path."""
        path = self._record(cell)
        names = (path.with_name(f"{path.name}.unreadable{n or ''}") for n in itertools.count())
        return path.rename(next(name for name in names if not name.exists()))

    def _record(self, cell: str) -> Path:
        return self.out / "records" / f"{cell}.json"

    def records(self, last: bool = False) -> list[Record]:
        """Every record of the folder, in the order in which suites requested them.

        A row's label is the one that a suite gave it last, and the row's records on a task are in
        the order of the suites that requested them last.

        Args:
            last: whether to return only the records that the latest suite requested.

        Raises:
            RequestError: if the folder has no records.
        """
        with system_refusals(f"{self.out} can't be read"):
            suites = self.suites()
            selection = suites[-1:] if last else suites
            cells = [(n, cell) for n, suite in enumerate(selection) for cell in suite["cells"]]
            labels = {cell["cell"]: cell["label"] for _, cell in cells}
            last_suite = {cell["cell"]: n for n, cell in cells}
            names = list(labels)
            if not (last and suites):  # add the cells that no known suite requested
                names += [cell for cell in self.cells() if cell not in labels]
            records = [record for name in names if (record := self.read(name)) is not None]
        if not records:
            raise self._no_records_error()
        return [
            with_label(record, labels[record.cell]) if record.cell in labels else record
            for record in _latest_last(records, last_suite)
        ]

    def _no_records_error(self) -> RequestError:
        damaged = self.unreadable()
        n_trials = len(self.trials.cells())
        if n_trials and not damaged:
            return RequestError(
                f"{self.out} has no records but those of {counted(n_trials, 'trial')}, which "
                f"come before its cells; `peftlab watch {self.out}` follows them, `peftlab "
                f"report {self.trials.out}` shows them"
            )
        why = f"none that can be read (damaged: {', '.join(damaged)})" if damaged else "no records"
        return RequestError(f"{self.out} has {why}; give the output folder of `peftlab compare`")

    def suites(self) -> list[dict[str, Any]]:
        """The suites that this folder was made for, the latest last; empty without a suite.json.

        Raises:
            RequestError: if suite.json is damaged.
        """
        path = self.out / "suite.json"
        if not path.exists():
            return []
        try:
            latest = json.loads(path.read_text(encoding="utf-8"))
            suites = [*latest.pop("earlier", []), latest]
            cells = [cell for suite in suites for cell in suite["cells"]]
            if not all({"cell", "label"} <= cell.keys() for cell in cells):
                raise KeyError("cells")
        except (*JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path} is damaged ({error}); delete it to see every record"
            ) from None
        return suites

    def notes(self) -> list[str]:
        """Notes on the records: what may be compared between sides, and which can't be read."""
        latest = (self.suites() or [{}])[-1]
        return [*latest.get("told", []), *map(unreadable_note, self.unreadable())]

    def title(self, records: list[Record]) -> str:
        """The latest suite's name, or that of the records where there is no suite.json."""
        suites = self.suites()
        return suites[-1].get("name", records[-1].suite) if suites else records[-1].suite

    def write_suite(self, suite: dict[str, Any]) -> None:
        """Write suite.json: the suite and, as `earlier`, those that requested other cells too."""
        try:
            known_suites = self.suites()
        except RequestError:  # earlier suites are lost with the damaged file; records are not
            known_suites = []
        cells = _cells_of(suite)
        earlier = [known for known in known_suites if not cells >= _cells_of(known)]
        self.write_json("suite.json", suite | {"earlier": earlier})

    def write_json(self, name: str, content: Any) -> None:
        """Write `OUT/name` as indented JSON."""
        atomic.write(self.out / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_record(self, record: Record) -> None:
        atomic.write(self._record(record.cell), text_of(record))


def _cells_of(suite: dict[str, Any]) -> set[str]:
    return {cell["cell"] for cell in suite["cells"]}


def rounds_of(folder: Path) -> list[Record]:
    """The records of a comparison's short cells that took turns (`--repeat-speed`), if any."""
    store = Store(folder).rounds
    try:
        return store.records() if store.cells() else []
    except RequestError:  # none of them can be read: the cells' own speeds are shown
        return []


def select(
    records: list[Record], tasks: list[str] | None, methods: list[str] | None
) -> list[Record]:
    """The records of these tasks and methods; a method is a row's label or a method's name.

    Raises:
        RequestError: if no record has one of the tasks or methods.
    """
    known_tasks = dict.fromkeys(record.task.name for record in records)
    known_methods = dict.fromkeys(
        name for record in records for name in (record.method.label, record.method.name)
    )
    for kind, names, known in (("task", tasks, known_tasks), ("method", methods, known_methods)):
        for name in names or ():
            if name not in known:
                raise unknown(kind, name, known)
    return [
        record
        for record in records
        if (tasks is None or record.task.name in tasks)
        and (methods is None or {record.method.label, record.method.name} & set(methods))
    ]


def text_of(record: Record) -> str:
    """The content of a record's file."""
    return record.model_dump_json(indent=2) + "\n"


def lines_of(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; empty if the file is absent or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (*JSON_ERRORS, OSError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _latest_last(records: list[Record], last_suite: Mapping[str, int]) -> list[Record]:
    """The records, with those of a row on a task put in the order of their last suites."""
    rows = [row_of(record) for record in records]
    by_row: dict[str, list[Record]] = defaultdict(list)
    for row, record in zip(rows, records, strict=True):
        by_row[row].append(record)
    in_order = {
        row: iter(sorted(members, key=lambda record: last_suite.get(record.cell, -1)))
        for row, members in by_row.items()
    }
    return [next(in_order[row]) for row in rows]


def with_label(record: Record, label: str) -> Record:
    """The record under the label that its row has now: a label is no part of a cell's identity."""
    method = record.method.model_copy(update={"label": label})
    return record.model_copy(update={"method": method})
