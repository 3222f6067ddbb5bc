"""One cell, and its adapter as a folder: `peftlab train`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from peftlab.api.compare import foreseeing
from peftlab.api.progress import observer
from peftlab.atomic import check_replaceable, replace_folder
from peftlab.bench.grid import Grid
from peftlab.bench.run import run_grid
from peftlab.errors import RequestError
from peftlab.records.record import Record
from peftlab.records.store import BESIDE, Store


def train_folder(grid: Grid, out: Path, console: Console, quiet: bool = False) -> Record:
    """Run the grid's one cell and write its adapter to `out`, record, curve and predictions beside.

    A cell that fails leaves nothing in `out`.

    Raises:
        RequestError: if the grid has more than one cell, or `out` can't be replaced.
    """
    if len(grid.cells) != 1:
        raise RequestError(
            f"train runs one cell, and this asks for {len(grid.cells)}; `peftlab compare` runs many"
        )
    check_replaceable(out)
    scratch = Path(tempfile.mkdtemp(prefix="peftlab-"))
    store = Store(scratch / "out")
    try:
        (record,) = run_grid(
            grid,
            store.out,
            observer(console, quiet),
            shown=out,
            foresee=foreseeing(grid, out, console),
        )
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if record.status == "done":
        try:
            replace_folder(out, lambda place: _gather(store, record, place))
        except RequestError as error:
            raise RequestError(f"{error}; the finished run is kept in {store.out}") from error
    shutil.rmtree(scratch, ignore_errors=True)
    return record


def _gather(store: Store, record: Record, place: Path) -> None:
    for file in store.adapter(record.cell).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    for kind, name in BESIDE.items():
        (path,) = (store.out / kind).iterdir()
        (place / name).write_bytes(path.read_bytes())
