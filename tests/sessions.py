"""A session that trains nothing, for tests of which cells are run and not of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from peftlab.bench.cell import Cell
from peftlab.bench.run import Observer
from peftlab.machine import environment
from peftlab.records.record import Record, Speed
from peftlab.records.store import Store
from peftlab.tasks import Task


class FakeSession:
    """Trains nothing. The score depends on the rate, best at 3e-3, and rises with the seed."""

    made: ClassVar[list[Cell]] = []
    tasks: ClassVar[dict[str, Task]] = {}

    def __init__(self, store: Store, tasks: Mapping[str, Task], progress: Observer) -> None:
        self.store, self.progress = store, progress
        type(self).tasks = dict(tasks)

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exception: Any) -> None: ...

    def warm(self) -> None: ...

    def start(self) -> None: ...

    def run(self, cell: Cell, keep_adapter: bool, goes_on: bool = True) -> Record:
        self.made.append(cell)
        self.progress.cell(cell)
        decades = abs(math.log10(cell.training.lr / 3e-3))
        score = {cell.task.main_metric: 0.9 - decades / 10 + cell.seed / 1000}
        if keep_adapter:
            folder = self.store.adapter(cell.name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "adapter_config.json").write_text("{}")
        record = Record(
            **cell.record_fields,
            status="done",
            score=score,
            speed=Speed(examples_per_s=9.0, tokens_per_s=9.0, step_ms_p50=9.0, step_ms_p95=9.0),
            total_s=1.0,
            environment=environment(cell.training.threads, "fp32"),
        )
        self.store.write_record(record)
        self.progress.end(record)
        return record
