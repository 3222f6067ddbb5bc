"""`--repeat-speed`: short cells of every row in turns, which speed and memory are read from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.bench import speed
from peftlab.bench.grid import Grid, resolve
from peftlab.bench.run import Observer
from peftlab.bench.short import short
from peftlab.bench.suite import make_suite
from peftlab.errors import RequestError
from peftlab.records.record import Record
from peftlab.records.store import Store, rounds_of, with_label
from peftlab.records.table import columns
from peftlab.report import table
from peftlab.report.text import describe_rounds
from peftlab.tasks import Examples, Task
from sessions import FakeSession


class Heard(Observer):
    def __init__(self) -> None:
        self.cells: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def cell(self, cell: Any) -> None:
        self.cells.append((cell.method.label, cell.seed))

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture
def grid(tiny_model: Path, tiny_task: Task) -> Grid:
    return resolve(
        make_suite(
            model=str(tiny_model),
            tasks=[tiny_task],
            methods=["head", "lora"],
            seeds=[0, 1],
            training={"epochs": 3, "batch_size": 2},
        )
    )


def test_where_nobody_can_look_nobody_is_said_to_be_busy(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    monkeypatch.setattr(speed, "others_share", lambda: None)
    told = Heard()
    speed.measure_speed(grid, 1, tmp_path, told)
    assert told.notes == []
    assert {one.speed.others_share for one in rounds_of(tmp_path) if one.speed} == {None}


def test_rows_take_turns_in_both_orders_and_done_rounds_stay(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    shares = iter([0.0, 0.9, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(speed, "others_share", lambda: next(shares))
    told = Heard()
    speed.measure_speed(grid, 2, tmp_path, told)
    assert told.cells == [("head", 0), ("lora", 0), ("lora", 1), ("head", 1)]
    (line,) = told.notes
    assert line.startswith("others take 0.9 of a core")
    again = Heard()
    speed.measure_speed(grid, 3, tmp_path, again)
    assert again.cells == [("head", 2), ("lora", 2)]
    found = rounds_of(tmp_path)
    assert len(found) == 6
    assert max(one.speed.others_share or 0.0 for one in found if one.speed) == 0.9
    assert {one.training["epochs"] for one in found} == {1}


def test_a_round_that_lacks_a_row_is_run_again_as_a_whole(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it would have taken no turns with the others: an hour later a machine is another."""
    monkeypatch.setattr(speed, "Session", FakeSession)
    heads = [cell for cell in grid.cells if cell.method.name == "head"]
    speed.measure_speed(dataclasses.replace(grid, cells=heads), 1, tmp_path, Observer())
    told = Heard()
    speed.measure_speed(grid, 1, tmp_path, told)
    assert told.cells == [("head", 0), ("lora", 0)]


def test_rows_that_two_commands_measured_took_no_turns_with_each_other(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    (head, lora) = ([c for c in grid.cells if c.method.name == name] for name in ("head", "lora"))
    for cells in (head, lora):
        speed.measure_speed(dataclasses.replace(grid, cells=cells), 1, tmp_path, Observer())
    assert len({one.speed.turn for one in rounds_of(tmp_path) if one.speed}) == 2
    speed.measure_speed(grid, 1, tmp_path, Observer())
    assert len({one.speed.turn for one in rounds_of(tmp_path) if one.speed}) == 1
    told = Heard()
    speed.measure_speed(grid, 1, tmp_path, told)
    assert not told.cells


def test_a_round_that_was_begun_again_and_stopped_is_none(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Heard):
        def cell(self, cell: Any) -> None:
            super().cell(cell)
            if len(self.cells) == 4:
                raise KeyboardInterrupt

    monkeypatch.setattr(speed, "Session", FakeSession)
    heads = [cell for cell in grid.cells if cell.method.name == "head"]
    speed.measure_speed(dataclasses.replace(grid, cells=heads), 2, tmp_path, Observer())
    with pytest.raises(KeyboardInterrupt):  # behind lora's turn in the second round
        speed.measure_speed(grid, 2, tmp_path, Stopping())
    told = Heard()
    speed.measure_speed(grid, 2, tmp_path, told)
    assert told.cells == [("lora", 1), ("head", 1)]


def test_a_short_task_has_two_answers_where_the_task_has() -> None:
    """Of 1 % that are not 0 a sample of 40 had none, and each cell of the round was refused."""
    labels = [0.0] * 7920 + [1 + i / 80 for i in range(80)]
    texts = [(f"text {i}",) for i in range(8000)]
    train, dev = Examples(texts, labels), Examples(texts[:9], labels[:9])
    task = Task("rare", "regression", ("pearson",), train, dev)
    assert len(set(short(task, 40, 2).train.labels)) == 2
    assert len(short(task, 40, 2).train) == 40


def test_a_short_task_is_a_part_of_the_task(tiny_task: Task) -> None:
    part = short(tiny_task, 40, 2)
    assert len(part.train) == min(40, len(tiny_task.train))
    assert set(part.train.texts) <= set(tiny_task.train.texts)
    assert len(part.dev) == 2


def test_the_table_reads_speed_from_the_rounds_and_time_from_the_cells(
    tmp_path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    records = [FakeSession(Store(tmp_path), {}, Observer()).run(grid.cells[0], keep_adapter=False)]
    only = dataclasses.replace(grid, cells=grid.cells[:1])
    speed.measure_speed(only, 2, tmp_path, Observer())
    short = [
        one.model_copy(update={"speed": one.speed.model_copy(update={"examples_per_s": 7.0})})
        for one in rounds_of(tmp_path)
        if one.speed
    ]
    found = table(records, short)
    (cost,) = found.rows[0].costs
    assert cost.examples_per_s == 7.0
    assert cost.cell_s == records[0].total_s
    assert found.n_rounds == 2
    (plain,) = table(records).rows[0].costs
    assert plain.examples_per_s != 7.0
    assert table(records).n_rounds == 0


@pytest.mark.parametrize("given", [-1, 1.5, True, "2"])
def test_rounds_are_a_whole_number(given: Any, tiny_model: Path, tiny_task: Task) -> None:
    with pytest.raises(RequestError, match="repeat_speed must be a whole number"):
        peftlab.compare(model=str(tiny_model), tasks=[tiny_task], repeat_speed=given)


def measured(grid: Grid, out: Path) -> list[Record]:
    """The records of the grid's cells, after one round of them."""
    session = FakeSession(Store(out), {}, Observer())
    speed.measure_speed(grid, 1, out, Observer())
    return [session.run(cell, keep_adapter=False) for cell in grid.cells]


def test_a_row_under_another_name_keeps_its_rounds(
    tmp_path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    records = [with_label(one, f"my {one.method.label}") for one in measured(grid, tmp_path)]
    assert table(records, rounds_of(tmp_path)).n_rounds == 1
    (column,) = columns(records, [tmp_path]).values()
    assert [len(runs.rounds) for runs in column.values()] == [1, 1]


def test_edited_data_has_rounds_of_its_own(
    tmp_path: Path, tiny_task: Task, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the few examples that a round is of are not among those that changed."""
    monkeypatch.setattr(speed, "Session", FakeSession)
    before = measured(grid, tmp_path)
    whole = tiny_task.dev
    texts = [("changed",) if i == len(whole) - 1 else text for i, text in enumerate(whole.texts)]
    edited = dataclasses.replace(tiny_task, dev=dataclasses.replace(whole, texts=texts))
    assert short(edited, 80, 4) == short(tiny_task, 80, 4)
    after = resolve(grid.suite.model_copy(update={"tasks": [edited]}))
    assert (
        table([FakeSession(Store(tmp_path), {}, Observer()).run(after.cells[0], False)]).n_rounds
        == 0
    )
    FakeSession.made.clear()
    records = measured(after, tmp_path)
    assert len(FakeSession.made) == 2 + len(records)
    found = rounds_of(tmp_path)
    assert table(records, found).n_rounds == 1 and table(before, found).n_rounds == 0


def test_rounds_of_rows_that_are_not_shown_are_not_told_of(
    tmp_path: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    records = measured(grid, tmp_path)
    heads = [one for one in rounds_of(tmp_path) if one.method.name == "head"]
    loras = [one for one in records if one.method.name == "lora"]
    assert table(loras, heads).n_rounds == 0


def test_rows_of_two_commands_did_not_take_turns_with_one_another(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Session", FakeSession)
    apart = [
        dataclasses.replace(grid, cells=[one for one in grid.cells if one.method.label == name])
        for name in ("head", "lora")
    ]
    session = FakeSession(Store(tmp_path), {}, Observer())
    whole = [session.run(cell, keep_adapter=False) for cell in grid.cells]
    speed.measure_speed(grid, 2, tmp_path / "one", Heard())
    together = table(whole, rounds_of(tmp_path / "one"))
    assert together.out_of_turn == ()
    for one in apart:
        speed.measure_speed(one, 2, tmp_path / "two", Heard())
    in_two = table(whole, rounds_of(tmp_path / "two"))
    assert in_two.out_of_turn == ("lora",)
    assert describe_rounds(in_two).endswith("They compare with none of lora, measured apart.")
    only_head = [one for one in rounds_of(tmp_path / "two") if one.method.label == "head"]
    assert table(whole, only_head).out_of_turn == ("lora",)
