"""`fit`: a race within a time, the best rows again, one adapter that reached its score again."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import peftlab
from peftlab.api import fit as fitting
from peftlab.api.request import ResolvedRequest
from peftlab.bench.cell import Cell
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.race import MIN_RUNNERS, Deadline, Race, TimeIsUp
from peftlab.bench.run import Observer
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.methods import METHODS
from peftlab.records.now import read_now
from peftlab.records.record import Failure, Record
from peftlab.records.store import Store
from peftlab.tasks import Examples, Task
from sessions import FakeSession


def grid(model: Path, task: Task, methods: str = "head,lora", **training: Any) -> Grid:
    return resolve(
        make_suite(
            model=str(model),
            tasks=[task],
            methods=methods.split(","),
            seeds=[0],
            training={"epochs": 9, "batch_size": 1} | training,
        )
    )


def console() -> Console:
    return Console(file=io.StringIO(), width=300)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    FakeSession.made = []
    monkeypatch.setattr(fitting, "Session", FakeSession)
    monkeypatch.setattr(fitting, "check_again", lambda adapter, record, task: 0.5)
    return FakeSession


def test_every_method_races_at_its_default_first_and_the_best_go_on(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    contest = Race(grid(tiny_model, tiny_task), tiny_task, 0.25)
    FakeSession.made = []
    contest.run(FakeSession(Store(tmp_path), {}, Observer()))  # type: ignore[arg-type]
    made = FakeSession.made
    names = [cell.method.name for cell in made]
    assert names[:4] == ["head", "lora", "head", "lora"]
    by_epochs = [[cell for cell in made if cell.training.epochs == e] for e in contest.rungs]
    assert [len(rung) for rung in by_epochs] == contest.sizes == [6, MIN_RUNNERS]
    assert {cell.seed for cell in made} == {0}
    best = contest.ranking[0]
    assert best.epochs == contest.rungs[-1]
    rates = [abs(cell.training.lr - 3e-3) for cell in made]
    assert abs(best.record.training["lr"] - 3e-3) == min(rates)
    assert len(contest.best_rows(2)) == 2
    assert contest.best_rows(1)[0].part.tuned["space"][0] == "lr"


def test_of_an_error_the_least_leads_the_race(tmp_path: Path, tiny_model: Path) -> None:
    rows = Examples([(f"the cat {n}",) for n in range(40)], [float(n) for n in range(40)])
    task = Task(name="far", kind="regression", metrics=("rmse",), train=rows, dev=rows)
    contest = Race(grid(tiny_model, task), task, 0.25)
    contest.run(FakeSession(Store(tmp_path), {}, Observer()))  # type: ignore[arg-type]
    found = [one.record.score["rmse"] for one in contest.ranking if one.record.score is not None]
    assert len(set(found)) > 1
    assert found[0] == min(found)


def test_what_was_done_when_the_time_is_over_is_what_there_is(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    class Late(Observer):
        def cell(self, cell: Cell) -> None:
            if len(FakeSession.made) > 2:
                raise TimeIsUp

    contest = Race(grid(tiny_model, tiny_task), tiny_task, 0.25)
    FakeSession.made = []
    with pytest.raises(TimeIsUp):
        contest.run(FakeSession(Store(tmp_path), {}, Late()))  # type: ignore[arg-type]
    assert len(contest.results) == 2
    assert len(contest.best_rows(3)) == 2
    assert {row.part.rate_from for row in contest.best_rows(3)} == {"default"}
    before = {row.part.label: row.part.tuned for row in contest.best_rows(3)}
    contest.run(FakeSession(Store(tmp_path), {}, Observer()))  # type: ignore[arg-type]
    after = {row.part.label: row.part for row in contest.best_rows(3)}
    assert {part.rate_from for part in after.values()} == {"tuned"}
    assert {label: part.tuned for label, part in after.items()} == before  # else all trains again


def test_a_run_that_failed_takes_no_seed_from_the_others(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    asked = grid(tiny_model, tiny_task)
    cells = resolve(asked.suite.model_copy(update={"seeds": [0, 1, 2]})).cells
    session = FakeSession(Store(tmp_path), {}, Observer())
    records = [session.run(cell, keep_adapter=False) for cell in cells]
    broken = {"status": "failed", "score": None}
    records = [
        one.model_copy(update=broken) if one.method.name == "head" and one.seed else one
        for one in records
    ]
    assert fitting._with_common_seeds(records) == records
    heads = [one.model_copy(update=broken) for one in records if one.method.name == "head"]
    loras = [one for one in records if one.method.name == "lora"]
    assert fitting._with_common_seeds([*heads[:1], *loras]) == [
        *heads[:1],
        *loras,
    ]  # nor does one that has none
    late = [one for one in records if (one.method.name, one.seed) != ("lora", 2)]
    assert {one.seed for one in fitting._with_common_seeds(late)} == {0, 1}


def test_a_training_ends_at_its_next_step_when_its_time_is_over() -> None:
    late, early = (
        Deadline(Observer(), lambda: time.monotonic() - 1),
        Deadline(Observer(), lambda: time.monotonic() + 60),
    )
    cell: Any = None
    early.step(cell, {"step": 1}, 10)
    with pytest.raises(TimeIsUp):
        late.step(cell, {"step": 1}, 10)


def test_a_race_has_all_of_the_time_until_a_training_has_ended(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended with no model after 60 % of the minutes where the first training took longer."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = FakeSession.run

    def slow(self: Any, cell: Cell, keep_adapter: bool) -> Record:
        now[0] += 40
        self.progress.step(cell, {"step": 1}, 10)
        return run(self, cell, keep_adapter)

    monkeypatch.setattr(FakeSession, "run", slow)
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    fitted = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    assert fitted.recommendation is None and len(fake.made) == 1


def test_the_best_rows_train_on_all_of_train_seed_after_seed(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    fitted = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    final = [cell for cell in fake.made if cell.task.n_train == len(tiny_task.train)]
    assert [cell.seed for cell in final] == [0, 0, 1, 1, 2, 2]
    assert fitted.recommendation is not None
    assert fitted.record.method.tuned["space"][0] == "lr"
    assert not fitted.stopped
    assert (tmp_path / "model" / "adapter_config.json").exists()
    kept = Record.model_validate_json((tmp_path / "model" / "record.json").read_bytes())
    assert kept == fitted.record


def test_when_nothing_ends_in_time_the_remedy_is_named(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(self: Any, cell: Cell, keep_adapter: bool) -> Record:
        raise TimeIsUp

    monkeypatch.setattr(FakeSession, "run", never)
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    with pytest.raises(RequestError, match="give more --minutes"):
        fitting.run_fit(request, tmp_path / "model", 0.5, console(), quiet=True)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_of_the_race(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """For real: the race's adapter is loaded again and reaches its score."""
    finished: list[str] = []
    request = ResolvedRequest(grid(tiny_model, tiny_task, batch_size=8), tmp_path / "runs")

    class Stopping(Observer):
        def end(self, record: Record) -> None:
            finished.append(record.cell)
            if len(finished) == 2:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "observer", lambda *_: Stopping())
        fitted = fitting.run_fit(request, tmp_path / "model", 5.0, console(), quiet=True)
    assert fitted.stopped
    assert fitted.recommendation is None
    assert fitted.record.cell in finished
    assert fitted.reached == pytest.approx(fitted.record.score["accuracy"])  # type: ignore[index]
    model, tokenizer = peftlab.load(tmp_path / "model")
    assert len(peftlab.predict(model, tokenizer, ["the cat sees a red"])) == 1
    assert "did not come to a training on all of train" in fitting.result_lines(fitted)[1]


def test_several_tasks_are_refused(tiny_model: Path) -> None:
    request = {
        "model": str(tiny_model),
        "tasks": ["acceptability", "similarity"],
        "methods": ["head"],
        "training": peftlab.settings.Training(),
    }
    with pytest.raises(RequestError, match="one model of one task"):
        fitting.resolve_fit(request, [], None)
    with pytest.raises(RequestError, match="fit needs data"):
        fitting.resolve_fit(request | {"tasks": None}, [], None)


def test_a_list_of_rates_makes_a_row_of_every_method_at_each(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "run_fit", lambda resolved, *_: resolved)
    lr: Any = [1e-4, 4e-4]
    resolved: Any = peftlab.fit(
        task=tiny_task, model=tiny_model, methods="lora", out=tmp_path / "a", lr=lr, epochs=2
    )
    assert [row.variant.lr for row in resolved.grid.rows] == lr
    assert {cell.training.epochs for cell in resolved.grid.cells} == {2}
    with pytest.raises(RequestError, match="epoch"):
        peftlab.fit(task=tiny_task, out=tmp_path / "a", epocs=2)


def test_equal_rates_race_once_and_the_leader_keeps_its_adapter(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default at the end of its range: three times it is no other rate."""
    monkeypatch.setattr(METHODS["lora"], "default_lr", METHODS["lora"].search_space()["lr"].high)
    contest = Race(grid(tiny_model, tiny_task, "lora"), tiny_task, 0.25)
    rates = [runner.row.variant.lr for runner in contest.runners]
    assert len(rates) == len(set(rates)) == 2
    given = Race(grid(tiny_model, tiny_task, "lora", lr=7e-3), tiny_task, 0.25)
    assert [runner.row.part.tuned for runner in given.runners] == [{}]  # what is given is not raced


def test_a_second_fit_takes_what_the_first_one_left(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    first = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    n_made = len(fake.made)
    again = fitting.run_fit(request, tmp_path / "again", 0.01, console(), quiet=True)
    assert len(fake.made) == n_made
    assert again.record == first.record
    assert len(again.row) == 3
    assert "the best of 3 seeds of mean" in fitting.result_lines(again)[0]


def test_a_fit_whose_adapters_could_not_be_written_is_fitted_again(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = FakeSession.run

    def full(self: FakeSession, cell: Cell, keep_adapter: bool) -> Record:
        return original(self, cell, keep_adapter=False)

    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(FakeSession, "run", full)
        with pytest.raises(RequestError, match=r"no adapter of .* was kept"):
            fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    assert (tmp_path / "model" / "adapter_config.json").exists()


def test_failures_are_named_and_ctrl_c_with_nothing_stays_ctrl_c(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = FakeSession.run

    def failing(self: FakeSession, cell: Cell, keep_adapter: bool) -> Record:
        record = original(self, cell, keep_adapter)
        why = Failure(kind="Diverged", message="the loss became NaN")
        return record.model_copy(update={"status": "failed", "score": None, "failure": why})

    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    monkeypatch.setattr(FakeSession, "run", failing)
    with pytest.raises(RequestError, match=r"no training came to an end; .*the loss became NaN"):
        fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)

    def interrupted(self: FakeSession, cell: Cell, keep_adapter: bool) -> Record:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSession, "run", interrupted)
    other = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        fitting.run_fit(other, tmp_path / "model", 1.0, console(), quiet=True)


def test_a_row_is_not_taken_for_the_one_seed_that_it_has_more(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time ends within a round of seeds; the first row of the race is the worse one on dev."""
    original = FakeSession.run

    def run(self: FakeSession, cell: Cell, keep_adapter: bool) -> Record:
        record = original(self, cell, keep_adapter)
        if cell.task.n_train < len(tiny_task.train):
            return record
        if len(set(finals)) == 3:
            raise TimeIsUp
        finals.append(cell.name)
        score = {"accuracy": 0.5 if cell.method.name == finals[0].split("-")[-3] else 0.9}
        record = record.model_copy(update={"score": score})
        self.store.write_record(record)
        return record

    finals: list[str] = []
    monkeypatch.setattr(FakeSession, "run", run)
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    fitted = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    first, second, again = finals
    assert fitted.record.cell == second and again != first
    shown = [record.cell for record in Store(request.out).records(last=True)]
    assert sorted(shown) == sorted([first, second])


def test_the_adapter_of_a_seed_that_the_others_lack_is_written_where_it_alone_is_kept(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a method that saves whole models only the best seed's is."""
    original = FakeSession.run
    finals: list[str] = []

    def run(self: FakeSession, cell: Cell, keep_adapter: bool) -> Record:
        if cell.task.n_train == len(tiny_task.train):
            if len(finals) == 3:
                raise TimeIsUp
            finals.append(f"{cell.method.name} {cell.seed}")
        record = original(self, cell, keep_adapter)
        score = (0.9 if cell.method.name == "full" else 0.5) + cell.seed / 1000
        record = record.model_copy(update={"score": {"accuracy": score}})
        self.store.write_record(record)
        return record

    monkeypatch.setattr(FakeSession, "run", run)
    request = ResolvedRequest(grid(tiny_model, tiny_task, "head,full"), tmp_path / "runs")
    fitted = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    assert finals == ["full 0", "head 0", "full 1"]
    assert [one.seed for one in fitted.row] == [0] and fitted.record.seed == 1
    assert (tmp_path / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("to", "runs"), [("runs", "runs"), ("model", "model/runs"), ("runs/model", "runs")]
)
def test_an_adapter_s_folder_is_none_of_what_is_tried(
    to: str, runs: str, tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    """The one may hold an adapter alone and the other nothing else: it would show at the end."""
    asked = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / runs)
    with pytest.raises(RequestError, match="must be two folders"):
        fitting.run_fit(asked, tmp_path / to, 9, console())
    assert not fake.made
    assert list(tmp_path.iterdir()) == []


def test_what_runs_is_written_down_for_watch(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task)
    one = fitting._FitRun(
        ResolvedRequest(asked, tmp_path),
        time.monotonic(),
        time.monotonic() + 60,
        console(),
        quiet=True,
    )
    Store(tmp_path).prepare()
    with one._session(one.store, tiny_task, time.monotonic() + 60) as session:
        session.progress.cell(asked.cells[0])
        now = read_now(tmp_path)
        assert now is not None and now.cell == asked.cells[0].name
    assert read_now(tmp_path) is None


def test_a_training_is_begun_only_if_there_is_time_for_the_slowest_of_its_row(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """Where the row has not run yet, for the slowest of all."""
    cells = {cell.method.name: cell for cell in grid(tiny_model, tiny_task).cells}
    session = FakeSession(Store(tmp_path), {}, Observer())
    head = session.run(cells["head"], keep_adapter=False)
    records = [head.model_copy(update={"total_s": seconds}) for seconds in (10.0, 100.0)]
    for seconds, has_time in ((50, False), (150, True)):
        run: Any = SimpleNamespace(records=records, end=time.monotonic() + seconds)
        for cell in cells.values():
            assert fitting._FitRun._has_time_for(run, cell) == has_time


def test_what_a_kill_left_of_a_training_that_is_done_goes(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    """It is three models in size, in full fine-tuning."""
    request = ResolvedRequest(grid(tiny_model, tiny_task), tmp_path / "runs")
    first = fitting.run_fit(request, tmp_path / "model", 1.0, console(), quiet=True)
    left = Store(tmp_path / "runs").checkpoint(first.record.cell)
    left.parent.mkdir()
    left.write_text("half")
    fitting.run_fit(request, tmp_path / "again", 1.0, console(), quiet=True)
    assert not left.exists()
