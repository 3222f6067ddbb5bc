"""fit: for someone who only wants a model. A race, the best rows again, one adapter, one page.

60 % of the time at most goes to the race: every method at several learning rates on a part of
train, where the bad ones stop early. Then the three best rows train on all of train, seed after
seed, and are judged on dev, which has chosen no rate. The recommended row's best adapter is loaded
again, has to answer dev as it did in training, and is written. It was chosen on dev among at most
nine, and the last line says so beside the mean of its row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from peftlab.api.compare import Planned, arguments_of, data_of, foreseeing, planned, request_of
from peftlab.api.export import check_again, copy_adapter
from peftlab.api.live import Live
from peftlab.api.progress import callers_console, observer
from peftlab.atomic import check_replaceable, replace_folder
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, Row
from peftlab.bench.race import RATE_FACTORS, Race, TimeIsUp, Until
from peftlab.bench.resume import done_cells, judge_anew
from peftlab.bench.retention import best_seed, drop_beaten, main_score, room_mib
from peftlab.bench.run import Session, set_aside, with_baselines, write_suite
from peftlab.errors import RequestError, expect_path
from peftlab.methods import Method
from peftlab.naming import counted, slug
from peftlab.records.lock import locked
from peftlab.records.recommend import Recommendation
from peftlab.records.record import Record
from peftlab.records.rows import judged_on_train
from peftlab.records.store import Store
from peftlab.records.verdicts import compare_rows
from peftlab.settings import Training
from peftlab.tasks import Task

METHODS = "lora,houlsby,bitfit,full,head"
VALIDATION = 0.1
RACE_SHARE = 0.6  # of the time; what the race leaves goes to seeds
SEEDS = (0, 1, 2)
FINALISTS = 3


class Fitted(NamedTuple):
    """What fit leaves.

    Attributes:
        record: of the adapter that was written.
        row: the records of all its row's seeds; of a race's adapter its own.
        reached: the main metric that the adapter, loaded again, came to.
        recommendation: why this row; None where the time was over before the race was.
        stopped: what ended it before its time, Ctrl-C for one.
    """

    record: Record
    row: list[Record]
    reached: float
    recommendation: Recommendation | None
    stopped: KeyboardInterrupt | None


def fit(
    *,
    data: str | Path | dict[str, Any] | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    task: str | Task | None = None,
    out: str | Path,
    minutes: float = 20.0,
    model: str | Path | None = None,
    methods: str | Method | Sequence[str | dict[str, Any] | Method] | None = None,
    dev: str | Path | None = None,
    kind: str | None = None,
    data_dir: str | Path | None = None,
    metric: str | None = None,
    runs: str | Path | None = None,
    quiet: bool = False,
    **training: Any,
) -> Fitted:
    """Find, train and write a model for some data within a time.

    Args:
        data: your own file, or a table, as `peftlab.compare` takes it.
        text: its text column, or two.
        label: its label column.
        task: a name, or a `Task`, instead of data.
        out: a new or empty folder for the adapter, or one with an adapter, which is replaced.
        minutes: how long it may take; loading and scoring the last adapter may take longer.
        model: `minilm`, `mpnet`, a folder, or a hub name.
        methods: to choose from; lora, houlsby, bitfit, full and head if not given.
        dev: a file to judge on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main one, instead of the task's own.
        runs: the folder for what is tried; runs/fit-DATA if not given.
        quiet: no progress.
        training: fields of `peftlab.settings.Training`, such as batch_size.

    Raises:
        RequestError: if the request is wrong, a folder can't be written, or no training ended in
            time.
    """
    expect_path("out", out)
    request = request_of(
        suite=None,
        model=model,
        tasks=task,
        methods=methods if methods is not None else METHODS.split(","),
        seeds=SEEDS,
        data=data_of(data, {"text": text, "label": label, "dev": dev, "kind": kind}),
        data_dir=data_dir,
        metric=metric,
        out=runs,
        training=Training.of(training, arguments_of(fit)),
    )
    ready = plan_fit(request.asked, [], None if runs is None else Path(runs))
    return fit_planned(ready, Path(out), minutes, callers_console(quiet), quiet)


def plan_fit(request: dict[str, Any], sets: Iterable[str], runs: Path | None) -> Planned:
    """Check a request and resolve it; what is tried goes to `runs`, or to runs/fit-DATA.

    Raises:
        RequestError: if anything in it is wrong, or it has more than one task.
    """
    if request.get("data") is None and not request.get("tasks"):
        raise RequestError(
            "fit needs data: give your own with --data, --text and --label, or a --task"
        )
    found = planned(None, request, sets)
    if len(found.grid.tasks) != 1:
        names = ", ".join(found.grid.tasks)
        raise RequestError(
            f"fit makes one model of one task, and this asks for {names}; give your --data with "
            "--text and --label, or one --task"
        )
    (task,) = found.grid.tasks
    return found._replace(out=runs or Path("runs") / f"fit-{slug(task)}")


def told(fitted: Fitted) -> list[str]:
    """What came out, in lines."""
    record = fitted.record
    row = f"{record.method.name} at learning rate {record.training['lr']:g}"
    score = f"{record.task.main_metric} {fitted.reached:.3f}"
    if fitted.recommendation is None:
        more = "" if fitted.stopped else "; give more --minutes"
        return [
            f"{row}: {score} on a part of train, loaded again",
            f"It did not come to a training on all of train{more}.",
        ]
    mean = statistics.fmean(main_score(one) for one in fitted.row)
    seeds = counted(len(fitted.row), "seed")
    on = "a part of train, as asked" if judged_on_train(record) else "dev"
    return [f"{row}: {score} loaded again, the best of {seeds} of mean {mean:.3f}, on {on}"]


def fit_planned(
    asked: Planned, to: Path, minutes: float, console: Console, quiet: bool = False
) -> Fitted:
    """Race, train, choose, check and write an adapter to the folder `to`, within the time.

    Args:
        asked: one task, the rows to choose from, and the folder for what is tried.
        to: a new or empty folder, or one with an adapter, which is replaced.
        minutes: from now on; loading and scoring the last adapter may take a little longer.
        console: for progress.
        quiet: no progress.

    Raises:
        RequestError: if `to` or the folder can't be written, if a method would not fit into memory,
            or if no training ended in time.
        KeyboardInterrupt: if that came before any training ended.
    """
    if not 0 < minutes < float("inf"):
        raise RequestError(f"minutes must be a number above 0, got {minutes}")
    started = time.monotonic()
    end = started + 60 * minutes
    check_replaceable(to)
    _check_apart(to, asked.out)
    fitting = _Fitting(asked, started, end, console, quiet)
    console.print(fitting.described(minutes, to), markup=False, highlight=False, soft_wrap=True)
    stopped = None
    with Store(asked.out).prepared(room_mib(asked.grid.cells, "best")):
        foreseeing(asked.grid, asked.out, console)(asked.grid.cells)  # refuses what can't fit
    with locked(asked.out):
        Store(asked.out).clean()
        try:
            fitting.race()
            fitting.train()
        except KeyboardInterrupt as stop:
            stopped = stop
            if not fitting.has_something:
                raise
        return fitting.write(to)._replace(stopped=stopped)


def _check_apart(to: Path, runs: Path) -> None:
    one, other = to.resolve(), runs.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise RequestError(
            f"--out {to} for the adapter and --runs {runs} for what is tried must be two folders, "
            "neither inside the other"
        )


class _Fitting:
    """One call of `fit` on its way."""

    def __init__(
        self, planned: Planned, started: float, end: float, console: Console, quiet: bool
    ) -> None:
        self.grid, self.out = planned
        (self.task,) = self.grid.tasks.values()
        self.started, self.end, self.console, self.quiet = started, end, console, quiet
        self.contest = Race(self.grid, self.task, VALIDATION)
        self.store = Store(self.out)
        self.trials = self.store.trials
        self.final: Grid | None = None  # what is trained once the race is over
        self.records: list[Record] = []
        self.failed: list[Record] = []

    @property
    def has_something(self) -> bool:
        """Whether a training has ended, and there is a model."""
        return bool(self.records or self.contest.ranking)

    def described(self, minutes: float, to: Path) -> str:
        """What will be done, in words."""
        rows = ", ".join(row.part.label for row in self.grid.rows)
        rungs = " then ".join(map(str, self.contest.rungs))
        return (
            f"fit: {rows} at up to {len(RATE_FACTORS)} learning rates each race on "
            f"{1 - VALIDATION:.0%} of train (epochs: {rungs}), the best {FINALISTS} train on all "
            f"of it with up to {len(SEEDS)} seeds; at most {minutes:g} minutes. "
            f"The adapter goes to {to}, what was tried to {self.out}"
        )

    def race(self) -> None:
        """Run the race until it or its share of the time is over."""
        until = self.started + RACE_SHARE * (self.end - self.started)
        self.trials.prepare()
        self.trials.clean()
        with self._session(self.trials, self.contest.task, until) as session:
            session.progress.stage("the race, judged on a part of train", sum(self.contest.sizes))
            self.contest.run(session)

    def train(self) -> None:
        """Train the best rows, seed after seed, as long as there is time for another training."""
        rows = self.contest.best_rows(FINALISTS)
        if not rows:
            return
        self.final = self._final(rows)
        write_suite(self.store, self.final)
        cells = self.final.cells
        done = done_cells(self.store, cells)
        judge_anew(self.store, (cell.task for cell in cells))
        self.records = list(done.values())
        for name in done:
            self.store.forget_checkpoint(name)
        cells = [cell for cell in cells if cell.name not in done]
        with self._session(self.store, self.task, self.end) as session:
            session.progress.stage("the best of it, on all of train, judged on dev", len(cells))
            if cells:
                session.start()  # while it does, the baselines are computed
            for cell in with_baselines(cells, {self.task.name: self.task}, session.progress):
                if self.records and not self._has_time_for(cell):
                    return
                self._run(cell, session)

    def _run(self, cell: Cell, session: Session) -> None:
        set_aside(self.store, [cell], session.progress)
        record = session.run(cell, keep_adapter=True)
        if record.is_done:
            self.records.append(record)
            drop_beaten(self.store, self.records, [], "all")
        else:
            self.failed.append(record)

    def _final(self, rows: list[Row]) -> Grid:
        """The best rows on all of train: one seed of every row before the next seed of any."""
        suite = self.grid.suite.model_copy(update={"seeds": list(SEEDS)})
        grid = Grid(suite, self.grid.context, rows, self.grid.tasks, [])
        return grid.with_rows({self.task.name: rows})

    def _show_only(self, records: list[Record]) -> None:
        """Have the page show what was chosen from: the latest that was asked for."""
        assert self.final is not None  # `train` made it, and with it these records
        names = {record.cell for record in records}
        cells = [cell for cell in self.final.cells if cell.name in names]
        write_suite(self.store, dataclasses.replace(self.final, cells=cells))

    def _has_time_for(self, cell: Cell) -> bool:
        """Whether it would end in time if it took as long as the row's slowest, or any row's."""
        took = [r.total_s or 0.0 for r in self.records if r.method.label == cell.method.label]
        others = [r.total_s or 0.0 for r in self.records]
        return time.monotonic() + max(took or others) < self.end

    @contextlib.contextmanager
    def _session(self, store: Store, task: Task, until: float) -> Iterator[Session]:
        """A session that ends, with what is done by then, when its time is over."""
        with contextlib.ExitStack() as running:
            shown = Live(observer(self.console, self.quiet), self.out, running, page=False)
            progress = Until(shown, until)
            session = Session(store, {task.name: task}, progress)
            with contextlib.suppress(TimeIsUp), progress, session:
                yield session

    def write(self, to: Path) -> Fitted:
        """Check the adapter to take, and write it."""
        if self.records:
            compared = _alike([*self.records, *self.failed])
            self._show_only(compared)
            chosen = compare_rows(compared, [self.out]).recommendation
            assert chosen is not None  # a record here has a score
            row = [one for one in compared if one.method.label == chosen.row and one.score]
            # a seed that others lack counts in no mean, and may have the one adapter that is kept
            same = [one for one in self.records if one.method.label == chosen.row]
            return self._write(to, self.store, row, same, self.task, chosen)
        for one in self.contest.ranking:
            if self.trials.adapter(one.record.cell).is_dir():
                row = [one.record]
                return self._write(to, self.trials, row, row, self.contest.task, None)
        raise RequestError(self._nothing())

    def _nothing(self) -> str:
        """Why there is no model."""
        raced = [one.record for one in self.contest.ran if one.merit is None]
        for record in [*raced, *self.failed]:
            if record.failure is not None:
                return (
                    f"no training came to an end; {record.method.label}: {record.failure.message}"
                )
        return "no training ended in time; give more --minutes, or fewer or cheaper --methods"

    def _write(
        self,
        to: Path,
        store: Store,
        row: list[Record],
        same: list[Record],
        task: Task,
        why: Recommendation | None,
    ) -> Fitted:
        kept = [one for one in same if store.adapter(one.cell).is_dir()]
        if not kept:
            notes = "; ".join(row[0].method.notes)
            raise RequestError(f"no adapter of {row[0].method.label} was kept: {notes}")
        record = best_seed(kept)
        reached = check_again(store, record, task)
        replace_folder(to, lambda place: copy_adapter(store, record, place))
        return Fitted(record, row, reached, why, stopped=None)


def _alike(records: list[Record]) -> list[Record]:
    """Those of the seeds that every row ran: where the time ended, some have one more than others.

    The row with one more is the one that the race put first, which is no reason to take it. A
    failed run is one of its row's; of a row without a score no seed is missed.
    """
    scored = {record.method.label for record in records if record.score}
    rows: dict[str, set[int]] = {label: set() for label in scored}
    for record in records:
        if record.method.label in scored:
            rows[record.method.label].add(record.seed)
    common = set.intersection(*rows.values())
    alike = [one for one in records if one.seed in common or one.method.label not in scored]
    return alike if any(record.score for record in alike) else records
