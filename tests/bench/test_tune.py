"""`--tune`: trials on a part of train, none run twice; then the seeds at what they found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.bench import tune as tuning
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.run import Observer
from peftlab.bench.search import Result
from peftlab.bench.suite import Tune, make_suite
from peftlab.errors import RequestError
from peftlab.records.record import Failure, Record
from peftlab.records.rows import group
from peftlab.records.store import Store
from peftlab.records.trials import read_trials
from peftlab.report.scores import table
from peftlab.tasks import Examples, Task
from sessions import FakeSession

pytestmark = pytest.mark.usefixtures("warm")


class Counting(Observer):
    """How many cells were trained."""

    def __init__(self) -> None:
        self.cells: list[str] = []

    def cell(self, cell: Any) -> None:
        self.cells.append(cell.name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    FakeSession.made = []
    monkeypatch.setattr(tuning, "Session", FakeSession)
    return FakeSession


def grid(model: Path, task: Task, **request: Any) -> Grid:
    base = {"model": str(model), "tasks": [task], "methods": ["head", "lora"], "seeds": [0]}
    asked = base | {"training": {"epochs": 1, "batch_size": 8}, "tune": {"trials": 3}} | request
    return resolve(make_suite(**asked))


def tuned(asked: Grid, out: Path, progress: Observer | None = None) -> Grid:
    assert asked.suite.tune is not None
    return tuning.tune_grid(asked, asked.suite.tune, out, progress or Observer())


def is_tuned(asked: Grid, out: Path) -> bool:
    return not tuning.remaining(asked, out).trials


def test_of_an_error_the_least_is_the_best(
    tmp_path: Path, tiny_model: Path, fake: type[FakeSession]
) -> None:
    rows = Examples([(f"the cat {n}",) for n in range(40)], [float(n) for n in range(40)])
    task = Task(name="far", kind="regression", metrics=("rmse",), train=rows, dev=rows)
    tuned(grid(tiny_model, task), tmp_path)
    trials = read_trials(tmp_path / "tuning")
    for label in ("head", "lora"):
        last = [one for one in trials if one.label == label and one.score is not None]
        (chosen,) = [one for one in last if one.chosen]
        assert len({one.score for one in last}) > 1
        assert chosen.score == min(one.score for one in last if one.score is not None)


def compared(model: Path, task: Task, out: Path, **request: Any) -> list[Record]:
    base = {"model": str(model), "tasks": [task], "methods": ["head", "lora"], "out": out}
    return peftlab.compare(**base | {"epochs": 1, "batch_size": 8, "tune": 3} | request)


def test_every_row_gets_the_same_trials_and_runs_at_the_best_of_its_own(
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peftlab.bench.run.Session", fake)
    records = compared(tiny_model, tiny_task, tmp_path, seeds=[0, 1])
    trials = read_trials(tmp_path / "tuning")
    assert [trial.label for trial in trials] == ["head"] * 3 + ["lora"] * 3
    rates = [trial.values["lr"] for trial in trials if trial.label == "lora"]
    assert rates[:2] == [peftlab.LoRA.published_lr, peftlab.LoRA.default_lr]
    for label in ("head", "lora"):
        of = [trial for trial in trials if trial.label == label]
        (found,) = [trial for trial in of if trial.chosen]
        assert found.score == max(trial.score for trial in of if trial.score is not None)
        mine = [record for record in records if record.method.name == label]
        assert [record.seed for record in mine] == [0, 1]
        for record in mine:
            assert record.training["lr"] == found.values["lr"]
            assert record.method.rate_from == "tuned"
            assert record.method.tuned["trials"] == 3
            assert record.task.n_train == len(tiny_task.train)  # validation is put back


def test_no_trial_sees_dev(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    dev = Examples([("never seen before",)] * 4, [0, 1, 0, 1])
    task = dataclasses.replace(tiny_task, dev=dev)
    tuned(grid(tiny_model, task, tune={"trials": 2, "validation": 0.25}), tmp_path)
    (seen,) = fake.tasks.values()
    parts = (*seen.train.texts, *seen.dev.texts)
    assert sorted(parts) == sorted(task.train.texts)
    assert len(seen.dev) == pytest.approx(0.25 * len(tiny_task.train), abs=1)


def test_a_trial_that_is_done_is_never_run_again(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    class Stopping(Counting):
        def end(self, record: Record) -> None:
            if len(self.cells) == 4:
                raise KeyboardInterrupt

    asked = grid(tiny_model, tiny_task)
    stopped = Stopping()
    with pytest.raises(KeyboardInterrupt):
        tuned(asked, tmp_path, stopped)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tuning/records/*.json")}
    assert len(before) == 4
    on = tuned(asked, tmp_path)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(list(tmp_path.glob("tuning/records/*.json"))) == 6
    undisturbed = tuned(asked, tmp_path / "whole")
    assert [cell.name for cell in on.cells] == [cell.name for cell in undisturbed.cells]


class Diverging(FakeSession):
    """Trials above a rate come to nothing."""

    above = 1e-3

    def run(self, cell: Any, keep_adapter: bool) -> Record:
        record = super().run(cell, keep_adapter)
        if cell.training.lr > self.above:
            why = Failure(kind="Diverged", message="the loss is nan at step 3")
            failed = {"status": "failed", "score": None, "failure": why}
            record = record.model_copy(update=failed)
            self.store.write_record(record)
        return record


def test_a_trial_that_diverged_is_had_and_no_worker_starts_for_nothing(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["lora"])
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "Session", Diverging)
        first = tuned(asked, tmp_path)
    trials = read_trials(tmp_path / "tuning")
    assert None in [trial.score for trial in trials]
    monkeypatch.setattr("peftlab.bench.run.Worker", lambda: pytest.fail("a worker was started"))
    assert tuned(asked, tmp_path).cells == first.cells
    assert read_trials(tmp_path / "tuning") == trials
    killed = Store(tmp_path / "tuning").read(next(one.cell for one in trials if one.score is None))
    assert killed is not None
    why = Failure(kind="ProcessDied", message="killed")
    Store(tmp_path / "tuning").write_record(killed.model_copy(update={"failure": why}))
    with pytest.raises(pytest.fail.Exception, match="a worker was started"):
        tuned(asked, tmp_path)


def test_what_a_row_fixes_is_not_looked_for(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(
        tiny_model,
        tiny_task,
        methods=["head", "lora[rank=2]", "lora[lr=1e-3]"],
        tune={"trials": 2, "space": ["lr", "rank"]},
    )
    head, ranked, fixed = (
        tuning.space_of(row, Tune(trials=2, space=["lr", "rank"])) for row in asked.rows
    )
    assert list(head) == ["lr"]  # it has no rank
    assert list(ranked) == ["lr"]
    assert list(fixed) == ["rank"]
    cells = tuned(asked, tmp_path).cells
    assert cells[1].method.settings["rank"] == 2
    assert cells[2].training.lr == 1e-3


def test_a_tuned_row_is_one_row_over_tasks_whatever_was_found(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    other = Task(
        **{**vars(tiny_task), "name": "other", "train": tiny_task.dev, "dev": tiny_task.train}
    )
    asked = grid(tiny_model, tiny_task, tasks=[tiny_task, other], methods=["lora"])
    session = fake(Store(tmp_path), {}, Observer())
    records = [session.run(cell, keep_adapter=False) for cell in tuned(asked, tmp_path).cells]
    apart = [
        record.model_copy(update={"training": record.training | {"lr": 1e-3 * (i + 1)}})
        for i, record in enumerate(records)
    ]
    assert len(group(apart)) == 1
    untuned = apart[0].model_copy(
        update={"method": apart[0].method.model_copy(update={"tuned": {}})}
    )
    assert len(group([*apart, untuned])) == 2
    (row,) = table(apart).rows
    assert row.label == "lora"
    assert row.tuned["space"] == ["lr", "head_lr"]


def test_a_tuned_cell_is_another_one_even_at_the_default_rate(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["head"], tune={"trials": 1})
    (plain,) = asked.cells
    (found,) = tuned(asked, tmp_path).cells
    assert found.training == plain.training
    assert found.name != plain.name


def test_a_row_whose_trials_all_fail_keeps_its_defaults(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "search", lambda *args: [])
    told: list[str] = []

    class Telling(Observer):
        def note(self, line: str) -> None:
            told.append(line)

    asked = grid(tiny_model, tiny_task, methods=["lora"])
    (cell,) = tuned(asked, tmp_path, Telling()).cells
    assert cell.training == asked.cells[0].training
    assert (cell.method.rate_from, cell.method.tuned["trials"]) == ("default", 3)
    assert told == [f"lora on {tiny_task.name}: every trial failed; it is trained at its defaults"]


WRONG = {
    "trials": ({"tune": {"trials": 0}}, "trials"),
    "validation": ({"tune": {"trials": 2, "validation": 0.9}}, "validation"),
    "space": ({"tune": {"trials": 2, "space": ["rnak"]}}, "did you mean 'rank'"),
    "field": ({"tune": {"trails": 2}}, "did you mean 'trials'"),
    "kind": ({"tune": 3}, "tune must be a table"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_say_what_is_allowed(name: str, tiny_model: Path, tiny_task: Task) -> None:
    request, words = WRONG[name]
    with pytest.raises(RequestError, match=words):
        grid(tiny_model, tiny_task, **request)


def test_a_part_of_train_with_one_answer_chooses_nothing(
    tmp_path: Path, tiny_model: Path, fake: type[FakeSession]
) -> None:
    """Every trial scored .000 on it, and the first was said to be found."""
    train = Examples([(f"the cat {i}",) for i in range(12)], [float(i) for i in range(12)])
    task = Task("few", "regression", ("pearson", "rmse"), train, train)
    asked = grid(tiny_model, task, methods=["lora"])
    with pytest.raises(RequestError, match=r"0\.1 of train.* has one answer only; give more rows"):
        tuned(asked, tmp_path)
    assert not fake.made
    errors = tuned(grid(tiny_model, task, methods=["lora"], metric="rmse"), tmp_path)
    assert errors.cells and fake.made


def test_a_rate_for_all_and_a_search_for_it_exclude_each_other(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    asked = grid(tiny_model, tiny_task, training={"epochs": 1, "lr": 1e-3})
    with pytest.raises(RequestError, match="leave one of them out"):
        tuned(asked, tmp_path)
    assert not (tmp_path / "tuning").exists()


def test_without_optuna_the_remedy_is_named(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(RequestError, match="pip install optuna"):
        tuned(grid(tiny_model, tiny_task), tmp_path)


def test_a_head_s_one_rate_is_one_row_over_tasks(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    other = dataclasses.replace(tiny_task, name="other", train=tiny_task.dev, dev=tiny_task.train)
    asked = grid(tiny_model, tiny_task, tasks=[tiny_task, other], methods=["head", "lora"])
    session = fake(Store(tmp_path), {}, Observer())
    records = [session.run(cell, keep_adapter=False) for cell in tuned(asked, tmp_path).cells]
    apart = [  # as if each had been found
        one.model_copy(update={"training": one.training | {"lr": rate, "head_lr": rate}})
        for one, rate in zip(records, (1e-3, 2e-3, 3e-3, 4e-3), strict=True)
    ]
    assert [label for label, _ in group(apart)] == ["head", "lora"]


def test_a_rate_of_the_head_alone_that_is_asked_for_stays(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["head[head_lr=0.01]"])
    (cell,) = tuned(asked, tmp_path).cells
    assert (cell.training.lr, cell.training.head_lr) == (0.01, 0.01)
    all_rows = grid(tiny_model, tiny_task, training={"epochs": 1, "head_lr": 1e-2})
    with pytest.raises(RequestError, match=r"--head-lr 0.01 is given and --tune shall find it"):
        tuned(all_rows, tmp_path)


def test_another_metric_tries_again_what_lacks_it(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    tuned(grid(tiny_model, tiny_task, methods=["head"]), tmp_path)
    before = len(fake.made)
    tuned(grid(tiny_model, tiny_task, methods=["head"], metric="matthews"), tmp_path)
    assert len(fake.made) == 2 * before  # the sessions here score the main metric alone


def test_damaged_trials_are_named_with_the_remedy(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "trials.json").write_text('[{"task"')
    with pytest.raises(RequestError, match=r"trials.json is damaged; delete it"):
        tuning.remaining(grid(tiny_model, tiny_task), tmp_path)
    assert not fake.made


def test_a_damaged_trial_is_kept_aside(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["head"])
    tuned(asked, tmp_path)
    assert is_tuned(asked, tmp_path)
    path = next(iter((tmp_path / "tuning" / "records").glob("*.json")))
    path.write_text("half")
    tuned(asked, tmp_path)
    assert path.with_name(f"{path.name}.unreadable").read_text() == "half"
    assert len(fake.made) == 4


def test_what_is_left_is_what_would_run(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    def both(asked: Grid) -> tuple[bool, bool]:
        """Whether trials are said to be left, and whether some ran then."""
        before, said = len(fake.made), not is_tuned(asked, tmp_path)
        tuned(asked, tmp_path)
        return said, len(fake.made) > before

    nine = {"training": {"epochs": 9, "batch_size": 8}, "methods": ["lora"]}
    asked = grid(tiny_model, tiny_task, **nine)
    assert both(asked) == (True, True)
    assert both(asked) == (False, False)
    (tmp_path / "tuning" / "trials.json").unlink()  # as its own message advises where damaged
    assert both(asked) == (False, False)
    next((tmp_path / "tuning" / "records").glob("*.json")).unlink()
    assert both(asked) == (True, True)
    assert both(grid(tiny_model, tiny_task, **nine, metric="matthews")) == (True, True)
    eight = nine | {"training": {"epochs": 8, "batch_size": 8}}
    assert both(grid(tiny_model, tiny_task, **eight)) == (True, True)


def test_of_trials_that_all_failed_none_is_left(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["lora"])
    monkeypatch.setattr(tuning, "Session", Diverging)
    monkeypatch.setattr(Diverging, "above", 0.0)
    tuned(asked, tmp_path)
    assert is_tuned(asked, tmp_path)
    assert [cell.method.tuned is not None for cell in tuning.remaining(asked, tmp_path).cells] == [
        True
    ]


def test_what_was_tuned_is_told_by_the_trials_cells_and_not_by_their_names(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    """Else rows at another batch size would run all their trials before memory is looked at."""
    asked = grid(tiny_model, tiny_task, methods=["head[lr=1e-3]", "lora"])
    assert not is_tuned(asked, tmp_path)
    tuned(asked, tmp_path)
    assert {cell.method.name for cell in fake.made} == {"lora"}  # of head nothing is open
    assert is_tuned(asked, tmp_path)
    wider = grid(tiny_model, tiny_task, training={"epochs": 1, "batch_size": 16})
    assert not is_tuned(wider, tmp_path)


def test_what_can_be_refused_is_before_any_trial(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    with pytest.raises(RequestError, match="unknown keep 'bset'; did you mean 'best'"):
        compared(tiny_model, tiny_task, tmp_path / "out", keep="bset")
    assert not fake.made
    assert not (tmp_path / "out").exists()


def test_a_rate_that_trials_did_not_look_for_is_a_default(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    space = {"trials": 2, "space": ["rank"]}
    cells = tuned(grid(tiny_model, tiny_task, methods=["lora"], tune=space), tmp_path).cells
    assert [(cell.method.rate_from, cell.method.tuned["space"]) for cell in cells] == [
        ("default", ["rank"])
    ]


def test_what_is_tuned_is_asked_of_rows_that_look_for_other_settings(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    """Head has no rank: another row's trials are none of its own."""
    how = {"trials": 3, "space": ["lr", "rank"]}
    asked = grid(tiny_model, tiny_task, methods=["lora", "head"], tune=how)
    tuned(asked, tmp_path)
    assert is_tuned(asked, tmp_path)
    for other in ({"trials": 4, "space": ["lr", "rank"]}, {"trials": 3, "space": ["lr"]}):
        asked = grid(tiny_model, tiny_task, methods=["lora", "head"], tune=other)
        assert not is_tuned(asked, tmp_path)


def test_a_tuned_comparison_trains_in_its_workers_and_repeated_trains_nothing(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"methods": ["head"], "seeds": [0], "tune": 2}
    (record,) = compared(tiny_model, tiny_task, tmp_path, **asked)
    (found,) = [trial for trial in read_trials(tmp_path / "tuning") if trial.chosen]
    assert (record.status, record.training["lr"]) == ("done", found.values["lr"])
    monkeypatch.setattr("peftlab.bench.run.Worker", lambda: pytest.fail("a worker was started"))
    assert compared(tiny_model, tiny_task, tmp_path, **asked) == [record]


@pytest.mark.parametrize(("rate", "at_border"), [(4.9e-3, ["lr"]), (5e-4, [])])
def test_a_trial_that_is_taken_says_where_its_range_may_be_too_narrow(
    rate: float,
    at_border: list[str],
    tmp_path: Path,
    tiny_model: Path,
    tiny_task: Task,
    fake: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LoRA's rates are searched up to ten times the published one, 5e-3."""

    def search(space: Any, first: Any, n: int, merit: Any, rungs: list[int]) -> list[Result]:
        values = {"lr": rate, "head_lr": 1e-3}
        return [Result(values, rungs[-1], merit(values, rungs[-1]))]

    monkeypatch.setattr(tuning, "search", search)
    tuned(grid(tiny_model, tiny_task, methods=["lora"]), tmp_path)
    (trial,) = read_trials(tmp_path / "tuning")
    assert trial.chosen and trial.at_border == at_border


def test_where_no_rate_is_looked_for_no_trial_is_spent_on_the_published_one(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["lora"], tune={"trials": 2, "space": ["rank"]})
    tuned(asked, tmp_path)
    ranks = [trial.values["rank"] for trial in read_trials(tmp_path / "tuning")]
    assert ranks[0] == 8 and len(set(ranks)) == 2


def test_what_a_kill_left_of_a_trial_that_has_ended_goes(
    tmp_path: Path, tiny_model: Path, tiny_task: Task, fake: type[FakeSession]
) -> None:
    asked = grid(tiny_model, tiny_task, methods=["head"])
    tuned(asked, tmp_path)
    store = Store(tmp_path).trials
    left = store.checkpoint(store.cells()[0])
    left.parent.mkdir()
    left.write_text("half")
    tuned(asked, tmp_path)
    assert not left.exists()
