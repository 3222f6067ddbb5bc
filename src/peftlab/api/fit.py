"""fit: find, train and write one model for a user's data within a time.

The race takes 60 % of the time at most: every method trains at several learning rates on a part of
train, and the bad ones stop early. Then the three best rows train on all of train, seed after seed,
and are judged on dev, which has chosen no rate. The recommended row's best adapter is loaded again,
has to answer dev as it did in training, and is written. It was chosen on dev among at most nine, so
the last line gives the mean of its row beside its score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from peftlab.api.compare import forecaster
from peftlab.api.export import check_again, copy_adapter
from peftlab.api.live import Live
from peftlab.api.progress import callers_console, observer
from peftlab.api.request import ResolvedRequest, request_of, resolve_request
from peftlab.atomic import check_replaceable, replace_folder
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, Row
from peftlab.bench.race import RATE_FACTORS, Deadline, Race, TimeIsUp
from peftlab.bench.resume import done_cells, judge_anew
from peftlab.bench.retention import best_seed, drop_beaten, main_score, room_mib
from peftlab.bench.run import Session, set_aside, with_baselines, write_suite
from peftlab.errors import RequestError, expanded, expect, expect_path
from peftlab.methods import Method
from peftlab.naming import counted, slug
from peftlab.records.lock import locked
from peftlab.records.recommend import Recommendation
from peftlab.records.record import Record
from peftlab.records.rows import is_judged_on_train
from peftlab.records.store import Store
from peftlab.records.verdicts import compare_rows
from peftlab.tasks import Task

METHODS = "lora,houlsby,bitfit,full,head"
VALIDATION = 0.1
RACE_SHARE = 0.6  # of the time at most; what the race leaves goes to seeds
SEEDS = (0, 1, 2)
FINALISTS = 3


class Fitted(NamedTuple):
    """The result of `fit`.

    Attributes:
        record: of the adapter that was written.
        row: the records of all seeds of its row; for an adapter of the race, its own record.
        reached: the main metric of the adapter after it was loaded again.
        recommendation: why this row; None if the time was over before the race was.
        stopped: the interrupt that ended it early, such as Ctrl-C.
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
        text: its text column, or two: a list, or as in `--text` a string with a comma between.
        label: its label column.
        task: a name, or a `Task`, instead of data.
        out: a new or empty folder for the adapter, or one with an adapter, which is replaced.
        minutes: how long it may take; loading and scoring the last adapter may take longer.
        model: `minilm`, `mpnet`, a folder, or a hub name.
        methods: to choose from; lora, houlsby, bitfit, full and head if not given.
        dev: a file to judge on; without it a fifth is kept apart.
        kind: auto, classes or regression.
        data_dir: the folder with GLUE's own files; PEFTLAB_DATA_DIR's if not given.
        metric: the main metric, instead of the task's own.
        runs: the folder for the trainings; runs/fit-DATA if not given.
        quiet: no progress.
        training: fields of `peftlab.settings.Training`, such as batch_size; a list of learning
            rates makes a row of every method at each rate.

    Raises:
        RequestError: if the request is wrong, a folder can't be written, or no training ended in
            time.
    """
    expect_path("out", out)
    request = request_of(
        fit,
        model=model,
        tasks=task,
        methods=methods if methods is not None else METHODS.split(","),
        seeds=SEEDS,
        data=data,
        text=text,
        label=label,
        dev=dev,
        kind=kind,
        data_dir=data_dir,
        metric=metric,
        out=runs,
        training=training,
    )
    resolved = resolve_fit(request.fields, [], None if runs is None else expanded(runs))
    return run_fit(resolved, expanded(out), minutes, callers_console(quiet), quiet)


def resolve_fit(fields: dict[str, Any], sets: Iterable[str], runs: Path | None) -> ResolvedRequest:
    """Check a request and resolve it; its trainings go to `runs`, or to runs/fit-DATA.

    Raises:
        RequestError: if anything in it is wrong, or it has more than one task.
    """
    if fields.get("data") is None and not fields.get("tasks"):
        raise RequestError(
            "fit needs data: give your own with --data, --text and --label, or a --task"
        )
    resolved = resolve_request(None, fields, sets)
    if len(resolved.grid.tasks) != 1:
        names = ", ".join(resolved.grid.tasks)
        raise RequestError(
            f"fit makes one model of one task, and this asks for {names}; give your --data with "
            "--text and --label, or one --task"
        )
    (task,) = resolved.grid.tasks
    return resolved._replace(out=runs or Path("runs") / f"fit-{slug(task)}")


def result_lines(fitted: Fitted) -> list[str]:
    """The result in lines: the row, its score, and what it was judged on."""
    record = fitted.record
    row = f"{record.method.name} at learning rate {record.training['lr']:g}"
    score = f"{record.task.main_metric} {fitted.reached:.3f}"
    if fitted.recommendation is None:
        remedy = "" if fitted.stopped else "; give more --minutes"
        return [
            f"{row}: {score} on a part of train, loaded again",
            f"It did not come to a training on all of train{remedy}.",
        ]
    mean = statistics.fmean(map(main_score, fitted.row))
    seeds = counted(len(fitted.row), "seed")
    split = "a part of train, as asked" if is_judged_on_train(record) else "dev"
    return [f"{row}: {score} loaded again, the best of {seeds} of mean {mean:.3f}, on {split}"]


def run_fit(
    resolved: ResolvedRequest, to: Path, minutes: float, console: Console, quiet: bool = False
) -> Fitted:
    """Race, train, choose, check and write an adapter to the folder `to`, within the time.

    Args:
        resolved: one task, the rows to choose from, and the folder for the trainings.
        to: a new or empty folder, or one with an adapter, which is replaced.
        minutes: from now on; loading and scoring the last adapter may take a little longer.
        console: for progress.
        quiet: no progress.

    Raises:
        RequestError: if a folder can't be written, if a method would not fit into memory, or if no
            training ended in time.
        KeyboardInterrupt: if it came before any training ended.
    """
    expect("minutes", minutes, (int, float), "a number")
    if not 0 < minutes < float("inf"):
        raise RequestError(f"minutes must be a number above 0, got {minutes}")
    started = time.monotonic()
    end = started + 60 * minutes
    check_replaceable(to)
    _check_apart(to, resolved.out)
    fitting = _FitRun(resolved, started, end, console, quiet)
    console.print(fitting.describe(minutes, to), markup=False, highlight=False, soft_wrap=True)
    stopped = None
    grid, runs = resolved
    with Store(runs).prepared(room_mib(grid.cells, "best")):
        forecaster(grid, runs, console)(grid.cells)  # refuses what does not fit into memory
    with locked(runs):
        Store(runs).clean()
        try:
            fitting.race()
            fitting.train()
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
            if not fitting.has_model:
                raise
        return fitting.write(to)._replace(stopped=stopped)


def _check_apart(to: Path, runs: Path) -> None:
    folder, other = to.resolve(), runs.resolve()
    if folder == other or folder in other.parents or other in folder.parents:
        raise RequestError(
            f"--out {to} for the adapter and --runs {runs} for what is tried must be two folders, "
            "neither inside the other"
        )


class _FitRun:
    """One run of `fit`: the race, the final trainings, the choice of an adapter."""

    def __init__(
        self, resolved: ResolvedRequest, started: float, end: float, console: Console, quiet: bool
    ) -> None:
        self.grid, self.out = resolved
        (self.task,) = self.grid.tasks.values()
        self.started, self.end, self.console, self.quiet = started, end, console, quiet
        self.contest = Race(self.grid, self.task, VALIDATION)
        self.store = Store(self.out)
        self.trials = self.store.trials
        self.final: Grid | None = None  # the cells that train after the race
        self.records: list[Record] = []
        self.failed: list[Record] = []

    @property
    def has_model(self) -> bool:
        """Whether at least one training has ended."""
        return bool(self.records or self.contest.ranking)

    def describe(self, minutes: float, to: Path) -> str:
        """The plan of the run, in a line for the user."""
        rows = ", ".join(row.part.label for row in self.grid.rows)
        rungs = " then ".join(map(str, self.contest.rungs))
        return (
            f"fit: {rows} at up to {len(RATE_FACTORS)} learning rates each race on "
            f"{1 - VALIDATION:.0%} of train (epochs: {rungs}), the best {FINALISTS} train on all "
            f"of it with up to {len(SEEDS)} seeds; at most {minutes:g} minutes. "
            f"The adapter goes to {to}, what was tried to {self.out}"
        )

    def race(self) -> None:
        """Run the race until it or its share of the time is over; all where no training ended."""
        share_ends = self.started + RACE_SHARE * (self.end - self.started)

        def until() -> float:
            return share_ends if self.contest.ranking else self.end

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
        self.final = self._final_grid(rows)
        write_suite(self.store, self.final)
        cells = self.final.cells
        done = done_cells(self.store, cells, keeps_adapters=True)
        judge_anew(self.store, (cell.task for cell in cells))
        self.records = list(done.values())
        for name in done:
            self.store.forget_checkpoint(name)
        cells = [cell for cell in cells if cell.name not in done]
        with self._session(self.store, self.task, lambda: self.end) as session:
            session.progress.stage("the best of it, on all of train, judged on dev", len(cells))
            if cells:
                session.start()  # the baselines are computed meanwhile
            for cell in with_baselines(cells, {self.task.name: self.task}, session.progress):
                if self.records and not self._has_time_for(cell):
                    return
                self._train_cell(cell, session)

    def _train_cell(self, cell: Cell, session: Session) -> None:
        set_aside(self.store, [cell], session.progress)
        record = session.run(cell, keep_adapter=True)
        if record.is_done:
            self.records.append(record)
            drop_beaten(self.store, self.records, [], "all")
        else:
            self.failed.append(record)

    def _final_grid(self, rows: list[Row]) -> Grid:
        """The best rows on all of train, ordered by seed: every row's first seed comes first."""
        suite = self.grid.suite.model_copy(update={"seeds": list(SEEDS)})
        grid = Grid(suite, self.grid.context, rows, self.grid.tasks, [])
        return grid.with_rows({self.task.name: rows})

    def _limit_page(self, records: list[Record]) -> None:
        """Write the suite of these records alone, so that the page shows the rows compared."""
        assert self.final is not None  # `train` sets it before it makes records
        names = {record.cell for record in records}
        cells = [cell for cell in self.final.cells if cell.name in names]
        write_suite(self.store, dataclasses.replace(self.final, cells=cells))

    def _has_time_for(self, cell: Cell) -> bool:
        """Whether the cell would end in time, if as slow as its row's slowest, or as any row's."""
        of_all = [(record.method.label, record.total_s or 0.0) for record in self.records]
        of_row = [seconds for label, seconds in of_all if label == cell.method.label]
        return time.monotonic() + max(of_row or [seconds for _, seconds in of_all]) < self.end

    @contextlib.contextmanager
    def _session(self, store: Store, task: Task, until: Callable[[], float]) -> Iterator[Session]:
        """A session that ends quietly when its time is over; cells that ended by then are kept."""
        with contextlib.ExitStack() as command:
            shown = Live(observer(self.console, self.quiet), self.out, command, page=False)
            progress = Deadline(shown, until)
            session = Session(store, {task.name: task}, progress)
            with contextlib.suppress(TimeIsUp), progress, session:
                yield session

    def write(self, to: Path) -> Fitted:
        """Choose an adapter, check it, and write it."""
        if self.records:
            compared = _with_common_seeds([*self.records, *self.failed])
            self._limit_page(compared)
            chosen = compare_rows(compared, [self.out]).recommendation
            assert chosen is not None  # a record here has a score
            of_row = [record for record in compared if record.method.label == chosen.row]
            row = [record for record in of_row if record.score]
            # a seed that others lack counts in no mean, and may have the one adapter that is kept
            seeds = [record for record in self.records if record.method.label == chosen.row]
            record, reached = self._write_best(to, self.store, seeds, self.task)
            return Fitted(record, row, reached, chosen, stopped=None)
        for result in self.contest.ranking:
            if self.trials.adapter(result.record.cell).is_dir():
                row = [result.record]
                record, reached = self._write_best(to, self.trials, row, self.contest.task)
                return Fitted(record, row, reached, None, stopped=None)
        raise RequestError(self._why_no_model())

    def _why_no_model(self) -> str:
        raced = [result.record for result in self.contest.results if result.merit is None]
        for record in [*raced, *self.failed]:
            if record.failure is not None:
                return (
                    f"no training came to an end; {record.method.label}: {record.failure.message}"
                )
        return "no training ended in time; give more --minutes, or fewer or cheaper --methods"

    def _write_best(
        self, to: Path, store: Store, seeds: list[Record], task: Task
    ) -> tuple[Record, float]:
        """Write the best kept adapter of a row's seeds: its record, and its score loaded again."""
        kept = [record for record in seeds if store.adapter(record.cell).is_dir()]
        if not kept:
            for record in seeds:
                store.forget(record.cell)  # else they would count as done
            method = seeds[0].method
            raise RequestError(
                f"no adapter of {method.label} was kept: {'; '.join(method.notes)}; the same "
                "command makes it again"
            )
        best = best_seed(kept)
        reached = check_again(store, best, task)
        replace_folder(to, lambda folder: copy_adapter(store, best, folder))
        return best, reached


def _with_common_seeds(records: list[Record]) -> list[Record]:
    """The records of the seeds that every row ran: when time ran out, some rows had one more.

    Such a row is the one that the race put first, which is no reason to prefer it. A failed run
    counts as a run of its seed. A row without any score takes no seed from the others.
    """
    scored = {record.method.label for record in records if record.score}
    seeds: dict[str, set[int]] = {label: set() for label in scored}
    for record in records:
        if record.method.label in scored:
            seeds[record.method.label].add(record.seed)
    common = set.intersection(*seeds.values())
    comparable = [
        record for record in records if record.seed in common or record.method.label not in scored
    ]
    return comparable if any(record.score for record in comparable) else records
