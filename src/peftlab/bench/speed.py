"""`--repeat-speed N`: speed and memory from short cells of all rows that take turns, N rounds.

Machines are shared, and their speed varies by a third within an hour, so measurements from
different times can't be compared. In each round every row trains on the same few batches once,
every second round in the opposite order, so that a machine that slows down slows all of them. The
records lie in OUT/speed. A complete round is not run again; one that lacks a requested row is run
again as a whole. Each record has its round's mark, `turn`: rows of another command had no turn in
this round.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, task_part
from peftlab.bench.resume import ended_trial
from peftlab.bench.run import Observer, Session, set_aside
from peftlab.bench.short import short, short_cell
from peftlab.machine import BUSY_SHARE, others_share
from peftlab.records.lock import locked
from peftlab.records.rows import rounds_taken
from peftlab.records.store import Store
from peftlab.tasks import Task

STEPS = 40  # the first ones are not timed; thirty take a second or two on a small model
DEV_STEPS = 2


def measure_speed(grid: Grid, rounds: int, out: Path, progress: Observer) -> None:
    """Run the rounds that are missing, and note it when the machine is busy with something else.

    Raises:
        RequestError: if `out` can't take the records.
    """
    Store(out).prepare()
    store = Store(out).rounds
    store.prepare()
    size = grid.cells[0].training.batch_size
    tasks = {name: short(task, STEPS * size, DEV_STEPS * size) for name, task in grid.tasks.items()}
    requested = [_round(grid, tasks, number) for number in range(rounds)]
    with locked(out):
        store.clean()
        incomplete = [cells for cells in requested if not _is_complete(cells, store)]
        missing = [cell for cells in incomplete for cell in cells]
        if not missing:
            return
        with progress, Session(store, tasks, progress) as session:
            work = f"{rounds} rounds of {STEPS} steps in turns, in {store.out}"
            progress.stage(f"speed and memory: {work}", len(missing))
            set_aside(store, missing, progress)
            for cells in incomplete:
                for cell in cells:  # else, if stopped, old and new records would pass for one round
                    store.forget(cell.name)
                turn = uuid.uuid4().hex[:12]
                for cell in cells:
                    _measure(cell, session, turn)


def _is_complete(cells: list[Cell], store: Store) -> bool:
    """Whether all cells of a round have ended, in that round, and on samples of this data.

    `drawn_from` is compared since the samples may be equal although the data has changed. A row
    that a later command measured again, beside others, was in another round than the rest.
    """
    records = [ended_trial(store, cell) for cell in cells]
    if not all(
        record is not None and record.task.drawn_from == cell.task.drawn_from
        for record, cell in zip(records, cells, strict=True)
    ):
        return False
    return len(rounds_taken(record for record in records if record is not None)) <= 1


def _measure(cell: Cell, session: Session, turn: str) -> None:
    share = others_share()
    if share is not None and share > BUSY_SHARE:
        session.progress.note(
            f"others take {share:.1f} of a core: the speed of {cell.title} is not the machine's"
        )
    record = session.run(cell, keep_adapter=False, goes_on=False)
    if record.speed is not None:
        speed = record.speed.model_copy(update={"others_share": share, "turn": turn})
        session.store.write_record(record.model_copy(update={"speed": speed}))


def _round(grid: Grid, tasks: dict[str, Task], number: int) -> list[Cell]:
    """The short cells of a round, one of every row on every task; its number is their seed."""
    rows = {cell.row: cell for cell in grid.cells}
    parts = {
        name: task_part(task).model_copy(
            update={"drawn_from": grid.context.task_part(grid.tasks[name]).sha256}
        )
        for name, task in tasks.items()
    }
    cells = [short_cell(cell, parts[name], seed=number) for (name, _), cell in rows.items()]
    return cells[::-1] if number % 2 else cells
