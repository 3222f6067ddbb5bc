"""The main metric is whichever is asked for, and of errors less is better everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.api.export import _choose_row, _names_by_cell
from peftlab.bench import run as room
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.resume import _rejudged, done_cells
from peftlab.bench.retention import best_seed
from peftlab.bench.run import Observer, run_grid
from peftlab.bench.suite import make_suite
from peftlab.bench.suite_tasks import load_tasks
from peftlab.errors import RequestError
from peftlab.records.record import Failure, Record
from peftlab.records.rows import LOWER_IS_BETTER, merit
from peftlab.records.store import Store, rows_of
from peftlab.tasks import Baselines, Examples, Task, baselines
from peftlab.tasks.metrics import METRICS, score

pytestmark = pytest.mark.usefixtures("warm")

EPOCHS = 3


def veries(n: int = 48) -> Task:
    """Numbers that a text gives away, in a unit of which 1 is little."""
    texts = [(f"the {'very ' * (i % 6)}big cat {i}",) for i in range(n)]
    labels = [100.0 * (i % 6) for i in range(n)]
    train = Examples(texts[n // 4 :], labels[n // 4 :])
    dev = Examples(texts[: n // 4], labels[: n // 4])
    return Task("veries", "regression", ("pearson",), train, dev)


def grid(model: Path, task: Task | str, **request: Any) -> Grid:
    training = {"epochs": EPOCHS, "batch_size": 8, "lr": 3e-2}
    asked = {"model": str(model), "tasks": [task], "methods": ["head"], "seeds": [0]}
    return resolve(make_suite(**asked | {"training": training} | request))


@pytest.fixture(scope="module")
def by_rmse(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, warm: None
) -> tuple[Path, Record]:
    """A run that was judged by an error."""
    out = tmp_path_factory.mktemp("runs") / "veries"
    (record,) = run_grid(grid(tiny_model, veries(), metric="rmse"), out, Observer())
    assert record.status == "done", record.failure
    return out, record


@pytest.fixture
def stored(by_rmse: tuple[Path, Record], tmp_path: Path) -> tuple[Path, Record]:
    """The same in a folder that may be changed."""
    return shutil.copytree(by_rmse[0], tmp_path / "veries"), by_rmse[1]


def rewrite(stored: tuple[Path, Record], **changes: Any) -> None:
    out, record = stored
    older = record.model_dump(mode="json") | changes
    (out / "records" / f"{record.cell}.json").write_text(json.dumps(older))


def test_a_perfect_answer_has_the_highest_merit_of_all() -> None:
    right, wrong = [0, 1, 2, 1, 0], [0, 2, 2, 0, 1]
    for name in METRICS:
        perfect, other = (score([name], right, answer)[name] for answer in (right, wrong))
        assert merit(name, perfect) > merit(name, other), name
    assert set(METRICS) >= LOWER_IS_BETTER


def test_what_every_task_of_its_kind_is_scored_by_is_recorded(
    by_rmse: tuple[Path, Record], tiny_task: Task
) -> None:
    _, record = by_rmse
    assert list(record.score or {}) == ["rmse", "pearson", "spearman", "mae"]
    (cola,) = load_tasks(make_suite(tasks=["acceptability"]))
    assert cola.every_metric == ("matthews", "accuracy", "f1", "macro_f1")


def test_of_an_error_the_best_epoch_has_the_least(by_rmse: tuple[Path, Record]) -> None:
    out, record = by_rmse
    curve = (out / "curves" / f"{record.cell}.jsonl").read_text().splitlines()
    errors = [row["score"]["rmse"] for row in map(json.loads, curve) if "score" in row]
    assert record.task.main_metric == "rmse"
    assert record.best is not None
    assert len(set(errors)) == EPOCHS  # else any would do
    assert record.best.score["rmse"] == min(errors)


def _taken(records: list[Record], out: Path) -> tuple[list[Record], bool]:
    return _choose_row(records, _names_by_cell(records), None, out)


def test_of_an_error_the_best_seed_and_the_winner_have_the_least(
    by_rmse: tuple[Path, Record],
) -> None:
    def made(seed: int, row: str, rmse: float) -> Record:
        record = by_rmse[1]
        method = record.method.model_copy(update={"settings": {"row": row}})
        return record.model_copy(update={"seed": seed, "method": method, "score": {"rmse": rmse}})

    good, bad = [made(0, "good", 30.0), made(1, "good", 20.0)], [made(0, "bad", 50.0)]
    assert best_seed(good).seed == 1
    assert _taken([*bad, made(1, "bad", 19.0), *good], by_rmse[0]) == (good, False)
    failed = made(1, "half", 0.0).model_copy(update={"status": "failed", "score": None})
    assert _taken([made(0, "half", 1.0), failed, *good], by_rmse[0]) == (good, False)


def test_a_winner_whose_rate_dev_has_chosen_is_told_of(by_rmse: tuple[Path, Record]) -> None:
    def made(lr: float, rmse: float) -> Record:
        training = by_rmse[1].training | {"lr": lr, "head_lr": lr}
        return by_rmse[1].model_copy(update={"training": training, "score": {"rmse": rmse}})

    slow, fast = made(1e-3, 30.0), made(2e-3, 20.0)
    assert _taken([slow, fast], by_rmse[0]) == ([fast], True)


def test_another_metric_is_no_other_cell_and_trains_nothing(
    stored: tuple[Path, Record], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = stored
    monkeypatch.setattr("peftlab.bench.run.Worker", lambda: pytest.fail("it was trained again"))
    (again,) = run_grid(grid(tiny_model, veries()), out, Observer())
    assert (again.cell, again.score, again.train_s) == (first.cell, first.score, first.train_s)
    assert (first.task.main_metric, again.task.main_metric) == ("rmse", "pearson")
    assert Store(out).read(first.cell) == again
    assert run_grid(grid(tiny_model, veries(), metric="rmse"), out, Observer()) == [
        first
    ]  # and back


@pytest.mark.parametrize("damage", ["null\n", "[" * 100_000 + "\n", "\xff"])
def test_a_damaged_curve_has_no_rows(tmp_path: Path, damage: str) -> None:
    (tmp_path / "curves").mkdir()
    file = Store(tmp_path).curve("cell")
    file.write_text(damage, encoding="latin-1")
    assert rows_of(file) == []


def test_another_metric_trains_nothing_where_the_curves_are_gone(
    stored: tuple[Path, Record], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = stored
    shutil.rmtree(out / "curves")
    monkeypatch.setattr("peftlab.bench.run.Worker", lambda: pytest.fail("it was trained again"))
    (again,) = run_grid(grid(tiny_model, veries()), out, Observer())
    assert (again.task.main_metric, again.score, again.best) == ("pearson", first.score, None)


def test_all_records_of_the_task_are_judged_by_the_metric_that_is_asked_for_now(
    stored: tuple[Path, Record], tiny_model: Path
) -> None:
    """One seed asked for by another metric left its row's other seeds in a column of their own."""
    out, record = stored
    failure = Failure(kind="OutOfMemory", message="no room")
    store = Store(out)
    store.write_record(record.model_copy(update={"cell": "other-seed", "seed": 7}))
    shutil.copy(out / "curves" / f"{record.cell}.jsonl", out / "curves" / "other-seed.jsonl")
    broken = {"status": "failed", "score": None, "best": None, "failure": failure}
    store.write_record(record.model_copy(update={"cell": "broken", "seed": 8} | broken))
    run_grid(grid(tiny_model, veries()), out, Observer())
    assert [one.task.main_metric for one in store.records()] == ["pearson"] * 3


def test_whether_a_run_collapsed_is_judged_anew_by_another_metric(
    stored: tuple[Path, Record],
) -> None:
    """By its baseline's: a rare class that is found costs accuracy, and is no collapse."""
    out, record = stored
    never = "never predicts 'ham'"
    collapsed = "collapsed: no better than always giving one answer"
    part = record.task.model_dump(mode="json")
    rmse, pearson = (record.score or {})["rmse"], (record.score or {})["pearson"]
    better = part | {"baselines": {"mean": {"rmse": rmse / 2, "pearson": pearson - 1}}}
    rewrite(stored, task=better, warnings=[never, collapsed])
    store = Store(out)
    one = store.read(record.cell)
    assert one is not None
    by_pearson = _rejudged(store, one, "pearson")
    assert by_pearson is not None and by_pearson.warnings == [never]
    back = _rejudged(store, by_pearson, "rmse")
    assert back is not None
    assert back.warnings == [never, "collapsed: no better than always giving one answer"]


def test_a_record_without_the_metric_is_not_done(
    stored: tuple[Path, Record], tiny_model: Path
) -> None:
    store, asked = Store(stored[0]), grid(tiny_model, veries(), metric="mae")
    assert set(done_cells(store, asked.cells)) == {stored[1].cell}
    rewrite(stored, score={"rmse": 0.5})
    assert done_cells(store, asked.cells) == {}
    assert set(done_cells(store, grid(tiny_model, veries(), metric="rmse").cells)) == {
        stored[1].cell
    }


def test_a_record_from_before_the_new_fields_is_done(
    stored: tuple[Path, Record], tiny_model: Path
) -> None:
    older = stored[1].model_dump(mode="json")
    del older["warnings"], older["task"]["labels"], older["task"]["baselines"]
    (stored[0] / "records" / f"{stored[1].cell}.json").write_text(json.dumps(older))
    (again,) = done_cells(
        Store(stored[0]), grid(tiny_model, veries(), metric="rmse").cells
    ).values()
    assert again.score == stored[1].score
    assert (again.warnings, again.task.labels, again.task.baselines) == ([], [], {})


def test_baselines_are_recorded_and_are_no_part_of_what_a_cell_is(
    by_rmse: tuple[Path, Record], tiny_model: Path
) -> None:
    _, record = by_rmse
    (cell,) = grid(tiny_model, veries(), metric="rmse").cells
    assert cell.task.baselines == {}
    assert cell.name == record.cell
    assert set(record.task.baselines) == {"constant", "tf-idf"}
    for scores in record.task.baselines.values():
        assert set(scores) == set(record.score or {})
    assert record.task.baselines["constant"]["pearson"] == 0.0


def test_baselines_are_computed_once_a_task_whatever_its_cells(
    tiny_model: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(task: Task) -> Baselines:
        computed.append(task.name)
        return baselines(task)

    monkeypatch.setattr(room, "baselines", counted)
    asked = grid(tiny_model, tiny_task, methods=["head", "lora"], seeds=[0, 1])
    cells = room.with_baselines(asked.cells, asked.tasks, Observer())
    assert computed == ["tiny"]
    assert [cell.name for cell in cells] == [cell.name for cell in asked.cells]
    assert all(set(cell.task.baselines) == {"constant", "tf-idf"} for cell in cells)
    assert all(cell.task.labels == ["other", "cat"] for cell in cells)


def test_a_metric_of_the_other_kind_is_refused() -> None:
    with pytest.raises(RequestError, match=r"unknown metric of classes .task entailment. 'rmse'"):
        load_tasks(make_suite(tasks=["similarity", "entailment"], metric="rmse"))
    with pytest.raises(RequestError, match="did you mean 'macro_f1'"):
        load_tasks(make_suite(tasks=["entailment"], metric="macro-f1"))
    (task,) = load_tasks(make_suite(tasks=["acceptability"], metric="macro_f1"))
    assert task.metrics == ("macro_f1", "matthews", "accuracy")


def test_class_weights_of_a_regression_are_refused(tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="class_weights must be none for similarity"):
        grid(tiny_model, "similarity", training={"class_weights": "balanced"})
    with pytest.raises(RequestError, match="class_weights must be 'none' or 'balanced'"):
        make_suite(training={"class_weights": "heavy"})


def train(model: Path, task: Task, out: Path, **training: Any) -> Record:
    loaded, tokenizer = peftlab.load_model(str(model), num_labels=task.num_labels)
    return peftlab.train(loaded, tokenizer, task, "head", batch_size=8, out=out, **training)


def test_balanced_weights_reach_the_training(
    tmp_path: Path, tiny_model: Path, tiny_task: Task
) -> None:
    """A quarter is cats; with weights each of them counts three times as much as another."""
    leaning = {}
    for weights in ("none", "balanced"):
        record = train(tiny_model, tiny_task, tmp_path / weights, epochs=3, class_weights=weights)
        assert record.training["class_weights"] == weights
        file = tmp_path / weights / "predictions.jsonl"
        logits = [json.loads(line)["logits"] for line in file.read_text().splitlines()]
        leaning[weights] = sum(cat - other for other, cat in logits)
    assert leaning["balanced"] > leaning["none"]


def test_a_collapse_is_recorded(tmp_path: Path, tiny_model: Path, tiny_task: Task) -> None:
    record = train(tiny_model, tiny_task, tmp_path, epochs=5, lr=3e-2, head_lr=3e-2, clip=1e-9)
    assert any("collapsed" in warning for warning in record.warnings), record.score


def test_of_equal_seeds_the_first_is_the_best_whichever_ran_first(
    stored: tuple[Path, Record],
) -> None:
    seeds = [stored[1].model_copy(update={"seed": seed}) for seed in (2, 0, 1)]
    assert best_seed(seeds).seed == 0
